//! Eight messages in the lanes of AVX2 registers: the rung of CPUs that have neither AVX-512 nor the
//! SHA instructions.

use std::arch::x86_64::*;

use super::kernel::{BLOCK_LEN_BYTES, LANES_MAX, State};
use super::rounds::{sha1_block, sha256_block};

/// Lanes of one register.
pub(super) const LANES: usize = 8;

type V = __m256i;

#[inline]
#[target_feature(enable = "avx2")]
fn splat(value: u32) -> V {
    _mm256_set1_epi32(value as i32)
}
#[inline]
#[target_feature(enable = "avx2")]
fn hold(value: V) -> V {
    // Sixteen registers are too few to gain anything by it.
    value
}
#[inline]
#[target_feature(enable = "avx2")]
fn add(left: V, right: V) -> V {
    _mm256_add_epi32(left, right)
}
#[inline]
#[target_feature(enable = "avx2")]
fn xor2(left: V, right: V) -> V {
    _mm256_xor_si256(left, right)
}
#[inline]
#[target_feature(enable = "avx2")]
fn xor3(x: V, y: V, z: V) -> V {
    xor2(xor2(x, y), z)
}
#[inline]
#[target_feature(enable = "avx2")]
fn parity(x: V, y: V, z: V) -> V {
    xor3(x, y, z)
}
#[inline]
#[target_feature(enable = "avx2")]
fn ch(x: V, y: V, z: V) -> V {
    xor2(z, _mm256_and_si256(x, xor2(y, z)))
}
#[inline]
#[target_feature(enable = "avx2")]
fn maj(x: V, y: V, z: V) -> V {
    _mm256_or_si256(_mm256_and_si256(x, y), _mm256_and_si256(z, _mm256_or_si256(x, y)))
}
#[inline]
#[target_feature(enable = "avx2")]
fn rol<const N: i32>(value: V) -> V {
    // AVX2 has no rotation, and shift counts cannot be computed from `N` in a const generic.
    let left = _mm256_sll_epi32(value, _mm_cvtsi32_si128(N));
    let right = _mm256_srl_epi32(value, _mm_cvtsi32_si128(32 - N));
    _mm256_or_si256(left, right)
}
#[inline]
#[target_feature(enable = "avx2")]
fn ror<const N: i32>(value: V) -> V {
    let right = _mm256_srl_epi32(value, _mm_cvtsi32_si128(N));
    let left = _mm256_sll_epi32(value, _mm_cvtsi32_si128(32 - N));
    _mm256_or_si256(left, right)
}
#[inline]
#[target_feature(enable = "avx2")]
fn shr<const N: i32>(value: V) -> V {
    _mm256_srli_epi32::<N>(value)
}

/// Loads 32 bytes at `offset` of four lanes from `lane` on and turns them halfway: afterwards 128-bit
/// half `q` of register `j` holds word `4 * q + j` of the four.
///
/// # Safety
/// The pointers of the four lanes must be readable for 32 bytes from `offset` on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load_four(
    data: &[*const u8; LANES_MAX],
    offset: usize,
    lane: usize,
) -> [V; 4] {
    let swap = _mm256_broadcastsi128_si256(_mm_set_epi32(
        0x0c0d_0e0f,
        0x0809_0a0b,
        0x0405_0607,
        0x0001_0203,
    ));
    let row = |lane: usize| {
        // SAFETY: the caller vouches for 32 bytes at `offset` of these lanes.
        let half = unsafe { _mm256_loadu_si256(data[lane].add(offset).cast()) };
        _mm256_shuffle_epi8(half, swap)
    };
    let (r0, r1, r2, r3) = (row(lane), row(lane + 1), row(lane + 2), row(lane + 3));
    let (low01, high01) = (_mm256_unpacklo_epi32(r0, r1), _mm256_unpackhi_epi32(r0, r1));
    let (low23, high23) = (_mm256_unpacklo_epi32(r2, r3), _mm256_unpackhi_epi32(r2, r3));
    [
        _mm256_unpacklo_epi64(low01, low23),
        _mm256_unpackhi_epi64(low01, low23),
        _mm256_unpacklo_epi64(high01, high23),
        _mm256_unpackhi_epi64(high01, high23),
    ]
}

/// Turns the other half: from lanes 0 to 3 and 4 to 7 of the first 32 bytes, then of the last, one
/// register per word.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn words(fours: &[[V; 4]; 4]) -> [V; 16] {
    let mut words = [_mm256_setzero_si256(); 16];
    for j in 0..4 {
        words[j] = _mm256_permute2x128_si256::<0x20>(fours[0][j], fours[1][j]);
        words[4 + j] = _mm256_permute2x128_si256::<0x31>(fours[0][j], fours[1][j]);
        words[8 + j] = _mm256_permute2x128_si256::<0x20>(fours[2][j], fours[3][j]);
        words[12 + j] = _mm256_permute2x128_si256::<0x31>(fours[2][j], fours[3][j]);
    }
    words
}

/// The block at `offset` of every lane, one register per word.
///
/// # Safety
/// The first [`LANES`] pointers must be readable for [`BLOCK_LEN_BYTES`] from `offset` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(data: &[*const u8; LANES_MAX], offset: usize) -> [V; 16] {
    // SAFETY: both halves lie in the block that the caller vouches for.
    unsafe {
        words(&[
            load_four(data, offset, 0),
            load_four(data, offset, 4),
            load_four(data, offset + 32, 0),
            load_four(data, offset + 32, 4),
        ])
    }
}

/// Turns the states of all lanes into one register per word.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn gather<const WORDS: usize>(states: &[State]) -> [V; WORDS] {
    let mut words = [[0u32; LANES]; WORDS];
    for (lane, state) in states.iter().enumerate() {
        for (row, word) in words.iter_mut().zip(&state[..WORDS]) {
            row[lane] = *word;
        }
    }
    // SAFETY: a row is as long as a register.
    std::array::from_fn(|word| unsafe { _mm256_loadu_si256(words[word].as_ptr().cast()) })
}

/// Turns registers back into the states of the busy lanes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn scatter<const WORDS: usize>(registers: &[V; WORDS], states: &mut [State]) {
    let mut words = [[0u32; LANES]; WORDS];
    for (row, register) in words.iter_mut().zip(registers) {
        // SAFETY: a row is as long as a register.
        unsafe { _mm256_storeu_si256(row.as_mut_ptr().cast(), *register) };
    }
    for (lane, state) in states.iter_mut().enumerate() {
        for (row, word) in words.iter().zip(&mut state[..WORDS]) {
            *word = row[lane];
        }
    }
}

/// SHA-1 of whole blocks in up to eight lanes.
///
/// # Safety
/// As [`super::kernel::Update`]; the CPU must have AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sha1(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    let mut state = gather::<5>(states);
    for block in 0..blocks {
        // SAFETY: `block` is below the count of blocks that the caller vouches for.
        let mut w = unsafe { load(data, block * BLOCK_LEN_BYTES) };
        sha1_block!(state, w);
    }
    scatter(&state, states);
}

/// SHA-256 of whole blocks in up to eight lanes.
///
/// # Safety
/// As [`super::kernel::Update`]; the CPU must have AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sha256(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    let mut state = gather::<8>(states);
    for block in 0..blocks {
        // SAFETY: `block` is below the count of blocks that the caller vouches for.
        let mut w = unsafe { load(data, block * BLOCK_LEN_BYTES) };
        sha256_block!(state, w);
    }
    scatter(&state, states);
}
