//! The portable twin: one message at a time in plain Rust, the same rounds as the vector kernels
//! with a lane count of one. Every other kernel is compared with it, and it runs where nothing
//! else does.

use super::kernel::{BLOCK_LEN_BYTES, LANES_MAX, State};
use super::rounds::{sha1_block, sha256_block};

type V = u32;

fn splat(value: u32) -> V {
    value
}
fn hold(value: V) -> V {
    value
}
fn add(left: V, right: V) -> V {
    left.wrapping_add(right)
}
fn xor2(left: V, right: V) -> V {
    left ^ right
}
fn xor3(x: V, y: V, z: V) -> V {
    x ^ y ^ z
}
fn ch(x: V, y: V, z: V) -> V {
    z ^ (x & (y ^ z))
}
fn parity(x: V, y: V, z: V) -> V {
    x ^ y ^ z
}
fn maj(x: V, y: V, z: V) -> V {
    (x & y) | (z & (x | y))
}
fn rol<const N: u32>(value: V) -> V {
    value.rotate_left(N)
}
fn ror<const N: u32>(value: V) -> V {
    value.rotate_right(N)
}
fn shr<const N: u32>(value: V) -> V {
    value >> N
}

/// Words of one block, most significant byte first (FIPS 180-4, 3.1).
fn words(block: &[u8; BLOCK_LEN_BYTES]) -> [V; 16] {
    let mut words = [0; 16];
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    words
}

/// SHA-1 of whole blocks, message by message.
///
/// # Safety
/// As [`super::kernel::Update`]; needs no CPU feature.
pub(super) unsafe fn sha1(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    for (state, &data) in states.iter_mut().zip(data) {
        // SAFETY: the caller says that every lane has `blocks` readable blocks.
        let blocks = unsafe { super::kernel::blocks_of(data, blocks) };
        let mut short = [state[0], state[1], state[2], state[3], state[4]];
        for block in blocks {
            let mut w = words(block);
            sha1_block!(short, w);
        }
        state[..5].copy_from_slice(&short);
    }
}

/// SHA-256 of whole blocks, message by message.
///
/// # Safety
/// As [`super::kernel::Update`]; needs no CPU feature.
pub(super) unsafe fn sha256(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    for (state, &data) in states.iter_mut().zip(data) {
        // SAFETY: the caller says that every lane has `blocks` readable blocks.
        let blocks = unsafe { super::kernel::blocks_of(data, blocks) };
        let mut whole = *state;
        for block in blocks {
            let mut w = words(block);
            sha256_block!(whole, w);
        }
        *state = whole;
    }
}
