//! Eight messages in 256-bit registers with the instructions and the register count of AVX-512: the
//! rotations and three-way operations that AVX2 lacks, at half the width.
//!
//! For fewer messages than sixteen lanes want. CPUs that run 512-bit operations in two halves hash
//! eight messages at the same rate as sixteen.

use std::arch::x86_64::*;

use super::avx2;
use super::kernel::{BLOCK_LEN_BYTES, LANES_MAX, State};
use super::rounds::{sha1_block, sha256_block};

type V = __m256i;

#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn splat(value: u32) -> V {
    _mm256_set1_epi32(value as i32)
}
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn hold(mut value: V) -> V {
    // SAFETY: no instruction at all; the register is left as it is.
    unsafe {
        std::arch::asm!(
            "/* {value} */",
            value = inout(ymm_reg) value,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    value
}
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn add(left: V, right: V) -> V {
    _mm256_add_epi32(left, right)
}
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn xor2(left: V, right: V) -> V {
    _mm256_xor_si256(left, right)
}
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn xor3(x: V, y: V, z: V) -> V {
    _mm256_ternarylogic_epi32::<0x96>(x, y, z)
}
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn parity(x: V, y: V, z: V) -> V {
    xor3(x, y, z)
}
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn ch(x: V, y: V, z: V) -> V {
    _mm256_ternarylogic_epi32::<0xca>(x, y, z)
}
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn maj(x: V, y: V, z: V) -> V {
    _mm256_ternarylogic_epi32::<0xe8>(x, y, z)
}
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn rol<const N: i32>(value: V) -> V {
    _mm256_rol_epi32::<N>(value)
}
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn ror<const N: i32>(value: V) -> V {
    _mm256_ror_epi32::<N>(value)
}
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn shr<const N: i32>(value: V) -> V {
    _mm256_srli_epi32::<N>(value)
}

/// SHA-1 of whole blocks in up to eight lanes.
///
/// # Safety
/// As [`super::kernel::Update`]; the CPU must have AVX2 and AVX-512 F and VL.
#[target_feature(enable = "avx2,avx512f,avx512vl")]
pub(super) unsafe fn sha1(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    let mut state = avx2::gather::<5>(states);
    // SAFETY: only called with blocks below the count that the caller vouches for, and with the two
    // halves of a block.
    let fetch = |block: usize, half: usize, lane: usize| unsafe {
        avx2::load_four(data, block * BLOCK_LEN_BYTES + half * 32, lane)
    };
    let mut fours = [fetch(0, 0, 0), fetch(0, 0, 4), fetch(0, 1, 0), fetch(0, 1, 4)];
    for block in 0..blocks {
        // After the last block it is fetched again, for nothing.
        let next = (block + 1).min(blocks - 1);
        let mut w = avx2::words(&fours);
        sha1_block!(
            state,
            w,
            fours[0] = fetch(next, 0, 0),
            fours[1] = fetch(next, 0, 4),
            fours[2] = fetch(next, 1, 0),
            fours[3] = fetch(next, 1, 4)
        );
    }
    avx2::scatter(&state, states);
}

/// SHA-256 of whole blocks in up to eight lanes.
///
/// # Safety
/// As [`super::kernel::Update`]; the CPU must have AVX2 and AVX-512 F and VL.
#[target_feature(enable = "avx2,avx512f,avx512vl")]
pub(super) unsafe fn sha256(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    let mut state = avx2::gather::<8>(states);
    // SAFETY: only called with blocks below the count that the caller vouches for, and with the two
    // halves of a block.
    let fetch = |block: usize, half: usize, lane: usize| unsafe {
        avx2::load_four(data, block * BLOCK_LEN_BYTES + half * 32, lane)
    };
    let mut fours = [fetch(0, 0, 0), fetch(0, 0, 4), fetch(0, 1, 0), fetch(0, 1, 4)];
    for block in 0..blocks {
        // After the last block it is fetched again, for nothing.
        let next = (block + 1).min(blocks - 1);
        let mut w = avx2::words(&fours);
        sha256_block!(
            state,
            w,
            fours[0] = fetch(next, 0, 0),
            fours[1] = fetch(next, 0, 4),
            fours[2] = fetch(next, 1, 0),
            fours[3] = fetch(next, 1, 4)
        );
    }
    avx2::scatter(&state, states);
}
