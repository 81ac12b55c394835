//! The rounds of SHA-1 and SHA-256 over vectors of lanes, one message per lane (FIPS 180-4, 6.1.2
//! and 6.2.2).
//!
//! A kernel file brings the vector type `V` and the operations `splat`, `add`, `xor2`, `xor3`, `ch`,
//! `parity`, `maj`, `rol::<N>`, `ror::<N>` and `shr::<N>` into scope and expands these macros; also
//! `hold`, which gives back its argument and keeps the compiler from regrouping the additions around
//! it: they may be done in any order, but in only one does nobody wait.
//!
//! They are macros and not functions because all rounds must lie unrolled in one function that has
//! the kernel's target features: a loop over the rounds would keep the schedule in memory.

/// Initial state of SHA-1 (FIPS 180-4, 5.3.1); the last three words are unused.
pub(super) const SHA1_START: [u32; 8] =
    [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0, 0, 0, 0];

/// Initial state of SHA-256 (FIPS 180-4, 5.3.3).
pub(super) const SHA256_START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// Constants of SHA-1, one for twenty rounds each (FIPS 180-4, 4.2.1).
pub(super) const SHA1_K: [u32; 4] = [0x5a82_7999, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6];

/// Constants of SHA-256, one per round (FIPS 180-4, 4.2.2).
#[rustfmt::skip]
pub(super) const SHA256_K: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];

/// Runs SHA-1 over one block per lane: `$state` is `[V; 5]`, `$w` the block's words as `[V; 16]`.
///
/// A kernel may give four expressions that fetch the next block: they are spread over the rounds,
/// which have nothing to do with memory, so that the rounds hide how long it takes.
macro_rules! sha1_block {
    ($state:ident, $w:ident) => {
        $crate::hash::rounds::sha1_block!($state, $w, (), (), (), ())
    };
    ($state:ident, $w:ident, $fetch0:expr, $fetch1:expr, $fetch2:expr, $fetch3:expr) => {{
        use $crate::hash::rounds::{SHA1_K, sha1_five};
        let [mut a, mut b, mut c, mut d, mut e] = $state;
        sha1_five!($w, 0, ch, a b c d e);
        sha1_five!($w, 5, ch, a b c d e);
        sha1_five!($w, 10, ch, a b c d e);
        sha1_five!($w, 15, ch, a b c d e);
        $fetch0;
        sha1_five!($w, 20, parity, a b c d e);
        sha1_five!($w, 25, parity, a b c d e);
        sha1_five!($w, 30, parity, a b c d e);
        $fetch1;
        sha1_five!($w, 35, parity, a b c d e);
        sha1_five!($w, 40, maj, a b c d e);
        sha1_five!($w, 45, maj, a b c d e);
        $fetch2;
        sha1_five!($w, 50, maj, a b c d e);
        sha1_five!($w, 55, maj, a b c d e);
        sha1_five!($w, 60, parity, a b c d e);
        sha1_five!($w, 65, parity, a b c d e);
        $fetch3;
        sha1_five!($w, 70, parity, a b c d e);
        sha1_five!($w, 75, parity, a b c d e);
        $state = [
            add($state[0], a),
            add($state[1], b),
            add($state[2], c),
            add($state[3], d),
            add($state[4], e),
        ];
    }};
}

/// Five rounds, after which every working variable is back in its place.
macro_rules! sha1_five {
    ($w:ident, $t:expr, $f:ident, $a:ident $b:ident $c:ident $d:ident $e:ident) => {{
        use $crate::hash::rounds::sha1_round;
        sha1_round!($w, $t, $f, $a $b $c $d $e);
        sha1_round!($w, $t + 1, $f, $e $a $b $c $d);
        sha1_round!($w, $t + 2, $f, $d $e $a $b $c);
        sha1_round!($w, $t + 3, $f, $c $d $e $a $b);
        sha1_round!($w, $t + 4, $f, $b $c $d $e $a);
    }};
}

