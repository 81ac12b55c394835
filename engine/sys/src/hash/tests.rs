//! Every kernel against a slow oracle and published vectors.
//!
//! `RINGSEED_HASH_CASES` sets how many random cases the differential test makes over all rungs;
//! the default keeps `cargo test` short.

use sha2::Digest as _;

use super::batch;
use super::kernel::{Algo, BLOCK_LEN_BYTES, Kernel, LANES_MAX, Rung, State};
use super::plan::{Plan, Wish};
use super::*;

/// A generator of test data: the same seed gives the same data (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn bytes(&mut self, len_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len_bytes + 8);
        while bytes.len() < len_bytes {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len_bytes);
        bytes
    }

    /// Small lengths, lengths around multiples of a block, and now and then long ones.
    fn len_bytes(&mut self, max: usize) -> usize {
        let len_bytes = match self.below(8) {
            0..=2 => self.below(300),
            3..=5 => (self.below(64) * BLOCK_LEN_BYTES + self.below(19)).saturating_sub(9),
            6 => self.below(20_000),
            _ => self.below(max + 1),
        };
        len_bytes.min(max)
    }
}

/// A digest by code that shares nothing with the kernels.
fn oracle(algo: Algo, message: &[u8]) -> Vec<u8> {
    match algo {
        Algo::Sha1 => sha1_smol::Sha1::from(message).digest().bytes().to_vec(),
        Algo::Sha256 => sha2::Sha256::digest(message).to_vec(),
    }
}

/// Plans that use one rung each, for every rung that this CPU has.
fn plans(algo: Algo) -> Vec<(Rung, Plan)> {
    let mut plans = Vec::new();
    for rung in Rung::ALL {
        match Kernel::new(algo, rung) {
            Some(kernel) => plans.push((rung, Plan::of_kernel(algo, kernel))),
            None => eprintln!("skipped: kernel {rung}: not on this CPU"),
        }
    }
    plans
}

/// Digests of messages in parts by `plan`, of either algorithm.
fn digests(plan: &Plan, messages: &[&[&[u8]]]) -> Vec<Vec<u8>> {
    fn by<const LEN: usize>(plan: &Plan, messages: &[&[&[u8]]]) -> Vec<Vec<u8>> {
        let mut out = vec![[0; LEN]; messages.len()];
        digest_many_parts(plan, messages, &mut out);
        out.iter().map(|digest| digest.to_vec()).collect()
    }
    match plan.algo {
        Algo::Sha1 => by::<20>(plan, messages),
        Algo::Sha256 => by::<32>(plan, messages),
    }
}

/// Digests of whole messages by `plan`, of either algorithm.
fn whole_digests(plan: &Plan, messages: &[&[u8]]) -> Vec<Vec<u8>> {
    fn by<const LEN: usize>(plan: &Plan, messages: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut out = vec![[0; LEN]; messages.len()];
        digest_many(plan, messages, &mut out);
        out.iter().map(|digest| digest.to_vec()).collect()
    }
    match plan.algo {
        Algo::Sha1 => by::<20>(plan, messages),
        Algo::Sha256 => by::<32>(plan, messages),
    }
}

/// One random batch: the count of messages, their lengths, places in memory and cuts. Gives the
/// index of the first message whose digest is wrong.
fn first_wrong(plan: &Plan, random: &mut Random, count: usize, len_max: usize) -> Option<usize> {
    let equal = (random.below(3) == 0).then(|| random.len_bytes(len_max));
    let memory: Vec<(Vec<u8>, usize)> = (0..count)
        .map(|_| {
            let unaligned = random.below(64);
            let len_bytes = equal.unwrap_or_else(|| random.len_bytes(len_max));
            (random.bytes(unaligned + len_bytes), unaligned)
        })
        .collect();
    let messages: Vec<&[u8]> = memory.iter().map(|(bytes, from)| &bytes[*from..]).collect();
    let cut = random.below(2) == 0;
    let parts: Vec<Vec<&[u8]>> = messages
        .iter()
        .map(|message| {
            let mut parts = Vec::new();
            let mut rest = *message;
            while cut && random.below(6) != 0 {
                let (part, later) = rest.split_at(random.below(rest.len() + 1));
                parts.push(part);
                rest = later;
            }
            parts.push(rest);
            parts
        })
        .collect();
    let parts: Vec<&[&[u8]]> = parts.iter().map(Vec::as_slice).collect();
    let got = digests(plan, &parts);
    let got_whole = whole_digests(plan, &messages);
    (0..count).find(|&at| {
        let expected = oracle(plan.algo, messages[at]);
        got[at] != expected || got_whole[at] != expected
    })
}

