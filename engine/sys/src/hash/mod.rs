//! SHA-1 and SHA-256 of many messages at once (FIPS 180-4).
//!
//! One message is bound by the latency of the CPU's hash unit, whatever the library. Sixteen
//! messages in the lanes of wide registers run several times as fast. So the interface takes many:
//!
//! - [`sha1_many`], [`sha256_many`] and their `_parts`: whole messages of any lengths in, digests
//!   out in the same order. A message may be made of parts, because a piece spans files and extents.
//! - [`LaneSet`]: messages that arrive bit by bit, each parked between two feeds.
//! - [`merkle`]: leaves, inner nodes, proofs and layers of BEP 52.
//!
//! Which kernel runs is decided by CPU features, and better by [`calibrate`], which a long-running
//! program calls once. `RINGSEED_HASH=<rung>` forces one; `RINGSEED_HASH_AVX512=off` leaves AVX-512
//! alone. [`Wish::from_env`] checks both, [`table`] shows what is in force.
//!
//! Nothing here does I/O but [`calibrate`], and nothing on the way of data allocates.
//!
//! # What bounds the kernels
//! Measured on Zen 4, which runs a 512-bit operation as two halves on one of four units:
//!
//! - SHA-1 in sixteen lanes takes 840 vector operations for 1 KiB, so 420 cycles if no unit ever idled:
//!   4.7 times the one message of the `sha1` crate. It takes 500, because a unit is chosen before it is
//!   known when the operation can start: rotations have two units, shuffles two others with one in
//!   common. With the rounds in the best of some hundred orders of instructions, in assembly, the
//!   rounds alone went from 450 to 397 cycles, and the whole kernel by 2 %: not worth it. Two sets of
//!   eight lanes in 256-bit registers with the schedule in memory are slower (472 for the rounds).
//! - SHA-256 in sixteen lanes is bound alike: 1,040 cycles for 1 KiB, 65 per block. `mixed` takes 46
//!   per block, because its rounds cost the vector units next to nothing. SHA instructions know no VEX
//!   encoding, and Intel's cores with AMX take some hundred cycles for each that runs beside wide
//!   registers: `mixed` hashes 17 MB/s there, and sixteen lanes 10 GB/s.
//! - The interleaved kernels are bound by `sha256msg2`, which is four operations there, and lose more
//!   than the others to a busy neighbour on the same core. Asking for lines ahead, or another order of
//!   the lanes, gains nothing: from memory they are as fast as from the second-level cache.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_x8;
mod batch;
mod calibrate;
mod crates;
mod kernel;
mod lane_set;
pub mod merkle;
#[cfg(target_arch = "x86_64")]
mod mixed;
mod plan;
mod portable;
pub mod registers;
mod rounds;
#[cfg(target_arch = "x86_64")]
mod sha_ni;
#[cfg(test)]
mod tests;

pub use calibrate::{Source, Table, TableRow, cache_dir_default, calibrate, table};
pub use kernel::{Algo, BLOCK_LEN_BYTES, LANES_MAX, Rung};
pub use lane_set::{Job, LaneSet, Sha1LaneSet, Sha256LaneSet};
pub use plan::{Wish, WishError};

use batch::{Messages, Running};
use kernel::State;
use plan::Plan;

/// A SHA-1 digest.
pub type Sha1Digest = [u8; 20];
/// A SHA-256 digest.
pub type Sha256Digest = [u8; 32];

/// SHA-1 of each of `messages`, into `out` at the same index.
///
/// # Panics
/// When `out` is not as long as `messages`.
pub fn sha1_many(messages: &[&[u8]], out: &mut [Sha1Digest]) {
    digest_many(plan::current(Algo::Sha1), messages, out);
}

/// SHA-256 of each of `messages`, into `out` at the same index.
///
/// # Panics
/// When `out` is not as long as `messages`.
pub fn sha256_many(messages: &[&[u8]], out: &mut [Sha256Digest]) {
    digest_many(plan::current(Algo::Sha256), messages, out);
}

/// SHA-1 of each of `messages`, each the concatenation of its parts.
///
/// # Panics
/// When `out` is not as long as `messages`.
pub fn sha1_many_parts(messages: &[&[&[u8]]], out: &mut [Sha1Digest]) {
    digest_many_parts(plan::current(Algo::Sha1), messages, out);
}

