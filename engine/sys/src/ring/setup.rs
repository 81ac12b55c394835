//! Making a ring with the best flags that this kernel takes.

use std::fmt;
use std::io;

use io_uring::{IoUring, Probe, opcode};
use thiserror::Error;

/// Completions that fit per submission entry: what is in flight exceeds one batch of submissions.
const CQ_PER_SQ: u32 = 4;

/// Smallest ring that is tried when memory is short.
const ENTRIES_MIN: u32 = 32;

/// Most kernel threads that one ring may start, for bounded (files) and unbounded work.
const WORKERS_MAX: [u32; 2] = [8, 4];

/// How the ring runs completions; the first that the kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingMode {
    /// `SINGLE_ISSUER | DEFER_TASKRUN`, Linux 6.1: completions run when we wait and never before.
    DeferTaskrun,
    /// `COOP_TASKRUN`, Linux 5.19: completions run at our next call into the kernel.
    CoopTaskrun,
    /// No flags.
    Plain,
}

impl fmt::Display for RingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RingMode::DeferTaskrun => "single_issuer+defer_taskrun",
            RingMode::CoopTaskrun => "coop_taskrun",
            RingMode::Plain => "no flags",
        })
    }
}

/// Why there is no ring.
#[derive(Debug, Error)]
pub enum RingError {
    /// `EPERM` or `EACCES`: sysctl or a seccomp filter; [`crate::probe`] finds out which.
    #[error("io_uring is forbidden here")]
    Forbidden(#[source] io::Error),
    /// `ENOSYS`, or a kernel without what every mode needs.
    #[error("this kernel has no io_uring that we can use (Linux 5.11 or newer is needed)")]
    TooOld,
    /// `ENOMEM`: the memlock limit or memory, and no prohibition.
    #[error("no memory for an io_uring of {entries} entries")]
    NoMemory {
        /// Entries of the smallest ring tried.
        entries: u32,
    },
    /// `EMFILE` and the like.
    #[error("io_uring could not be set up")]
    Io(#[source] io::Error),
}

/// An operation of the ring that the engine uses, or would gladly use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// As `io_uring_enter(2)` names it, without the prefix.
    pub name: &'static str,
    /// The driver cannot do without it.
    pub is_needed: bool,
    /// The kernel has it.
    pub is_there: bool,
}

/// Which operations this kernel's rings offer (`IORING_REGISTER_PROBE`, Linux 5.6).
///
/// # Errors
/// Why there is no ring, or what the probe said.
pub fn operations() -> Result<Vec<Operation>, RingError> {
    const WANTED: [(&str, u8, bool); 13] = [
        ("accept", opcode::Accept::CODE, true),
        ("connect", opcode::Connect::CODE, true),
        ("recvmsg", opcode::RecvMsg::CODE, true),
        ("sendmsg", opcode::SendMsg::CODE, true),
        ("poll_add", opcode::PollAdd::CODE, true),
        ("read", opcode::Read::CODE, true),
        ("write", opcode::Write::CODE, true),
        ("read_fixed", opcode::ReadFixed::CODE, true),
        ("write_fixed", opcode::WriteFixed::CODE, true),
        ("fsync", opcode::Fsync::CODE, true),
        ("async_cancel", opcode::AsyncCancel::CODE, true),
        ("sendmsg_zc", opcode::SendMsgZc::CODE, false),
        ("recv_multishot", opcode::RecvMulti::CODE, false),
    ];
    let (ring, _) = build(ENTRIES_MIN)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(RingError::Io)?;
    let found = |&(name, code, is_needed): &(&'static str, u8, bool)| Operation {
        name,
        is_needed,
        is_there: probe.is_supported(code),
    };
    Ok(WANTED.iter().map(found).collect())
}

pub(super) fn build(entries: u32) -> Result<(IoUring, RingMode), RingError> {
    let mut entries = entries.next_power_of_two().max(ENTRIES_MIN);
    let (ring, mode) = loop {
        match build_with_best_flags(entries) {
            Ok(built) => break built,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOMEM) if entries > ENTRIES_MIN => entries /= 2,
                Some(libc::ENOMEM) => return Err(RingError::NoMemory { entries }),
                Some(libc::EPERM | libc::EACCES) => return Err(RingError::Forbidden(error)),
                Some(libc::ENOSYS | libc::EINVAL) => return Err(RingError::TooOld),
                _ => return Err(RingError::Io(error)),
            },
        }
    };
    let params = ring.params();
    if !params.is_feature_ext_arg() || !params.is_feature_nodrop() || !params.is_feature_fast_poll()
    {
        return Err(RingError::TooOld);
    }
    // Older kernels cannot cap their threads; they have a bound of their own.
    let _ = ring.submitter().register_iowq_max_workers(&mut WORKERS_MAX.clone());
    Ok((ring, mode))
}

fn build_with_best_flags(entries: u32) -> io::Result<(IoUring, RingMode)> {
    for mode in [RingMode::DeferTaskrun, RingMode::CoopTaskrun] {
        match build_as(entries, mode) {
            Ok(ring) => return Ok((ring, mode)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok((build_as(entries, RingMode::Plain)?, RingMode::Plain))
}

pub(super) fn build_as(entries: u32, mode: RingMode) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_cqsize(entries * CQ_PER_SQ);
    match mode {
        RingMode::DeferTaskrun => {
            builder.setup_submit_all().setup_single_issuer();
            builder.setup_defer_taskrun().setup_taskrun_flag();
        }
        RingMode::CoopTaskrun => {
            builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
        }
        RingMode::Plain => {}
    }
    builder.build(entries)
}