/// One round. What the previous round has just made (`a`) enters last, so that one round costs the
/// next a rotation and an addition and no more.
macro_rules! sha1_round {
    ($w:ident, $t:expr, $f:ident, $a:ident $b:ident $c:ident $d:ident $e:ident) => {{
        const T: usize = $t;
        if T >= 16 {
            // The word that is overwritten first, as the one operand that need not be kept; the
            // newest last, as the one that is waited for.
            let older = xor3($w[T % 16], $w[(T + 2) % 16], $w[(T + 8) % 16]);
            let mixed = xor2(older, $w[(T + 13) % 16]);
            $w[T % 16] = rol::<1>(mixed);
        }
        let known = hold(add($e, add($w[T % 16], splat(SHA1_K[T / 20]))));
        let early = hold(add(known, $f($b, $c, $d)));
        $e = add(early, rol::<5>($a));
        $b = rol::<30>($b);
    }};
}

/// Runs SHA-256 over one block per lane: `$state` is `[V; 8]`, `$w` the block's words as `[V; 16]`;
/// the four expressions are as for SHA-1.
macro_rules! sha256_block {
    ($state:ident, $w:ident) => {
        $crate::hash::rounds::sha256_block!($state, $w, (), (), (), ())
    };
    ($state:ident, $w:ident, $fetch0:expr, $fetch1:expr, $fetch2:expr, $fetch3:expr) => {{
        use $crate::hash::rounds::{SHA256_K, sha256_eight};
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = $state;
        sha256_eight!($w, 0, a b c d e f g h);
        sha256_eight!($w, 8, a b c d e f g h);
        $fetch0;
        sha256_eight!($w, 16, a b c d e f g h);
        $fetch1;
        sha256_eight!($w, 24, a b c d e f g h);
        sha256_eight!($w, 32, a b c d e f g h);
        $fetch2;
        sha256_eight!($w, 40, a b c d e f g h);
        sha256_eight!($w, 48, a b c d e f g h);
        $fetch3;
        sha256_eight!($w, 56, a b c d e f g h);
        $state = [
            add($state[0], a),
            add($state[1], b),
            add($state[2], c),
            add($state[3], d),
            add($state[4], e),
            add($state[5], f),
            add($state[6], g),
            add($state[7], h),
        ];
    }};
}

/// Eight rounds, after which every working variable is back in its place.
macro_rules! sha256_eight {
    ($w:ident, $t:expr, $a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident) => {{
        use $crate::hash::rounds::sha256_round;
        sha256_round!($w, $t, $a $b $c $d $e $f $g $h);
        sha256_round!($w, $t + 1, $h $a $b $c $d $e $f $g);
        sha256_round!($w, $t + 2, $g $h $a $b $c $d $e $f);
        sha256_round!($w, $t + 3, $f $g $h $a $b $c $d $e);
        sha256_round!($w, $t + 4, $e $f $g $h $a $b $c $d);
        sha256_round!($w, $t + 5, $d $e $f $g $h $a $b $c);
        sha256_round!($w, $t + 6, $c $d $e $f $g $h $a $b);
        sha256_round!($w, $t + 7, $b $c $d $e $f $g $h $a);
    }};
}

/// One round. `early` does not wait for the sums of this round, and the new `e` does not wait for
/// the first temporary of the standard: one addition more, two cycles of latency less.
macro_rules! sha256_round {
    ($w:ident, $t:expr, $a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident) => {{
        const T: usize = $t;
        if T >= 16 {
            let w15 = $w[(T + 1) % 16];
            let w2 = $w[(T + 14) % 16];
            let small0 = xor3(ror::<7>(w15), ror::<18>(w15), shr::<3>(w15));
            let small1 = xor3(ror::<17>(w2), ror::<19>(w2), shr::<10>(w2));
            $w[T % 16] = add(add($w[T % 16], $w[(T + 9) % 16]), add(small0, small1));
        }
        let known = hold(add($h, add($w[T % 16], splat(SHA256_K[T]))));
        let early = hold(add(known, ch($e, $f, $g)));
        let big1 = xor3(ror::<6>($e), ror::<11>($e), ror::<25>($e));
        let big0 = xor3(ror::<2>($a), ror::<13>($a), ror::<22>($a));
        let first = add(early, big1);
        $d = add($d, first);
        $h = add(add(first, maj($a, $b, $c)), big0);
    }};
}

pub(super) use {sha1_block, sha1_five, sha1_round, sha256_block, sha256_eight, sha256_round};