/// How many messages the differential test hashes over all rungs and both functions, and how long
/// they are at most.
fn case_bounds() -> (usize, usize) {
    match std::env::var("RINGSEED_HASH_CASES") {
        Ok(text) => (text.parse().expect("RINGSEED_HASH_CASES is a count"), 1 << 20),
        Err(_) => (6_000, 1 << 14),
    }
}

#[test]
fn every_rung_agrees_with_the_oracle() {
    let plans: Vec<_> = Algo::ALL.into_iter().flat_map(plans).collect();
    let (count_min, len_max) = case_bounds();
    let mut cases = 0;
    let mut seed = 1;
    while cases < count_min {
        for (rung, plan) in &plans {
            let mut random = Random(seed);
            // Every count of messages up to 40 comes by, so every count of busy lanes does.
            let count = (seed as usize - 1) % 40 + 1;
            let wrong = first_wrong(plan, &mut random, count, len_max);
            assert_eq!(wrong, None, "{} by {rung}, seed {seed}", plan.algo.name());
            cases += count;
        }
        seed += 1;
    }
}

#[test]
fn long_messages_agree_with_the_oracle() {
    for (rung, plan) in Algo::ALL.into_iter().flat_map(plans) {
        let mut random = Random(0x10_0000 + rung as u64);
        let wrong = first_wrong(&plan, &mut random, 5, 1 << 20);
        assert_eq!(wrong, None, "{} by {rung}", plan.algo.name());
    }
}

#[test]
fn every_length_to_two_blocks_and_more_agrees() {
    let bytes = Random(7).bytes(330 + 64);
    for (rung, plan) in Algo::ALL.into_iter().flat_map(plans) {
        // All lengths in one batch: every one meets every other in neighbouring lanes.
        let messages: Vec<&[u8]> = (0..=330).map(|len| &bytes[len % 64..len % 64 + len]).collect();
        for (message, got) in messages.iter().zip(whole_digests(&plan, &messages)) {
            assert_eq!(got, oracle(plan.algo, message), "{} bytes by {rung}", message.len());
        }
    }
}

#[test]
fn the_plan_in_force_agrees_with_the_oracle_for_every_count() {
    for spare_avx512 in [false, true] {
        for algo in Algo::ALL {
            let plan = Wish { rung: None, spare_avx512 }.plan(algo, None);
            for count in 1..=40 {
                let wrong = first_wrong(&plan, &mut Random(count as u64), count, 3_000);
                assert_eq!(wrong, None, "{} messages, {}", count, algo.name());
            }
        }
    }
    first_and_last_calls_do_nothing();
}

/// No messages are no work, and no mistake.
fn first_and_last_calls_do_nothing() {
    sha1_many(&[], &mut []);
    sha256_many_parts(&[], &mut []);
    let mut digest = [[0; 32]];
    sha256_many_parts(&[&[]], &mut digest);
    assert_eq!(digest[0][..], oracle(Algo::Sha256, b""));
}

