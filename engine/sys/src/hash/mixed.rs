//! One to four messages: the message schedule in 256-bit registers, the rounds on the SHA
//! instructions, both in one stream of instructions.
//!
//! The schedule of a block does not depend on the state, so that of two blocks of each of four
//! messages is worked out in the eight lanes of wide registers, while the SHA instructions run the
//! rounds of the two blocks before. The schedule keeps the vector units busy and the rounds keep the
//! SHA unit busy, where the other kernels use one and leave the other idle; `sha256msg2`, which some
//! CPUs take apart into four steps, is not used at all.
//!
//! What was measured on Zen 4, in cycles per block of SHA-256: 68 for sixteen lanes in AVX-512, 76
//! for four messages on the SHA instructions, 34 for these rounds alone, 27 for this schedule alone,
//! 46 for both together. Two things cost dearly there and are avoided: 512-bit rotations, which take
//! the pipe of `sha256rnds2` for two cycles (58 instead of 46), and three-way operations beside SHA
//! instructions (52). So the registers are half as wide as they could be, and exclusive or takes two
//! steps.
//!
//! The rounds are spread evenly over the schedule by [`pin`]; the compiler would put them in heaps
//! that the CPU cannot see past.

use std::arch::x86_64::*;

use super::kernel::{BLOCK_LEN_BYTES, LANES_MAX, State};
use super::rounds::SHA256_K;
use super::{avx2, sha_ni};

type V = __m256i;

/// Messages that the kernel takes at once.
const STREAMS: usize = 4;

/// Blocks of each message whose schedule is worked out together: with [`STREAMS`], eight lanes.
const AHEAD: usize = 2;

/// How far ahead of the schedule lines are asked for, per message: memory answers in a tenth of the
/// time that the blocks between take, and the hardware by itself stops at every page.
const PREFETCH_BYTES: usize = 1024;

/// Words of the schedule and constants of the rounds, summed: for two rounds each, the pairs of the
/// eight lanes in the order 0, 1, 4, 5, 2, 3, 6, 7, as [`_mm256_unpacklo_epi32`] and its twin leave
/// them. Lane `4 * block + stream`.
#[repr(C, align(64))]
struct Sums([[u64; 8]; 32]);

/// Words of the schedule: for four rounds each, those of block 0 and block 1 of every message, the
/// first of four words in the highest place.
#[repr(C, align(64))]
struct Words([[[u32; 4]; STREAMS * AHEAD]; 20]);

