//! One to four messages interleaved on the SHA instructions of x86-64.
//!
//! A single message leaves the unit idle most of the time: `sha1rnds4` answers after six cycles and
//! could start every two. Interleaving fills the gaps.
//!
//! The functions are built with AVX2 so that the moves between the SHA instructions carry the VEX
//! prefix, and clear the upper register halves first. Otherwise the SHA instructions, which exist
//! in the legacy encoding alone, wait for halves that an AVX-512 kernel left behind and run at half
//! speed.

use std::arch::x86_64::*;

use super::kernel::{BLOCK_LEN_BYTES, LANES_MAX, State};
use super::rounds::SHA256_K;

/// SHA-1 of whole blocks of one to four messages.
///
/// # Safety
/// As [`super::kernel::Update`]; the CPU must have the SHA extensions and AVX2.
pub(super) unsafe fn sha1(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    // SAFETY: as the caller vouches; each arm takes as many lanes as there are states.
    unsafe {
        match states {
            [a] => sha1_interleaved([a], data, blocks),
            [a, b] => sha1_interleaved([a, b], data, blocks),
            [a, b, c] => sha1_interleaved([a, b, c], data, blocks),
            [a, b, c, d] => sha1_interleaved([a, b, c, d], data, blocks),
            _ => unreachable!("a kernel is not given more lanes than it has"),
        }
    }
}

/// SHA-256 of whole blocks of one to four messages.
///
/// # Safety
/// As [`super::kernel::Update`]; the CPU must have the SHA extensions and AVX2.
pub(super) unsafe fn sha256(states: &mut [State], data: &[*const u8; LANES_MAX], blocks: usize) {
    // SAFETY: as the caller vouches; each arm takes as many lanes as there are states.
    unsafe {
        match states {
            [a] => sha256_interleaved([a], data, blocks),
            [a, b] => sha256_interleaved([a, b], data, blocks),
            [a, b, c] => sha256_interleaved([a, b, c], data, blocks),
            [a, b, c, d] => sha256_interleaved([a, b, c, d], data, blocks),
            _ => unreachable!("a kernel is not given more lanes than it has"),
        }
    }
}

/// Four words of a block, reordered by `order`.
///
/// # Safety
/// `data` must be readable for 16 bytes from `offset` on.
#[inline]
#[target_feature(enable = "sha,avx2")]
unsafe fn load(data: *const u8, offset: usize, order: __m128i) -> __m128i {
    // SAFETY: the caller vouches for 16 bytes at `offset`.
    _mm_shuffle_epi8(unsafe { _mm_loadu_si128(data.add(offset).cast()) }, order)
}

/// SHA-1, `N` messages at once.
///
/// # Safety
/// The first `N` pointers must be readable for `blocks` blocks; the CPU must have SHA and AVX2.
#[target_feature(enable = "sha,avx2")]
unsafe fn sha1_interleaved<const N: usize>(
    states: [&mut State; N],
    data: &[*const u8; LANES_MAX],
    blocks: usize,
) {
    _mm256_zeroupper();
    // The instructions want the first word of four in the highest place.
    let order = _mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f);
    let zero = _mm_setzero_si128();
    let mut abcd = [zero; N];
    let mut e = [zero; N];
    for lane in 0..N {
        let s = &states[lane];
        abcd[lane] = _mm_set_epi32(s[0] as i32, s[1] as i32, s[2] as i32, s[3] as i32);
        e[lane] = _mm_set_epi32(s[4] as i32, 0, 0, 0);
    }
    for block in 0..blocks {
        let offset = block * BLOCK_LEN_BYTES;
        let (abcd_before, e_before) = (abcd, e);
        // Four words each of the last sixteen.
        let mut w = [[zero; N]; 4];
        // What the next group of rounds adds its words to: first `e`, then `a` of four rounds ago.
        let mut older = e;
        /// Four rounds of every message.
        macro_rules! group {
            ($g:expr) => {{
                const G: usize = $g;
                for lane in 0..N {
                    if G < 4 {
                        // SAFETY: the block lies within what the caller vouches for.
                        w[G % 4][lane] = unsafe { load(data[lane], offset + 16 * G, order) };
                    } else {
                        let mixed = _mm_xor_si128(
                            _mm_sha1msg1_epu32(w[G % 4][lane], w[(G + 1) % 4][lane]),
                            w[(G + 2) % 4][lane],
                        );
                        w[G % 4][lane] = _mm_sha1msg2_epu32(mixed, w[(G + 3) % 4][lane]);
                    }
                    let input = if G == 0 {
                        _mm_add_epi32(older[lane], w[0][lane])
                    } else {
                        _mm_sha1nexte_epu32(older[lane], w[G % 4][lane])
                    };
                    older[lane] = abcd[lane];
                    abcd[lane] = _mm_sha1rnds4_epu32::<{ (G / 5) as i32 }>(abcd[lane], input);
                }
            }};
        }
        group!(0);
        group!(1);
        group!(2);
        group!(3);
        group!(4);
        group!(5);
        group!(6);
        group!(7);
        group!(8);
        group!(9);
        group!(10);
        group!(11);
        group!(12);
        group!(13);
        group!(14);
        group!(15);
        group!(16);
        group!(17);
        group!(18);
        group!(19);
        for lane in 0..N {
            e[lane] = _mm_sha1nexte_epu32(older[lane], e_before[lane]);
            abcd[lane] = _mm_add_epi32(abcd[lane], abcd_before[lane]);
        }
    }
    for (lane, state) in states.into_iter().enumerate() {
        state[0] = _mm_extract_epi32::<3>(abcd[lane]) as u32;
        state[1] = _mm_extract_epi32::<2>(abcd[lane]) as u32;
        state[2] = _mm_extract_epi32::<1>(abcd[lane]) as u32;
        state[3] = _mm_extract_epi32::<0>(abcd[lane]) as u32;
        state[4] = _mm_extract_epi32::<3>(e[lane]) as u32;
    }
}