#[test]
fn a_length_in_bits_past_32_bits_is_padded_right() {
    // 513 MiB as one slice many times over; the best rung, because the plain ones take seconds.
    let mebibyte = Random(9).bytes(1 << 20);
    let parts = vec![mebibyte.as_slice(); 513];
    let mut sha1 = [[0; 20]];
    let mut sha256 = [[0; 32]];
    sha1_many_parts(&[&parts], &mut sha1);
    sha256_many_parts(&[&parts], &mut sha256);
    let mut sha1_oracle = sha1_smol::Sha1::new();
    let mut sha256_oracle = sha2::Sha256::new();
    for part in &parts {
        sha1_oracle.update(part);
        sha256_oracle.update(part);
    }
    assert_eq!(sha1[0], sha1_oracle.digest().bytes());
    assert_eq!(sha256[0][..], sha256_oracle.finalize()[..]);
}

/// Memory whose last byte is followed by a page that may not be touched.
struct Guarded {
    start: *mut u8,
    len_bytes: usize,
}

impl Guarded {
    const PAGE_LEN_BYTES: usize = 4096;

    fn new(pages: usize) -> Guarded {
        let len_bytes = (pages + 1) * Self::PAGE_LEN_BYTES;
        // SAFETY: an anonymous mapping at a place of the kernel's choice; it touches nothing of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        let start: *mut u8 = start.cast();
        let usable = pages * Self::PAGE_LEN_BYTES;
        // SAFETY: the last page of the mapping just made, which nothing refers to yet.
        let done = unsafe {
            libc::mprotect(start.add(usable).cast(), Self::PAGE_LEN_BYTES, libc::PROT_NONE)
        };
        assert_eq!(done, 0);
        Guarded { start, len_bytes }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped in `new` and readable and writable but for the last page.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len_bytes - Self::PAGE_LEN_BYTES) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; no slice of it outlives `self`.
        unsafe { libc::munmap(self.start.cast(), self.len_bytes) };
    }
}

#[test]
fn nothing_past_the_last_byte_is_read() {
    let mut pages: Vec<Guarded> = (0..17).map(|_| Guarded::new(2)).collect();
    let mut random = Random(3);
    for page in &mut pages {
        let bytes = page.bytes();
        let noise = random.bytes(bytes.len());
        bytes.copy_from_slice(&noise);
    }
    for (rung, plan) in Algo::ALL.into_iter().flat_map(plans) {
        for count in [1, 2, 3, 4, 5, 8, 15, 16, 17] {
            for len_bytes in (0..=300).chain([4095, 4096, 8191, 8192]) {
                let messages: Vec<&[u8]> = pages[..count]
                    .iter_mut()
                    .map(|page| {
                        let bytes = page.bytes();
                        &bytes[bytes.len() - len_bytes..]
                    })
                    .collect();
                let got = whole_digests(&plan, &messages);
                // A read too far is a fault and ends the test; one digest shows that work was done.
                let last = count - 1;
                assert_eq!(got[last], oracle(plan.algo, messages[last]), "by {rung}");
            }
        }
    }
}

/// The portable kernel with one bit wrong in the lane that `PLANTED` names.
///
/// # Safety
/// As [`super::kernel::Update`].
unsafe fn planted_sha256(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    let lane = PLANTED.with(std::cell::Cell::get);
    // SAFETY: the caller's contract is the same.
    unsafe { super::portable::sha256(states, data, blocks) };
    if let Some(state) = states.get_mut(lane) {
        state[5] ^= 1 << 17;
    }
}

thread_local! {
    static PLANTED: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
}

#[test]
fn an_error_planted_in_any_one_lane_is_found() {
    // SAFETY: needs no CPU feature and takes any count of lanes.
    let kernel = unsafe { Kernel::with_update(Rung::Avx512, planted_sha256) };
    let plan = Plan::of_kernel(Algo::Sha256, kernel);
    let found = |lane: usize| {
        PLANTED.with(|planted| planted.set(lane));
        (1..=3).any(|seed| first_wrong(&plan, &mut Random(seed), 16, 2_000).is_some())
    };
    assert!(!found(usize::MAX), "without a planted error nothing is wrong");
    for lane in 0..16 {
        assert!(found(lane), "the error in lane {lane} went unseen");
    }
}

