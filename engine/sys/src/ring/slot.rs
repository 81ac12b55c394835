//! The table of tasks in flight, and what of them the kernel looks at.

use std::io;
use std::net::SocketAddr;
use std::ptr::NonNull;
use std::time::Instant;

use super::{Finished, Outcome, Task};
use crate::arena::EXTENT_LEN_BYTES;
use crate::buf::{IoVecs, SendBuf};
use crate::file::{Part, Plan, ReadPath};

/// Slots with generations. A name is `generation << 32 | index`, so that a completion that comes
/// after its slot was given to another task is told apart.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<(u32, Option<Active>)>,
    free: Vec<u32>,
    spare_args: Vec<KernelArgs>,
}

/// A task in flight.
pub(super) struct Active {
    pub(super) token: u64,
    pub(super) task: Task,
    pub(super) args: Option<KernelArgs>,
    /// The stretch that the kernel works on, less what of it is done.
    pub(super) part: Part,
    plan: Plan,
    part_index: usize,
    done_bytes: usize,
    path: ReadPath,
    /// The error to end with whatever the kernel says: cancelled or timed out.
    pub(super) stop: Option<i32>,
    /// Until then a receive waits for its last byte.
    pub(super) fill_until: Option<Instant>,
    /// The send was handed over without copying.
    pub(super) is_zero_copy: bool,
    /// Completions of zero-copy sends after which the kernel still reads the buffer.
    pub(super) notices_due: u32,
}

/// What the kernel still reads of a send that is over for everybody else.
pub(super) struct Kept {
    _buf: SendBuf,
    pub(super) args: Option<KernelArgs>,
    pub(super) notices_due: u32,
}

/// What to do after a completion.
pub(super) enum Next {
    /// Hand the rest to the kernel.
    Again,
    /// The task is done.
    Done(usize),
    /// The task failed.
    Failed(io::Error),
}

/// What the kernel reads beside the payload, at an address of its own that never moves.
pub(super) struct KernelArgs(NonNull<Args>);

struct Args {
    header: libc::msghdr,
    vecs: IoVecs,
    addr: libc::sockaddr_storage,
    addr_len: libc::socklen_t,
}

/// Most spare argument blocks kept, some 2.5 KiB each.
const SPARE_ARGS_MAX: usize = 64;

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, active: Active) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = u32::try_from(self.slots.len()).expect("tasks are bounded by their owners");
            self.slots.push((0, None));
            index
        });
        let (generation, slot) = &mut self.slots[index as usize];
        *slot = Some(active);
        u64::from(*generation) << 32 | u64::from(index)
    }

    pub(super) fn get_mut(&mut self, data: u64) -> Option<&mut Active> {
        let (generation, slot) = self.slots.get_mut(data as u32 as usize)?;
        slot.as_mut().filter(|_| *generation == (data >> 32) as u32)
    }

    pub(super) fn remove(&mut self, data: u64) -> Option<Active> {
        self.get_mut(data)?;
        let (generation, slot) = &mut self.slots[data as u32 as usize];
        // `u32::MAX` is skipped: together with the last index it would name a cancellation.
        *generation = if *generation == u32::MAX - 1 { 0 } else { *generation + 1 };
        self.free.push(data as u32);
        slot.take()
    }

    pub(super) fn data_of_all(&self) -> Vec<u64> {
        let live = self.slots.iter().enumerate().filter(|(_, (_, slot))| slot.is_some());
        live.map(|(index, (generation, _))| u64::from(*generation) << 32 | index as u64).collect()
    }

    pub(super) fn recycle(&mut self, args: Option<KernelArgs>) {
        if self.spare_args.len() < SPARE_ARGS_MAX {
            self.spare_args.extend(args);
        }
    }

    pub(super) fn take_args(&mut self) -> KernelArgs {
        self.spare_args.pop().unwrap_or_else(KernelArgs::new)
    }
}

