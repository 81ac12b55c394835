//! One message at a time by the `sha1` and `sha2` crates, which know the hash instructions of other
//! architectures. The best rung there, and a yardstick on x86-64.

use super::kernel::{LANES_MAX, State, blocks_of};

/// SHA-1 of whole blocks, message by message.
///
/// # Safety
/// As [`super::kernel::Update`]; needs no CPU feature: the crate looks for itself.
pub(super) unsafe fn sha1(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    for (state, &data) in states.iter_mut().zip(data) {
        // SAFETY: the caller says that every lane has `blocks` readable blocks.
        let blocks = unsafe { blocks_of(data, blocks) };
        let mut short = [state[0], state[1], state[2], state[3], state[4]];
        sha1::block_api::compress(&mut short, blocks);
        state[..5].copy_from_slice(&short);
    }
}

/// SHA-256 of whole blocks, message by message.
///
/// # Safety
/// As [`super::kernel::Update`]; needs no CPU feature: the crate looks for itself.
pub(super) unsafe fn sha256(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    for (state, &data) in states.iter_mut().zip(data) {
        // SAFETY: the caller says that every lane has `blocks` readable blocks.
        let blocks = unsafe { blocks_of(data, blocks) };
        sha2::block_api::compress256(state, blocks);
    }
}