#[test]
fn a_bit_flipped_in_one_message_changes_its_digest_alone() {
    for (rung, plan) in Algo::ALL.into_iter().flat_map(plans) {
        let mut memory: Vec<Vec<u8>> = (0..16).map(|at| Random(at).bytes(700)).collect();
        let digests = |memory: &[Vec<u8>]| {
            let messages: Vec<&[u8]> = memory.iter().map(Vec::as_slice).collect();
            whole_digests(&plan, &messages)
        };
        let before = digests(&memory);
        for lane in 0..16 {
            memory[lane][lane * 40] ^= 1 << (lane % 8);
            let after = digests(&memory);
            memory[lane][lane * 40] ^= 1 << (lane % 8);
            for other in 0..16 {
                assert_eq!(before[other] != after[other], other == lane, "{rung}, lane {lane}");
            }
        }
    }
}

#[test]
fn the_environment_forces_a_rung() {
    // What the environment says is read once per process, so the test runs itself in a child.
    const CHILD: &str = "RINGSEED_HASH_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        assert_eq!(calibrate(None), Source::Forced);
        let table = table();
        assert_eq!(table.source, Source::Forced);
        let of_portable =
            |row: &TableRow| row.kernels.iter().all(|(rung, _)| *rung == Rung::Portable);
        assert!(table.rows.iter().all(of_portable), "{table}");
        let mut digest = [[0; 20]];
        sha1_many(&[b"abc"], &mut digest);
        assert_eq!(digest[0][..], oracle(Algo::Sha1, b"abc"));
        return;
    }
    let test = "hash::tests::the_environment_forces_a_rung";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact"])
        .env(CHILD, "1")
        .env("RINGSEED_HASH", "portable")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// One round of the published Monte Carlo test (SHAVS, 6.4): a thousand digests, each of the last
/// three.
fn monte(plan: &Plan, seed: &[u8]) -> Vec<u8> {
    let mut last = [seed.to_vec(), seed.to_vec(), seed.to_vec()];
    for _ in 0..1000 {
        let message = last.concat();
        let digest = whole_digests(plan, &[&message]).remove(0);
        last.rotate_left(1);
        last[2] = digest;
    }
    last[2].clone()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(digit).collect()
}

