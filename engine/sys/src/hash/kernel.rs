//! The kernels and what they have in common: whole blocks in, states changed in place.

use std::fmt;
use std::str::FromStr;

use super::rounds::{SHA1_START, SHA256_START};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, avx512_x8, mixed, sha_ni};
use super::{crates, portable};

/// Bytes of one block of SHA-1 and SHA-256 (FIPS 180-4, figure 1).
pub const BLOCK_LEN_BYTES: usize = 64;

/// The most lanes that any kernel has.
pub const LANES_MAX: usize = 16;

/// State of a message between blocks; SHA-1 uses the first five words.
pub(super) type State = [u32; 8];

/// Runs the compression function over `blocks` blocks of every lane: lane `i` has its state in
/// `states[i]` and its data at `data[i]`.
///
/// # Safety
/// - The CPU must have the features of the kernel's rung.
/// - There must be at least one state and no more than the kernel has lanes; at least one block.
/// - *Every* pointer of `data`, those of idle lanes included, must be readable for `blocks` blocks.
pub(super) type Update =
    unsafe fn(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize);

/// Which hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algo {
    /// SHA-1, 20 bytes.
    Sha1,
    /// SHA-256, 32 bytes.
    Sha256,
}

impl Algo {
    /// Both, in the order in which tables list them.
    pub const ALL: [Algo; 2] = [Algo::Sha1, Algo::Sha256];

    /// Name as printed, for example `sha256`.
    pub fn name(self) -> &'static str {
        match self {
            Algo::Sha1 => "sha1",
            Algo::Sha256 => "sha256",
        }
    }

    /// State before the first block.
    pub(super) fn start(self) -> State {
        match self {
            Algo::Sha1 => SHA1_START,
            Algo::Sha256 => SHA256_START,
        }
    }
}

/// A rung of the ladder: one way to hash, from the widest to the plainest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rung {
    /// Sixteen messages in AVX-512 registers.
    Avx512,
    /// Eight messages in half AVX-512 registers.
    Avx512X8,
    /// Eight messages in AVX2 registers.
    Avx2,
    /// Up to four messages, their schedule in half AVX-512 registers and their rounds on the SHA
    /// instructions at the same time.
    Mixed,
    /// Up to four messages interleaved on the SHA instructions.
    ShaNiX4,
    /// Up to two messages interleaved on the SHA instructions.
    ShaNiX2,
    /// One message on the SHA instructions.
    ShaNi,
    /// One message by the `sha1` and `sha2` crates, whatever they find in the CPU.
    Crates,
    /// One message in plain Rust.
    Portable,
}

impl Rung {
    /// All rungs, the widest first.
    pub const ALL: [Rung; 9] = [
        Rung::Avx512,
        Rung::Avx512X8,
        Rung::Avx2,
        Rung::Mixed,
        Rung::ShaNiX4,
        Rung::ShaNiX2,
        Rung::ShaNi,
        Rung::Crates,
        Rung::Portable,
    ];

