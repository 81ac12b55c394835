//! When to send without copying, and when to stop trying.

use crate::buf::SendBuf;

/// `IORING_SEND_ZC_REPORT_USAGE` of `io_uring_enter(2)`: the notice says whether it was copied after all.
pub(super) const REPORT_USAGE: u16 = 1 << 3;

/// `IORING_NOTIF_USAGE_ZC_COPIED`: it was.
const COPIED: u32 = 1 << 31;

/// Pinning pages costs more than copying them where there are few, in bytes.
const LEN_MIN_BYTES: usize = 32 << 10;

/// So many notices decide.
const TRIAL: u32 = 16;

/// Whether sends go without copying.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopyState {
    /// Nobody asked for it.
    #[default]
    Unused,
    /// They do.
    On,
    /// The kernel copied nevertheless, as it does on loopback and for devices without scatter-gather or
    /// checksums: that costs more than an honest copy.
    OffCopied,
    /// The kernel refused, with this error number: a socket that cannot, or the memlock limit.
    OffRefused(i32),
}

/// Counts what the kernel says about sends without copying.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ZeroCopy {
    state: ZeroCopyState,
    notices: u32,
    copied: u32,
}

impl ZeroCopy {
    pub(super) fn turn_on(&mut self) {
        *self = ZeroCopy { state: ZeroCopyState::On, ..ZeroCopy::default() };
    }

    pub(super) fn state(self) -> ZeroCopyState {
        self.state
    }

    /// Whether to send a buffer that way.
    pub(super) fn is_for(self, buf: &SendBuf) -> bool {
        self.state == ZeroCopyState::On && buf.len_bytes() >= LEN_MIN_BYTES
    }

    /// Takes in the result of a notice. More than half of a trial copied: no more of it.
    pub(super) fn count_notice(&mut self, result: i32) {
        self.notices += 1;
        self.copied += u32::from(result as u32 & COPIED != 0);
        if self.notices == TRIAL {
            if self.copied > TRIAL / 2 && self.state == ZeroCopyState::On {
                self.state = ZeroCopyState::OffCopied;
            }
            (self.notices, self.copied) = (0, 0);
        }
    }

    /// Whether an error number of a send says that it cannot go this way; it then goes by copying, and
    /// so do all others.
    pub(super) fn is_refusal(&mut self, errno: i32) -> bool {
        let is_refusal =
            matches!(errno, libc::EOPNOTSUPP | libc::EINVAL | libc::ENOBUFS | libc::ENOMEM);
        if is_refusal {
            self.state = ZeroCopyState::OffRefused(errno);
        }
        is_refusal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_after_all_or_refused_ends_it() {
        let mut zero_copy = ZeroCopy::default();
        zero_copy.turn_on();
        for copied in (0..3 * TRIAL).map(|at| at % 2 == 0) {
            zero_copy.count_notice(if copied { COPIED as i32 } else { 0 });
        }
        assert_eq!(zero_copy.state(), ZeroCopyState::On, "half of them went without");
        (0..TRIAL).for_each(|_| zero_copy.count_notice(COPIED as i32));
        assert_eq!(zero_copy.state(), ZeroCopyState::OffCopied);
        zero_copy.turn_on();
        assert!(!zero_copy.is_refusal(libc::EPIPE));
        assert_eq!(zero_copy.state(), ZeroCopyState::On);
        assert!(zero_copy.is_refusal(libc::ENOMEM));
        assert_eq!(zero_copy.state(), ZeroCopyState::OffRefused(libc::ENOMEM));
    }
}