/// The examples of FIPS 180-4 and of NIST's example files, with SHA-1 and SHA-256.
const EXAMPLES: [(&str, [&str; 2]); 4] = [
    (
        "",
        [
            "da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ],
    ),
    (
        "abc",
        [
            "a9993e364706816aba3e25717850c26c9cd0d89d",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ],
    ),
    (
        "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
        [
            "84983e441c3bd26ebaae4aa1f95129e5e54670f1",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ],
    ),
    (
        "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqr\
         lmnopqrsmnopqrstnopqrstu",
        [
            "a49b2446a02c645bf419f995b67091253a04a259",
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
        ],
    ),
];

/// Seed and last checkpoint of NIST's Monte Carlo vectors (SHAVS, byte-oriented).
const MONTE: [(Algo, &str, &str); 2] = [
    (
        Algo::Sha1,
        "dd4df644eaf3d85bace2b21accaa22b28821f5cd",
        "01b7be5b70ef64843a03fdbb3b247a6278d2cbe1",
    ),
    (
        Algo::Sha256,
        "6d1e72ad03ddeb5de891e572e2396f8da015d899ef0e79503152d6010a3fe691",
        "6a912ba4188391a78e6f13d88ed2d14e13afce9db6f7dcbf4a48c24f3db02778",
    ),
];

#[test]
fn published_examples_hold_for_every_rung() {
    for (rung, plan) in Algo::ALL.into_iter().flat_map(plans) {
        let messages = EXAMPLES.map(|(message, _)| message.as_bytes());
        let expected = EXAMPLES.map(|(_, digests)| from_hex(digests[plan.algo as usize]));
        assert_eq!(whole_digests(&plan, &messages), expected, "{} by {rung}", plan.algo.name());
    }
}

#[test]
fn the_published_monte_carlo_chain_holds_for_every_rung() {
    for (algo, seed, last) in MONTE {
        for (rung, plan) in plans(algo) {
            let chain = (0..100).fold(from_hex(seed), |seed, _| monte(&plan, &seed));
            assert_eq!(chain, from_hex(last), "{} by {rung}", algo.name());
        }
    }
}

#[test]
fn a_million_times_a_holds_for_every_rung() {
    // FIPS 180-4 examples.
    let million = vec![b'a'; 1_000_000];
    let expected = [
        "34aa973cd4c4daa4f61eeb2bdbad27316534016f",
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
    ];
    for (rung, plan) in Algo::ALL.into_iter().flat_map(plans) {
        let got = whole_digests(&plan, &[&million]).remove(0);
        assert_eq!(got, from_hex(expected[plan.algo as usize]), "{} by {rung}", plan.algo.name());
    }
}

/// Jobs that start, grow, end and are cancelled in any order, against messages kept whole.
fn interleave<const LEN: usize>(plan: Plan, seed: u64) {
    let algo = plan.algo;
    let mut random = Random(seed);
    let mut set = LaneSet::<LEN>::with_plan(24, plan);
    let mut jobs: Vec<(Job, Vec<u8>)> = Vec::new();
    for _ in 0..60 {
        match random.below(5) {
            0 | 1 => {
                for _ in 0..random.below(8) {
                    match set.try_submit() {
                        Some(job) => jobs.push((job, Vec::new())),
                        None => assert_eq!(jobs.len(), 24),
                    }
                }
            }
            2 if !jobs.is_empty() => {
                let (job, message) = jobs.swap_remove(random.below(jobs.len()));
                assert_eq!(set.len_bytes(job), message.len() as u64);
                set.cancel(job);
            }
            3 => {
                let ended = jobs.split_off(jobs.len() - random.below(jobs.len() + 1));
                let names: Vec<Job> = ended.iter().map(|(job, _)| *job).collect();
                let mut out = vec![[0; LEN]; names.len()];
                set.finish(&names, &mut out);
                for ((_, message), digest) in ended.iter().zip(out) {
                    assert_eq!(digest[..], oracle(algo, message), "seed {seed}");
                }
            }
            _ => {
                // Some jobs come several times in one feed, some not at all.
                let chunks: Vec<(usize, Vec<u8>)> = (0..random.below(40))
                    .filter(|_| !jobs.is_empty())
                    .map(|_| {
                        let len_bytes = random.len_bytes(3_000);
                        (random.below(jobs.len()), random.bytes(len_bytes))
                    })
                    .collect();
                let feeds: Vec<(Job, &[u8])> =
                    chunks.iter().map(|(at, chunk)| (jobs[*at].0, chunk.as_slice())).collect();
                set.feed(&feeds);
                for (at, chunk) in chunks {
                    jobs[at].1.extend_from_slice(&chunk);
                }
            }
        }
        assert_eq!(set.busy(), jobs.len());
    }
}

#[test]
fn jobs_interleave_freely() {
    for seed in 1..=20 {
        for (_, plan) in plans(Algo::Sha1) {
            interleave::<20>(plan, seed);
        }
        for (_, plan) in plans(Algo::Sha256) {
            interleave::<32>(plan, seed);
        }
    }
}

#[test]
#[should_panic(expected = "is not under way")]
fn a_job_kept_past_its_end_is_refused() {
    let mut set = Sha256LaneSet::new(1);
    let job = set.try_submit().unwrap();
    assert!(set.try_submit().is_none());
    set.cancel(job);
    set.try_submit().unwrap();
    set.feed(&[(job, b"late")]);
}

#[test]
fn a_run_leaves_no_message_out() {
    /// Counts how often each message is given back.
    struct Counted(Vec<usize>);
    impl<'a> batch::Messages<'a> for Counted {
        const ENDS: bool = false;
        fn count(&self) -> usize {
            self.0.len()
        }
        fn len_bytes(&self, index: usize) -> u64 {
            (index % 3 * 64) as u64
        }
        fn part(&self, index: usize, cursor: &mut usize) -> Option<&'a [u8]> {
            let first = *cursor == 0;
            *cursor = 1;
            first.then(|| &[0; 128][..index % 3 * 64])
        }
        fn resume(&self, _index: usize) -> Option<batch::Running> {
            None
        }
        fn done(&mut self, index: usize, _running: batch::Running) {
            self.0[index] += 1;
        }
    }
    for count in [0, 1, 63, 64, 65, 200] {
        let mut counted = Counted(vec![0; count]);
        batch::run(super::plan::current(Algo::Sha1), &mut counted);
        assert!(counted.0.iter().all(|&times| times == 1));
    }
}