/// SHA-256, `N` messages at once.
///
/// # Safety
/// The first `N` pointers must be readable for `blocks` blocks; the CPU must have SHA and AVX2.
#[target_feature(enable = "sha,avx2")]
unsafe fn sha256_interleaved<const N: usize>(
    states: [&mut State; N],
    data: &[*const u8; LANES_MAX],
    blocks: usize,
) {
    _mm256_zeroupper();
    let order = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let zero = _mm_setzero_si128();
    // The instructions want the state split this way, the first letter highest.
    let mut abef = [zero; N];
    let mut cdgh = [zero; N];
    for lane in 0..N {
        let s = &states[lane];
        abef[lane] = _mm_set_epi32(s[0] as i32, s[1] as i32, s[4] as i32, s[5] as i32);
        cdgh[lane] = _mm_set_epi32(s[2] as i32, s[3] as i32, s[6] as i32, s[7] as i32);
    }
    for block in 0..blocks {
        let offset = block * BLOCK_LEN_BYTES;
        let (abef_before, cdgh_before) = (abef, cdgh);
        let mut w = [[zero; N]; 4];
        /// Four rounds of every message.
        macro_rules! group {
            ($g:expr) => {{
                const G: usize = $g;
                let k = _mm_set_epi32(
                    SHA256_K[4 * G + 3] as i32,
                    SHA256_K[4 * G + 2] as i32,
                    SHA256_K[4 * G + 1] as i32,
                    SHA256_K[4 * G] as i32,
                );
                for lane in 0..N {
                    if G < 4 {
                        // SAFETY: the block lies within what the caller vouches for.
                        w[G % 4][lane] = unsafe { load(data[lane], offset + 16 * G, order) };
                    } else {
                        let last = w[(G + 3) % 4][lane];
                        let mixed = _mm_add_epi32(
                            _mm_sha256msg1_epu32(w[G % 4][lane], w[(G + 1) % 4][lane]),
                            _mm_alignr_epi8::<4>(last, w[(G + 2) % 4][lane]),
                        );
                        w[G % 4][lane] = _mm_sha256msg2_epu32(mixed, last);
                    }
                    let input = _mm_add_epi32(w[G % 4][lane], k);
                    let input_high = _mm_shuffle_epi32::<0x0e>(input);
                    cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], input);
                    abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], input_high);
                }
            }};
        }
        group!(0);
        group!(1);
        group!(2);
        group!(3);
        group!(4);
        group!(5);
        group!(6);
        group!(7);
        group!(8);
        group!(9);
        group!(10);
        group!(11);
        group!(12);
        group!(13);
        group!(14);
        group!(15);
        for lane in 0..N {
            abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
            cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
        }
    }
    for (lane, state) in states.into_iter().enumerate() {
        state[0] = _mm_extract_epi32::<3>(abef[lane]) as u32;
        state[1] = _mm_extract_epi32::<2>(abef[lane]) as u32;
        state[2] = _mm_extract_epi32::<3>(cdgh[lane]) as u32;
        state[3] = _mm_extract_epi32::<2>(cdgh[lane]) as u32;
        state[4] = _mm_extract_epi32::<1>(abef[lane]) as u32;
        state[5] = _mm_extract_epi32::<0>(abef[lane]) as u32;
        state[6] = _mm_extract_epi32::<1>(cdgh[lane]) as u32;
        state[7] = _mm_extract_epi32::<0>(cdgh[lane]) as u32;
    }
}
