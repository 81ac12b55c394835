//! Sixteen messages in the lanes of AVX-512 registers.
//!
//! A round of one block costs the same for one lane as for sixteen. Idle lanes hash the data of the
//! first one, and their result is thrown away.

use std::arch::x86_64::*;

use super::kernel::{BLOCK_LEN_BYTES, LANES_MAX, State};
use super::rounds::{sha1_block, sha256_block};

type V = __m512i;

/// Word-major states: word `i` of all lanes lies in one register's worth of memory.
#[repr(align(64))]
struct Words([[u32; LANES_MAX]; 8]);

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn splat(value: u32) -> V {
    _mm512_set1_epi32(value as i32)
}
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn hold(mut value: V) -> V {
    // SAFETY: no instruction at all; the register is left as it is.
    unsafe {
        std::arch::asm!(
            "/* {value} */",
            value = inout(zmm_reg) value,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    value
}
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add(left: V, right: V) -> V {
    _mm512_add_epi32(left, right)
}
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn xor2(left: V, right: V) -> V {
    _mm512_xor_si512(left, right)
}
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn xor3(x: V, y: V, z: V) -> V {
    _mm512_ternarylogic_epi32::<0x96>(x, y, z)
}
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn parity(x: V, y: V, z: V) -> V {
    xor3(x, y, z)
}
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn ch(x: V, y: V, z: V) -> V {
    _mm512_ternarylogic_epi32::<0xca>(x, y, z)
}
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn maj(x: V, y: V, z: V) -> V {
    _mm512_ternarylogic_epi32::<0xe8>(x, y, z)
}
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn rol<const N: i32>(value: V) -> V {
    _mm512_rol_epi32::<N>(value)
}
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn ror<const N: i32>(value: V) -> V {
    _mm512_ror_epi32::<N>(value)
}
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shr<const N: u32>(value: V) -> V {
    _mm512_srli_epi32::<N>(value)
}

/// Loads the block at `offset` of four lanes from `lane` on and turns it halfway: afterwards 128-bit
/// quarter `q` of register `j` holds word `4 * q + j` of the four. Shuffles in registers: gather
/// instructions take several times as long.
///
/// # Safety
/// The pointers of the four lanes must be readable for [`BLOCK_LEN_BYTES`] from `offset` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_four(data: &[*const u8; LANES_MAX], offset: usize, lane: usize) -> [V; 4] {
    let swap = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    let row = |lane: usize| {
        // SAFETY: the caller vouches for the block at `offset` of these lanes.
        let block = unsafe { _mm512_loadu_si512(data[lane].add(offset).cast()) };
        _mm512_shuffle_epi8(block, swap)
    };
    let (r0, r1, r2, r3) = (row(lane), row(lane + 1), row(lane + 2), row(lane + 3));
    let (low01, high01) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
    let (low23, high23) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
    [
        _mm512_unpacklo_epi64(low01, low23),
        _mm512_unpackhi_epi64(low01, low23),
        _mm512_unpacklo_epi64(high01, high23),
        _mm512_unpackhi_epi64(high01, high23),
    ]
}

/// Turns the other half: afterwards register `i` holds word `i` of all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn words(fours: &[[V; 4]; 4]) -> [V; 16] {
    let mut words = [_mm512_setzero_si512(); 16];
    for j in 0..4 {
        let low01 = _mm512_shuffle_i32x4::<0x44>(fours[0][j], fours[1][j]);
        let low23 = _mm512_shuffle_i32x4::<0x44>(fours[2][j], fours[3][j]);
        let high01 = _mm512_shuffle_i32x4::<0xee>(fours[0][j], fours[1][j]);
        let high23 = _mm512_shuffle_i32x4::<0xee>(fours[2][j], fours[3][j]);
        words[j] = _mm512_shuffle_i32x4::<0x88>(low01, low23);
        words[4 + j] = _mm512_shuffle_i32x4::<0xdd>(low01, low23);
        words[8 + j] = _mm512_shuffle_i32x4::<0x88>(high01, high23);
        words[12 + j] = _mm512_shuffle_i32x4::<0xdd>(high01, high23);
    }
    words
}

/// Turns the states of all lanes into one register per word.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn gather<const WORDS: usize>(states: &[State]) -> [V; WORDS] {
    let mut words = Words([[0; LANES_MAX]; 8]);
    for (lane, state) in states.iter().enumerate() {
        for (row, word) in words.0.iter_mut().zip(&state[..WORDS]) {
            row[lane] = *word;
        }
    }
    // SAFETY: a row of `Words` is as long as a register.
    std::array::from_fn(|word| unsafe { _mm512_loadu_si512(words.0[word].as_ptr().cast()) })
}

/// Turns registers back into the states of the busy lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scatter<const WORDS: usize>(registers: &[V; WORDS], states: &mut [State]) {
    let mut words = Words([[0; LANES_MAX]; 8]);
    for (row, register) in words.0.iter_mut().zip(registers) {
        // SAFETY: a row of `Words` is as long as a register.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), *register) };
    }
    for (lane, state) in states.iter_mut().enumerate() {
        for (row, word) in words.0.iter().zip(&mut state[..WORDS]) {
            *word = row[lane];
        }
    }
}

/// SHA-1 of whole blocks in up to sixteen lanes.
///
/// # Safety
/// As [`super::kernel::Update`]; the CPU must have AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn sha1(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    let mut state = gather::<5>(states);
    // SAFETY: only called with blocks below the count that the caller vouches for.
    let fetch =
        |block: usize, lane: usize| unsafe { load_four(data, block * BLOCK_LEN_BYTES, lane) };
    let mut fours = [fetch(0, 0), fetch(0, 4), fetch(0, 8), fetch(0, 12)];
    for block in 0..blocks {
        // The next block is fetched during this one. Sixteen lanes a power of two apart share one
        // set of the first-level cache, which holds fewer lines than that: what the hardware fetches
        // ahead is gone when it is needed. After the last block it is fetched again, for nothing.
        let next = (block + 1).min(blocks - 1);
        let mut w = words(&fours);
        sha1_block!(
            state,
            w,
            fours[0] = fetch(next, 0),
            fours[1] = fetch(next, 4),
            fours[2] = fetch(next, 8),
            fours[3] = fetch(next, 12)
        );
    }
    scatter(&state, states);
}

/// SHA-256 of whole blocks in up to sixteen lanes.
///
/// # Safety
/// As [`super::kernel::Update`]; the CPU must have AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn sha256(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    let mut state = gather::<8>(states);
    // SAFETY: only called with blocks below the count that the caller vouches for.
    let fetch =
        |block: usize, lane: usize| unsafe { load_four(data, block * BLOCK_LEN_BYTES, lane) };
    let mut fours = [fetch(0, 0), fetch(0, 4), fetch(0, 8), fetch(0, 12)];
    for block in 0..blocks {
        // The next block is fetched during this one. Sixteen lanes a power of two apart share one
        // set of the first-level cache, which holds fewer lines than that: what the hardware fetches
        // ahead is gone when it is needed. After the last block it is fetched again, for nothing.
        let next = (block + 1).min(blocks - 1);
        let mut w = words(&fours);
        sha256_block!(
            state,
            w,
            fours[0] = fetch(next, 0),
            fours[1] = fetch(next, 4),
            fours[2] = fetch(next, 8),
            fours[3] = fetch(next, 12)
        );
    }
    scatter(&state, states);
}