/// SHA-256 of each of `messages`, each the concatenation of its parts.
///
/// # Panics
/// When `out` is not as long as `messages`.
pub fn sha256_many_parts(messages: &[&[&[u8]]], out: &mut [Sha256Digest]) {
    digest_many_parts(plan::current(Algo::Sha256), messages, out);
}

/// SHA-1 of each of `messages` by one rung alone: for measurements and for checking a rung.
///
/// # Errors
/// [`WishError::RungNotHere`] when this CPU cannot run the rung.
///
/// # Panics
/// When `out` is not as long as `messages`.
pub fn sha1_many_by(
    rung: Rung,
    messages: &[&[u8]],
    out: &mut [Sha1Digest],
) -> Result<(), WishError> {
    digest_many(&Plan::of_rung(Algo::Sha1, rung)?, messages, out);
    Ok(())
}

/// SHA-256 of each of `messages` by one rung alone: for measurements and for checking a rung.
///
/// # Errors
/// [`WishError::RungNotHere`] when this CPU cannot run the rung.
///
/// # Panics
/// When `out` is not as long as `messages`.
pub fn sha256_many_by(
    rung: Rung,
    messages: &[&[u8]],
    out: &mut [Sha256Digest],
) -> Result<(), WishError> {
    digest_many(&Plan::of_rung(Algo::Sha256, rung)?, messages, out);
    Ok(())
}

/// The digests of whole messages by a given plan.
fn digest_many<const LEN: usize>(plan: &Plan, messages: &[&[u8]], out: &mut [[u8; LEN]]) {
    assert_eq!(messages.len(), out.len(), "one digest per message");
    batch::run(plan, &mut Whole { messages, out });
}

/// The digests of messages in parts by a given plan.
fn digest_many_parts<const LEN: usize>(plan: &Plan, messages: &[&[&[u8]]], out: &mut [[u8; LEN]]) {
    assert_eq!(messages.len(), out.len(), "one digest per message");
    batch::run(plan, &mut InParts { messages, out });
}

/// Writes a final state as a digest, most significant byte first.
#[inline]
fn write_digest<const LEN: usize>(state: &State, out: &mut [u8; LEN]) {
    for (bytes, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *bytes = word.to_be_bytes();
    }
}

/// Messages that each lie in one piece of memory.
struct Whole<'a, 'b, const LEN: usize> {
    messages: &'b [&'a [u8]],
    out: &'b mut [[u8; LEN]],
}

impl<'a, const LEN: usize> Messages<'a> for Whole<'a, '_, LEN> {
    const ENDS: bool = true;

    fn count(&self) -> usize {
        self.messages.len()
    }

    #[inline]
    fn len_bytes(&self, index: usize) -> u64 {
        self.messages[index].len() as u64
    }

    #[inline]
    fn part(&self, index: usize, cursor: &mut usize) -> Option<&'a [u8]> {
        let first = *cursor == 0;
        *cursor = 1;
        first.then(|| self.messages[index])
    }

    #[inline]
    fn resume(&self, _index: usize) -> Option<Running> {
        None
    }

    #[inline]
    fn done(&mut self, index: usize, running: Running) {
        write_digest(&running.state, &mut self.out[index]);
    }
}

/// Messages made of parts.
struct InParts<'a, 'b, const LEN: usize> {
    messages: &'b [&'b [&'a [u8]]],
    out: &'b mut [[u8; LEN]],
}

impl<'a, const LEN: usize> Messages<'a> for InParts<'a, '_, LEN> {
    const ENDS: bool = true;

    fn count(&self) -> usize {
        self.messages.len()
    }

    fn len_bytes(&self, index: usize) -> u64 {
        self.messages[index].iter().map(|part| part.len() as u64).sum()
    }

    #[inline]
    fn part(&self, index: usize, cursor: &mut usize) -> Option<&'a [u8]> {
        let part = self.messages[index].get(*cursor)?;
        *cursor += 1;
        Some(part)
    }

    #[inline]
    fn resume(&self, _index: usize) -> Option<Running> {
        None
    }

    #[inline]
    fn done(&mut self, index: usize, running: Running) {
        write_digest(&running.state, &mut self.out[index]);
    }
}