impl Active {
    pub(super) fn new(token: u64, task: Task) -> Active {
        Active {
            token,
            task,
            args: None,
            part: Part::default(),
            plan: Plan::default(),
            part_index: 0,
            done_bytes: 0,
            path: ReadPath::Buffered,
            stop: None,
            fill_until: None,
            is_zero_copy: false,
            notices_due: 0,
        }
    }

    /// True when the task needs [`KernelArgs`].
    pub(super) fn wants_args(&self) -> bool {
        matches!(self.task, Task::Connect { .. } | Task::Recv { .. } | Task::Send { .. })
    }

    /// Checks the ranges and points the kernel's arguments to them.
    pub(super) fn prepare(&mut self, args: Option<KernelArgs>) -> io::Result<()> {
        self.args = args;
        match &mut self.task {
            Task::Connect { addr, .. } => {
                self.args.as_mut().expect("wanted").set_addr(*addr);
            }
            Task::Recv { buf, .. } => {
                self.fill_until = buf.fill_max.map(|fill_max| Instant::now() + fill_max);
                self.args.as_mut().expect("wanted").vecs().point_to_slots(buf)?;
            }
            Task::Send { buf, .. } => {
                let vecs = self.args.as_mut().expect("wanted").vecs();
                vecs.point_to_parts(buf)?;
                if vecs.is_done() {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
            }
            Task::Read { file, offset_bytes, buf, start, len } => {
                let address = buf.address().as_ptr() as usize;
                (self.plan, self.path) = file.plan_read(*offset_bytes, address, *start, *len)?;
                self.part = self.plan.parts()[0];
            }
            Task::Write { file, offset_bytes, buf, start, len } => {
                let address = buf.address().as_ptr() as usize;
                self.plan = file.plan_write(*offset_bytes, address, *start, *len)?;
                self.part = self.plan.parts()[0];
            }
            Task::Accept { .. } | Task::PollIn { .. } | Task::Sync { .. } => {}
        }
        Ok(())
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.task {
            Task::Connect { deadline, .. } => Some(deadline),
            Task::Recv { .. } => self.fill_until,
            _ => None,
        }
    }

    /// For a receive that was to be filled by now: when to look at it again.
    pub(super) fn wait_again(&mut self, now: Instant) -> Option<Instant> {
        let Task::Recv { buf, .. } = &self.task else { return None };
        self.fill_until = buf.fill_max.map(|fill_max| now + fill_max);
        self.fill_until
    }

    /// Takes in the kernel's count of bytes, or its error number.
    pub(super) fn advance(&mut self, result: Result<usize, i32>) -> Next {
        let n = match result {
            Ok(n) => n,
            Err(libc::EINVAL) if self.part.direct => {
                // The file system lied about the alignment: this file goes buffered from now on.
                if let Task::Read { file, .. } | Task::Write { file, .. } = &self.task {
                    file.refuse_direct(&mut self.part);
                }
                self.path = ReadPath::Buffered;
                return Next::Again;
            }
            Err(errno) => return Next::Failed(io::Error::from_raw_os_error(errno)),
        };
        match &self.task {
            Task::Send { .. } => {
                if n == 0 {
                    return Next::Failed(io::ErrorKind::WriteZero.into());
                }
                let vecs = self.args.as_mut().expect("prepared").vecs();
                vecs.advance(n);
                if vecs.is_done() { Next::Done(0) } else { Next::Again }
            }
            Task::Read { file, .. } => {
                let ends_off_grain = self.part.direct && file.is_unaligned(n);
                self.done_bytes += n;
                self.part.advance(n);
                let at_end = n == 0 || ends_off_grain;
                if !at_end && self.next_part() { Next::Again } else { Next::Done(self.done_bytes) }
            }
            Task::Write { .. } => {
                if n == 0 && self.part.len > 0 {
                    return Next::Failed(io::ErrorKind::WriteZero.into());
                }
                self.part.advance(n);
                if self.next_part() { Next::Again } else { Next::Done(0) }
            }
            _ => Next::Done(n),
        }
    }

    /// Goes on to the next stretch when this one is done; false when none is left.
    fn next_part(&mut self) -> bool {
        if self.part.len > 0 {
            return true;
        }
        self.part_index += 1;
        match self.plan.parts().get(self.part_index) {
            Some(&part) => {
                self.part = part;
                true
            }
            None => false,
        }
    }

    /// The outcome of a zero-copy send that the socket has taken, and what the kernel still reads of it. A
    /// copy of the buffer goes back: its extents stay shared. The socket is let go, for its end may be
    /// what the kernel waits for.
    pub(super) fn finish_early(self, result: io::Result<usize>) -> (Finished, Kept) {
        let Task::Send { buf, .. } = self.task else {
            unreachable!("nothing else goes without copying")
        };
        let outcome = Outcome::Sent(result.map(drop), buf.clone());
        let kept = Kept { _buf: buf, args: self.args, notices_due: self.notices_due };
        (Finished { token: self.token, outcome }, kept)
    }

    /// Gives the buffers back with the result.
    pub(super) fn finish(self, result: io::Result<usize>) -> (Finished, Option<KernelArgs>) {
        let outcome = match self.task {
            Task::Accept { .. } => Outcome::Accepted(Err(match result {
                Ok(_) => io::ErrorKind::Other.into(),
                Err(error) => error,
            })),
            Task::Connect { .. } => Outcome::Connected(result.map(drop)),
            Task::PollIn { .. } => Outcome::Readable(result.map(drop)),
            Task::Recv { buf, .. } => Outcome::Received(result, buf),
            Task::Send { buf, .. } => Outcome::Sent(result.map(drop), buf),
            Task::Read { buf, .. } => Outcome::Read(result.map(|n| (n, self.path)), buf),
            Task::Write { buf, .. } => Outcome::Written(result.map(drop), buf),
            Task::Sync { .. } => Outcome::Synced(result.map(drop)),
        };
        (Finished { token: self.token, outcome }, self.args)
    }
}

/// Address of a part within the extent that begins at `extent`.
pub(super) fn address_of_part(extent: NonNull<u8>, part: Part) -> *mut u8 {
    assert!(part.start + part.len <= EXTENT_LEN_BYTES);
    // SAFETY: the offset lies inside the extent, asserted on the line above.
    unsafe { extent.add(part.start) }.as_ptr()
}

impl KernelArgs {
    fn new() -> KernelArgs {
        // SAFETY: all-zero is valid for both C structs.
        let (header, addr) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let args = Box::new(Args { header, vecs: IoVecs::new(), addr, addr_len: 0 });
        KernelArgs(NonNull::from(Box::leak(args)))
    }

