//! The state of the vector registers that one piece of code leaves to the next, for benchmarks.
//!
//! While an upper register half is not zero, some CPUs run instructions in the legacy encoding at
//! half speed, and the SHA instructions have no other. A benchmark that does not control this
//! compares accidents.

/// Leaves the upper halves of some vector registers non-zero, as careless code does. Does nothing
/// where there is no AVX2.
pub fn soil() {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has AVX-512 F; the registers written are declared.
        unsafe {
            std::arch::asm!(
                "vpternlogd zmm1, zmm1, zmm1, 0xff",
                "vpternlogd zmm2, zmm2, zmm2, 0xff",
                "vpternlogd zmm3, zmm3, zmm3, 0xff",
                "vpternlogd zmm4, zmm4, zmm4, 0xff",
                out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
                options(nomem, nostack, preserves_flags),
            );
        }
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2; the registers written are declared.
        unsafe {
            std::arch::asm!(
                "vpcmpeqd ymm1, ymm1, ymm1",
                "vpcmpeqd ymm2, ymm2, ymm2",
                "vpcmpeqd ymm3, ymm3, ymm3",
                "vpcmpeqd ymm4, ymm4, ymm4",
                out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

/// Zeroes the upper halves of all vector registers.
pub fn clear() {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") {
        // SAFETY: the CPU has AVX; upper halves hold nothing that compiled code relies on here, and
        // lower halves stay as they are.
        unsafe { std::arch::asm!("vzeroupper", options(nomem, nostack, preserves_flags)) };
    }
}