/// Lets nothing that makes either value move past this place, and nothing that uses it before. It
/// is no instruction.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn pin(round: &mut __m128i, vector: &mut V) {
    // SAFETY: no instruction at all; both registers are left as they are.
    unsafe {
        std::arch::asm!(
            "/* {round:x} {vector:y} */",
            round = inout(xmm_reg) * round,
            vector = inout(zmm_reg) * vector,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Keeps the compiler from joining two exclusive ors into one three-way operation.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn hold(mut value: V) -> V {
    // SAFETY: no instruction at all; the register is left as it is.
    unsafe {
        std::arch::asm!(
            "/* {value:y} */",
            value = inout(zmm_reg) value,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    value
}

/// Asks for the lines that hold the two blocks [`PREFETCH_BYTES`] after `offset`.
#[inline]
#[target_feature(enable = "avx2")]
fn prefetch(data: &[*const u8; LANES_MAX], offset: usize) {
    for data in &data[..STREAMS] {
        for block in 0..AHEAD {
            let at = data.wrapping_add(offset + PREFETCH_BYTES + block * BLOCK_LEN_BYTES);
            // A hint: an address that is not mapped is no fault.
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
    }
}

/// One quarter of the transposition of eight blocks: half a block of four lanes.
///
/// # Safety
/// The first [`STREAMS`] pointers must be readable for [`AHEAD`] blocks from `offset` on.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
unsafe fn fetch(data: &[*const u8; LANES_MAX], offset: usize, quarter: usize) -> [V; 4] {
    let (half, block) = (quarter / 2, quarter % 2);
    // SAFETY: half of one of the blocks that the caller vouches for.
    unsafe { avx2::load_four(data, offset + block * BLOCK_LEN_BYTES + half * 32, 0) }
}

/// The state of up to [`STREAMS`] messages; idle ones do what the first does.
fn fill(states: &[State]) -> [State; STREAMS] {
    std::array::from_fn(|stream| *states.get(stream).unwrap_or(&states[0]))
}

/// Writes words `t` and `t + 1` plus their constants.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn sum_pair(w: &[V; 16], t: usize, sums: &mut Sums) {
    let even = _mm256_add_epi32(w[t % 16], _mm256_set1_epi32(SHA256_K[t] as i32));
    let odd = _mm256_add_epi32(w[(t + 1) % 16], _mm256_set1_epi32(SHA256_K[t + 1] as i32));
    let pairs = sums.0[t / 2].as_mut_ptr().cast::<V>();
    // SAFETY: a row of `Sums` is as long as two registers and aligned to both.
    unsafe {
        _mm256_store_si256(pairs, _mm256_unpacklo_epi32(even, odd));
        _mm256_store_si256(pairs.add(1), _mm256_unpackhi_epi32(even, odd));
    }
}

/// `x` rotated right by `A` and by `B` and shifted right by `C`, all joined by exclusive or.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn sigma<const A: i32, const B: i32, const C: i32>(x: V) -> V {
    let turned = _mm256_xor_si256(_mm256_ror_epi32::<A>(x), _mm256_ror_epi32::<B>(x));
    _mm256_xor_si256(hold(turned), _mm256_srli_epi32::<C>(x))
}

/// The whole schedule of eight blocks at `offset`, with nothing beside it.
///
/// # Safety
/// As [`fetch`].
#[target_feature(enable = "avx2,avx512f,avx512vl")]
unsafe fn sha256_schedule(data: &[*const u8; LANES_MAX], offset: usize, sums: &mut Sums) {
    // SAFETY: as the caller vouches.
    let mut w =
        avx2::words(&std::array::from_fn(|quarter| unsafe { fetch(data, offset, quarter) }));
    for t in (0..64).step_by(2) {
        if t >= 16 {
            for t in [t, t + 1] {
                let small0 = sigma::<7, 18, 3>(w[(t + 1) % 16]);
                let small1 = sigma::<17, 19, 10>(w[(t + 14) % 16]);
                let older = _mm256_add_epi32(w[t % 16], w[(t + 9) % 16]);
                w[t % 16] = _mm256_add_epi32(_mm256_add_epi32(small0, older), small1);
            }
        }
        sum_pair(&w, t, sums);
    }
}

/// SHA-256 of whole blocks of one to four messages.
///
/// # Safety
/// As [`super::kernel::Update`]; the CPU must have the SHA extensions, AVX2, and AVX-512 F and VL.
pub(super) unsafe fn sha256(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    let steps = blocks / AHEAD;
    if steps > 0 {
        let mut all = fill(states);
        // SAFETY: as the caller vouches; idle lanes have readable pointers too.
        unsafe { sha256_steps(&mut all, data, steps) };
        states.copy_from_slice(&all[..states.len()]);
    }
    if !blocks.is_multiple_of(AHEAD) {
        let last = data.map(|data| data.wrapping_add(steps * AHEAD * BLOCK_LEN_BYTES));
        // SAFETY: the caller vouches for this block too.
        unsafe { sha_ni::sha256(states, &last, blocks % AHEAD) };
    }
}

/// SHA-256 of `steps` times [`AHEAD`] blocks of each of four messages.
///
/// # Safety
/// The first [`STREAMS`] pointers must be readable for so many blocks; `steps` must not be 0; the CPU
/// must have the features below.
#[target_feature(enable = "sha,avx2,avx512f,avx512vl")]
unsafe fn sha256_steps(states: &mut [State; STREAMS], data: &[*const u8; LANES_MAX], steps: usize) {
    _mm256_zeroupper();
    let mut buffers = [Sums([[0; 8]; 32]), Sums([[0; 8]; 32])];
    let [now, next] = &mut buffers;
    let (mut now, mut next) = (now, next);
    // The instructions want the state split this way, the first letter highest.
    let split = |s: &State, [a, b, c, d]: [usize; 4]| {
        _mm_set_epi32(s[a] as i32, s[b] as i32, s[c] as i32, s[d] as i32)
    };
    let mut abef: [__m128i; STREAMS] = std::array::from_fn(|at| split(&states[at], [0, 1, 4, 5]));
    let mut cdgh: [__m128i; STREAMS] = std::array::from_fn(|at| split(&states[at], [2, 3, 6, 7]));
    // SAFETY: there is at least one step.
    unsafe { sha256_schedule(data, 0, now) };
    for step in 0..steps {
        // After the last step its schedule is worked out again, for nothing.
        let offset = (step + 1).min(steps - 1) * AHEAD * BLOCK_LEN_BYTES;
        prefetch(data, offset);
        let zero = _mm256_setzero_si256();
        let (mut fours, mut w) = ([[zero; 4]; 4], [zero; 16]);
        let (mut small0, mut small1) = (zero, zero);
        /// What is done for the schedule beside the `I`-th of 256 pairs of rounds.
        macro_rules! beside {
            ($i:expr, $round:expr) => {{
                const I: usize = $i;
                // Of two words at a time: nine places, the last one writes them down.
                const PLACE: usize = if I >= 40 { (I - 40) % 9 } else { 9 };
                const PAIR: usize = if I >= 40 { 16 + (I - 40) / 9 * 2 } else { 16 };
                const T: usize = PAIR + (PLACE / 4) % 2;
                if I < 16 {
                    if I % 4 == 0 {
                        // SAFETY: `offset` is that of a step.
                        fours[I / 4 % 4] = unsafe { fetch(data, offset, I / 4 % 4) };
                    }
                    pin($round, &mut fours[I / 4 % 4][I % 4]);
                } else if I < 24 {
                    if I == 16 {
                        w = avx2::words(&fours);
                    }
                    pin($round, &mut w[2 * (I % 8)]);
                    pin($round, &mut w[2 * (I % 8) + 1]);
                } else if I < 40 {
                    if I % 2 == 0 {
                        sum_pair(&w, I - 24, next);
                    }
                } else if PLACE == 0 || PLACE == 4 {
                    let x = w[(T + 1) % 16];
                    small0 = _mm256_xor_si256(_mm256_ror_epi32::<7>(x), _mm256_ror_epi32::<18>(x));
                    pin($round, &mut small0);
                } else if PLACE == 1 || PLACE == 5 {
                    small0 = _mm256_xor_si256(small0, _mm256_srli_epi32::<3>(w[(T + 1) % 16]));
                    small0 = _mm256_add_epi32(small0, w[T % 16]);
                    pin($round, &mut small0);
                } else if PLACE == 2 || PLACE == 6 {
                    let x = w[(T + 14) % 16];
                    small1 = _mm256_xor_si256(_mm256_ror_epi32::<17>(x), _mm256_ror_epi32::<19>(x));
                    pin($round, &mut small1);
                } else if PLACE == 3 || PLACE == 7 {
                    small1 = _mm256_xor_si256(small1, _mm256_srli_epi32::<10>(w[(T + 14) % 16]));
                    let older = _mm256_add_epi32(small0, w[(T + 9) % 16]);
                    w[T % 16] = _mm256_add_epi32(older, small1);
                    pin($round, &mut w[T % 16]);
                } else {
                    sum_pair(&w, PAIR, next);
                }
            }};
        }
        /// Two rounds of one message.
        macro_rules! two_rounds {
            ($block:expr, $pair:expr, $stream:expr) => {{
                const STREAM: usize = $stream;
                let sums = now.0[$pair][STREAM / 2 * 4 + 2 * $block + STREAM % 2];
                let sums = _mm_cvtsi64_si128(sums.cast_signed());
                let (changed, other) = if $pair % 2 == 0 {
                    (&mut cdgh[STREAM], abef[STREAM])
                } else {
                    (&mut abef[STREAM], cdgh[STREAM])
                };
                *changed = _mm_sha256rnds2_epu32(*changed, other, sums);
                beside!(($block * 32 + $pair) * STREAMS + STREAM, changed);
            }};
        }
        /// All rounds of one block of every message.
        macro_rules! block {
            ($block:expr, $($pair:literal)*) => {{
                let (abef_before, cdgh_before) = (abef, cdgh);
                $(
                    two_rounds!($block, $pair, 0);
                    two_rounds!($block, $pair, 1);
                    two_rounds!($block, $pair, 2);
                    two_rounds!($block, $pair, 3);
                )*
                for stream in 0..STREAMS {
                    abef[stream] = _mm_add_epi32(abef[stream], abef_before[stream]);
                    cdgh[stream] = _mm_add_epi32(cdgh[stream], cdgh_before[stream]);
                }
            }};
        }
        #[rustfmt::skip]
        block!(0, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
        #[rustfmt::skip]
        block!(1, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
        std::mem::swap(&mut now, &mut next);
    }
    for (stream, state) in states.iter_mut().enumerate() {
        let (abef, cdgh) = (abef[stream], cdgh[stream]);
        state[0] = _mm_extract_epi32::<3>(abef) as u32;
        state[1] = _mm_extract_epi32::<2>(abef) as u32;
        state[2] = _mm_extract_epi32::<3>(cdgh) as u32;
        state[3] = _mm_extract_epi32::<2>(cdgh) as u32;
        state[4] = _mm_extract_epi32::<1>(abef) as u32;
        state[5] = _mm_extract_epi32::<0>(abef) as u32;
        state[6] = _mm_extract_epi32::<1>(cdgh) as u32;
        state[7] = _mm_extract_epi32::<0>(cdgh) as u32;
    }
}

/// Writes words `4 * group` to `4 * group + 3`, turned back into one register per lane.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn word_group(w: &[V; 16], group: usize, words: &mut Words) {
    let at = 4 * group % 16;
    let (late_low, late_high) =
        (_mm256_unpacklo_epi32(w[at + 3], w[at + 2]), _mm256_unpackhi_epi32(w[at + 3], w[at + 2]));
    let (early_low, early_high) =
        (_mm256_unpacklo_epi32(w[at + 1], w[at]), _mm256_unpackhi_epi32(w[at + 1], w[at]));
    let rows = words.0[group].as_mut_ptr().cast::<V>();
    // SAFETY: a group of `Words` is as long as four registers and aligned to each.
    unsafe {
        _mm256_store_si256(rows, _mm256_unpacklo_epi64(late_low, early_low));
        _mm256_store_si256(rows.add(1), _mm256_unpackhi_epi64(late_low, early_low));
        _mm256_store_si256(rows.add(2), _mm256_unpacklo_epi64(late_high, early_high));
        _mm256_store_si256(rows.add(3), _mm256_unpackhi_epi64(late_high, early_high));
    }
}

/// The whole schedule of eight blocks at `offset`, with nothing beside it.
///
/// # Safety
/// As [`fetch`].
#[target_feature(enable = "avx2,avx512f,avx512vl")]
unsafe fn sha1_schedule(data: &[*const u8; LANES_MAX], offset: usize, words: &mut Words) {
    // SAFETY: as the caller vouches.
    let mut w =
        avx2::words(&std::array::from_fn(|quarter| unsafe { fetch(data, offset, quarter) }));
    for group in 0..20 {
        if group >= 4 {
            for t in 4 * group..4 * group + 4 {
                let older = _mm256_xor_si256(w[t % 16], w[(t + 2) % 16]);
                let newer = _mm256_xor_si256(w[(t + 8) % 16], w[(t + 13) % 16]);
                w[t % 16] = _mm256_rol_epi32::<1>(_mm256_xor_si256(older, newer));
            }
        }
        word_group(&w, group, words);
    }
}

/// SHA-1 of whole blocks of one to four messages.
///
/// # Safety
/// As [`super::kernel::Update`]; the CPU must have the SHA extensions, AVX2, and AVX-512 F and VL.
pub(super) unsafe fn sha1(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    let steps = blocks / AHEAD;
    if steps > 0 {
        let mut all = fill(states);
        // SAFETY: as the caller vouches; idle lanes have readable pointers too.
        unsafe { sha1_steps(&mut all, data, steps) };
        states.copy_from_slice(&all[..states.len()]);
    }
    if !blocks.is_multiple_of(AHEAD) {
        let last = data.map(|data| data.wrapping_add(steps * AHEAD * BLOCK_LEN_BYTES));
        // SAFETY: the caller vouches for this block too.
        unsafe { sha_ni::sha1(states, &last, blocks % AHEAD) };
    }
}

/// SHA-1 of `steps` times [`AHEAD`] blocks of each of four messages.
///
/// # Safety
/// The first [`STREAMS`] pointers must be readable for so many blocks; `steps` must not be 0; the CPU
/// must have the features below.
#[target_feature(enable = "sha,avx2,avx512f,avx512vl")]
unsafe fn sha1_steps(states: &mut [State; STREAMS], data: &[*const u8; LANES_MAX], steps: usize) {
    _mm256_zeroupper();
    let empty = || Words([[[0; 4]; STREAMS * AHEAD]; 20]);
    let mut buffers = [empty(), empty()];
    let [now, next] = &mut buffers;
    let (mut now, mut next) = (now, next);
    let mut abcd: [__m128i; STREAMS] = std::array::from_fn(|at| {
        let s = &states[at];
        _mm_set_epi32(s[0] as i32, s[1] as i32, s[2] as i32, s[3] as i32)
    });
    let mut e: [__m128i; STREAMS] =
        std::array::from_fn(|at| _mm_set_epi32(states[at][4] as i32, 0, 0, 0));
    // SAFETY: there is at least one step.
    unsafe { sha1_schedule(data, 0, now) };
    for step in 0..steps {
        // After the last step its schedule is worked out again, for nothing.
        let offset = (step + 1).min(steps - 1) * AHEAD * BLOCK_LEN_BYTES;
        prefetch(data, offset);
        let zero = _mm256_setzero_si256();
        let (mut fours, mut w) = ([[zero; 4]; 4], [zero; 16]);
        let mut mixed = zero;
        /// What is done for the schedule beside the `I`-th of 160 groups of four rounds.
        macro_rules! beside {
            ($i:expr, $round:expr) => {{
                const I: usize = $i;
                // Of four words at a time: eight places, the last one writes them down.
                const PLACE: usize = if I >= 28 { (I - 28) % 8 } else { 0 };
                const GROUP: usize = if I >= 28 { 4 + (I - 28) / 8 } else { 4 };
                const T: usize = 4 * GROUP + PLACE / 2;
                if I < 16 {
                    if I % 4 == 0 {
                        // SAFETY: `offset` is that of a step.
                        fours[I / 4 % 4] = unsafe { fetch(data, offset, I / 4 % 4) };
                    }
                    pin($round, &mut fours[I / 4 % 4][I % 4]);
                } else if I < 20 {
                    if I == 16 {
                        w = avx2::words(&fours);
                    }
                    pin($round, &mut w[4 * (I % 4)]);
                    pin($round, &mut w[4 * (I % 4) + 1]);
                    pin($round, &mut w[4 * (I % 4) + 2]);
                    pin($round, &mut w[4 * (I % 4) + 3]);
                } else if I < 28 {
                    if I % 2 == 0 {
                        word_group(&w, (I - 20) / 2, next);
                    }
                } else if I < 156 {
                    if PLACE % 2 == 0 {
                        mixed = _mm256_xor_si256(w[T % 16], w[(T + 2) % 16]);
                        mixed = _mm256_xor_si256(hold(mixed), w[(T + 8) % 16]);
                        pin($round, &mut mixed);
                    } else {
                        mixed = _mm256_xor_si256(mixed, w[(T + 13) % 16]);
                        w[T % 16] = _mm256_rol_epi32::<1>(mixed);
                        pin($round, &mut w[T % 16]);
                    }
                    if PLACE == 7 {
                        word_group(&w, GROUP, next);
                    }
                }
            }};
        }
        // What the next group of rounds adds its words to: first `e`, then `a` of four rounds ago.
        let mut older;
        /// Four rounds of one message.
        macro_rules! four_rounds {
            ($block:expr, $group:expr, $stream:expr) => {{
                const STREAM: usize = $stream;
                let words = now.0[$group][2 * STREAM + $block].as_ptr();
                // SAFETY: the words of a message are as long as a register and aligned to it.
                let words = unsafe { _mm_load_si128(words.cast()) };
                let input = if $group == 0 {
                    _mm_add_epi32(older[STREAM], words)
                } else {
                    _mm_sha1nexte_epu32(older[STREAM], words)
                };
                older[STREAM] = abcd[STREAM];
                abcd[STREAM] = _mm_sha1rnds4_epu32::<{ ($group / 5) as i32 }>(abcd[STREAM], input);
                beside!(($block * 20 + $group) * STREAMS + STREAM, &mut abcd[STREAM]);
            }};
        }
        /// All rounds of one block of every message.
        macro_rules! block {
            ($block:expr, $($group:literal)*) => {{
                let (abcd_before, e_before) = (abcd, e);
                older = e;
                $(
                    four_rounds!($block, $group, 0);
                    four_rounds!($block, $group, 1);
                    four_rounds!($block, $group, 2);
                    four_rounds!($block, $group, 3);
                )*
                for stream in 0..STREAMS {
                    e[stream] = _mm_sha1nexte_epu32(older[stream], e_before[stream]);
                    abcd[stream] = _mm_add_epi32(abcd[stream], abcd_before[stream]);
                }
            }};
        }
        block!(0, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
        block!(1, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
        std::mem::swap(&mut now, &mut next);
    }
    for (stream, state) in states.iter_mut().enumerate() {
        state[0] = _mm_extract_epi32::<3>(abcd[stream]) as u32;
        state[1] = _mm_extract_epi32::<2>(abcd[stream]) as u32;
        state[2] = _mm_extract_epi32::<1>(abcd[stream]) as u32;
        state[3] = _mm_extract_epi32::<0>(abcd[stream]) as u32;
        state[4] = _mm_extract_epi32::<3>(e[stream]) as u32;
    }
}