    fn args(&mut self) -> &mut Args {
        // SAFETY: made by `new`, freed only by `drop`; the kernel reads it only between submission
        // and completion, and nobody calls this meanwhile.
        unsafe { self.0.as_mut() }
    }

    pub(super) fn vecs(&mut self) -> &mut IoVecs {
        &mut self.args().vecs
    }

    /// The message header over what is left of the vector.
    pub(super) fn header(&mut self) -> *mut libc::msghdr {
        let args = self.args();
        args.header = args.vecs.header();
        &raw mut args.header
    }

    /// The socket address set last.
    pub(super) fn addr(&mut self) -> (*const libc::sockaddr, libc::socklen_t) {
        let args = self.args();
        ((&raw const args.addr).cast(), args.addr_len)
    }

    fn set_addr(&mut self, addr: SocketAddr) {
        let args = self.args();
        args.addr_len = match addr {
            SocketAddr::V4(v4) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is larger and at least as aligned as any socket address.
                unsafe { (&raw mut args.addr).cast::<libc::sockaddr_in>().write(sin) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut args.addr).cast::<libc::sockaddr_in6>().write(sin6) };
                size_of::<libc::sockaddr_in6>()
            }
        } as libc::socklen_t;
    }
}

impl Drop for KernelArgs {
    fn drop(&mut self) {
        // SAFETY: made by `Box::leak` in `new`, and this is its only owner.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