    /// Name as printed and as `RINGSEED_HASH` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Rung::Avx512 => "avx512",
            Rung::Avx512X8 => "avx512-x8",
            Rung::Avx2 => "avx2",
            Rung::Mixed => "mixed",
            Rung::ShaNiX4 => "sha-ni-x4",
            Rung::ShaNiX2 => "sha-ni-x2",
            Rung::ShaNi => "sha-ni",
            Rung::Crates => "crates",
            Rung::Portable => "portable",
        }
    }

    /// How many messages the rung takes at once.
    pub fn lanes(self) -> usize {
        match self {
            Rung::Avx512 => 16,
            Rung::Avx512X8 | Rung::Avx2 => 8,
            Rung::Mixed | Rung::ShaNiX4 => 4,
            Rung::ShaNiX2 => 2,
            Rung::ShaNi | Rung::Crates | Rung::Portable => 1,
        }
    }

    /// Whether the rung uses AVX-512, at whatever width.
    pub(super) fn is_avx512(self) -> bool {
        matches!(self, Rung::Avx512 | Rung::Avx512X8 | Rung::Mixed)
    }

    /// Whether this CPU, and the operating system on it, can run the rung.
    pub fn is_available(self) -> bool {
        self.update(Algo::Sha1).is_some()
    }

    /// The function of this rung, if the CPU has the features it needs.
    fn update(self, algo: Algo) -> Option<Update> {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = is_x86_feature_detected!("avx2");
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && has_avx2;
            let has_avx512_x8 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && has_avx2;
            let has_sha = is_x86_feature_detected!("sha") && has_avx2;
            let pair: Option<[Update; 2]> = match self {
                Rung::Avx512 => has_avx512.then_some([avx512::sha1, avx512::sha256]),
                Rung::Avx512X8 => has_avx512_x8.then_some([avx512_x8::sha1, avx512_x8::sha256]),
                Rung::Avx2 => has_avx2.then_some([avx2::sha1, avx2::sha256]),
                Rung::Mixed => (has_avx512_x8 && has_sha).then_some([mixed::sha1, mixed::sha256]),
                Rung::ShaNiX4 | Rung::ShaNiX2 | Rung::ShaNi => {
                    has_sha.then_some([sha_ni::sha1, sha_ni::sha256])
                }
                Rung::Crates => Some([crates::sha1, crates::sha256]),
                Rung::Portable => Some([portable::sha1, portable::sha256]),
            };
            pair.map(|pair| pair[algo as usize])
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let pair: Option<[Update; 2]> = match self {
                Rung::Crates => Some([crates::sha1, crates::sha256]),
                Rung::Portable => Some([portable::sha1, portable::sha256]),
                _ => None,
            };
            pair.map(|pair| pair[algo as usize])
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Rung {
    type Err = ();

    fn from_str(name: &str) -> Result<Rung, ()> {
        Rung::ALL.into_iter().find(|rung| rung.name() == name).ok_or(())
    }
}

/// A rung for one hash function. Exists only where the CPU has the features of the rung, so that
/// code which holds one may run it.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    pub(super) rung: Rung,
    update: Update,
}

impl Kernel {
    /// The kernel of `rung`, or `None` when this CPU cannot run it.
    pub(super) fn new(algo: Algo, rung: Rung) -> Option<Kernel> {
        rung.update(algo).map(|update| Kernel { rung, update })
    }

    /// A kernel whose function the caller has checked.
    ///
    /// # Safety
    /// `update` must keep the contract of [`Update`] on this CPU with the lanes of `rung`.
    #[cfg(test)]
    pub(super) unsafe fn with_update(rung: Rung, update: Update) -> Kernel {
        Kernel { rung, update }
    }

    /// Hashes the first `blocks` blocks of `data[i]` into `states[i]`.
    ///
    /// # Panics
    /// When there are no lanes, more than the kernel has, no blocks, or one lane has too little data.
    #[inline]
    pub(super) fn update(&self, states: &mut [State], data: &[&[u8]], blocks: usize) {
        assert!(states.len() == data.len() && !data.is_empty());
        assert!(data.len() <= self.rung.lanes() && blocks > 0);
        let mut pointers = [data[0].as_ptr(); LANES_MAX];
        for (pointer, data) in pointers.iter_mut().zip(data) {
            assert!(data.len() / BLOCK_LEN_BYTES >= blocks);
            *pointer = data.as_ptr();
        }
        // SAFETY: a `Kernel` exists only where the CPU has its features; the count of lanes and the
        // length of every lane are asserted above, and idle lanes point to the data of the first.
        unsafe { (self.update)(states, &pointers, blocks) }
    }
}

/// The blocks that a lane of an [`Update`] points to.
///
/// # Safety
/// `data` must be readable for `blocks` blocks for as long as the slice lives.
pub(super) unsafe fn blocks_of<'a>(data: *const u8, blocks: usize) -> &'a [[u8; BLOCK_LEN_BYTES]] {
    // SAFETY: the caller vouches for the memory; arrays of bytes need no alignment.
    unsafe { std::slice::from_raw_parts(data.cast(), blocks) }
}