/// The root by the text of BEP 52: recursion over leaves, absent ones zero.
fn root_by_the_text(leaves: &[Sha256Digest], width: usize) -> Sha256Digest {
    if width == 1 {
        return leaves.first().copied().unwrap_or_default();
    }
    let half = width / 2;
    let (left, right) = leaves.split_at(half.min(leaves.len()));
    let pair = [root_by_the_text(left, half), root_by_the_text(right, half)];
    sha2::Sha256::digest(pair.as_flattened()).into()
}

#[test]
fn trees_follow_the_text_of_bep_52() {
    use merkle::*;
    for count in [1, 2, 3, 4, 5, 7, 8, 15, 31, 33, 64, 100, 257] {
        let bytes = Random(count as u64).bytes((count - 1) * LEAF_LEN_BYTES + 1 + count * 7);
        let mut hashes = vec![[0; 32]; count];
        leaves(&bytes, &mut hashes);
        for (leaf, hash) in bytes.chunks(LEAF_LEN_BYTES).zip(&hashes) {
            assert_eq!(hash[..], oracle(Algo::Sha256, leaf));
        }
        let width = count.next_power_of_two();
        let expected = root_by_the_text(&hashes, width);
        assert_eq!(root(&mut hashes.clone(), 0), expected);

        // Level by level, every node of every level proven against the root.
        let mut layers = vec![hashes.clone()];
        while layers.last().unwrap().len() > 1 {
            let below = layers.last().unwrap();
            let mut above = vec![[0; 32]; below.len().div_ceil(2)];
            parents(below, layers.len() - 1, &mut above);
            layers.push(above);
        }
        let mut index = count / 2;
        let leaf = hashes[index];
        let mut uncles = Vec::new();
        for (level, layer) in layers[..layers.len() - 1].iter().enumerate() {
            uncles.push(*layer.get(index ^ 1).unwrap_or(zero_hash(level)));
            index /= 2;
        }
        assert!(proof_holds(&leaf, (count / 2) as u64, &uncles, &expected));
        assert!(!proof_holds(&leaf, (count / 2) as u64 ^ 1, &uncles, &expected) || count == 1);
        assert!(!proof_holds(&leaf, (count / 2 + width) as u64, &uncles, &expected));
        let mut bent = leaf;
        bent[31] ^= 1;
        assert!(!proof_holds(&bent, (count / 2) as u64, &uncles, &expected));

        // A layer from a stream cut anywhere is the level of the whole tree.
        for height in 0..6 {
            let mut random = Random(height as u64);
            let mut builder = LayerBuilder::new(height);
            let mut layer = Vec::new();
            let mut rest = hashes.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(random.below(rest.len()) + 1);
                builder.push(now, |node| layer.push(node));
                rest = later;
            }
            builder.finish(|node| layer.push(node));
            let subtree = 1 << height;
            let expected: Vec<Sha256Digest> =
                hashes.chunks(subtree).map(|leaves| root_by_the_text(leaves, subtree)).collect();
            assert_eq!(layer, expected, "{count} leaves, height {height}");
            let last = hashes.chunks(subtree).next_back().unwrap();
            assert_eq!(root_at(&mut last.to_vec(), 0, height), *expected.last().unwrap());
        }
    }
}
