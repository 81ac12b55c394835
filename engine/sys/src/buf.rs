//! What one vectored receive or send carries, owned by value from the call to its completion.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::arena::{EXTENT_LEN_BYTES, Extent, ExtentMut};

/// Most slots of one receive: 64 blocks, a header each.
pub const RECV_SLOTS_MAX: usize = 130;

/// Most parts of one send: 64 blocks, a header each.
pub const SEND_PARTS_MAX: usize = 130;

const IOVECS_MAX: usize =
    if RECV_SLOTS_MAX > SEND_PARTS_MAX { RECV_SLOTS_MAX } else { SEND_PARTS_MAX };
const _: () = assert!(IOVECS_MAX <= 1024); // IOV_MAX, readv(2)

/// Which bytes of a [`RecvBuf`] come next: one entry of the vectored receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants tell their fields")]
pub enum RecvSlot {
    /// `len` bytes of [`RecvBuf::small`] from `start`: headers and small messages.
    Small { start: usize, len: usize },
    /// `len` bytes of `extents[extent]` from `start`: a block's final place.
    Extent { extent: usize, start: usize, len: usize },
}

/// Where one vectored receive lands. The driver fills the slots in order and gives all of it back.
#[derive(Debug, Default)]
pub struct RecvBuf {
    /// Header slots and staging space.
    pub small: Vec<u8>,
    /// Extents lent for the receive.
    pub extents: Vec<ExtentMut>,
    /// At most [`RECV_SLOTS_MAX`] slots, disjoint, in stream order.
    pub slots: Vec<RecvSlot>,
    /// So long the driver may wait for all slots to be filled, where it can do that without coming back in
    /// between; what has come by then is the result. `None`, or a driver that cannot: what is there.
    pub fill_max: Option<Duration>,
}

/// One part of a vectored send.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the variants tell their fields")]
pub enum SendPart {
    /// `len` bytes of [`SendBuf::small`] from `start`.
    Small { start: usize, len: usize },
    /// `len` bytes of a shared extent from `start`.
    Extent { extent: Extent, start: usize, len: usize },
}

/// What one vectored send carries. The driver sends *all* of it (resuming short sends) before it
/// completes the operation.
#[derive(Clone, Debug, Default)]
pub struct SendBuf {
    /// Headers and small messages, back to back.
    pub small: Vec<u8>,
    /// At most [`SEND_PARTS_MAX`] parts in stream order.
    pub parts: Vec<SendPart>,
}

impl RecvSlot {
    /// Bytes of this slot.
    pub fn len_bytes(&self) -> usize {
        match *self {
            RecvSlot::Small { len, .. } | RecvSlot::Extent { len, .. } => len,
        }
    }
}

impl SendPart {
    /// Bytes of this part.
    pub fn len_bytes(&self) -> usize {
        match *self {
            SendPart::Small { len, .. } | SendPart::Extent { len, .. } => len,
        }
    }
}

impl RecvBuf {
    /// Most bytes that this receive takes.
    pub fn len_bytes(&self) -> usize {
        self.slots.iter().map(RecvSlot::len_bytes).sum()
    }

    /// The bytes of a slot, where it lies.
    ///
    /// # Errors
    /// `InvalidInput` when the slot lies outside its buffer.
    pub fn slot_mut(&mut self, slot: RecvSlot) -> io::Result<&mut [u8]> {
        let bytes = match slot {
            RecvSlot::Small { start, len } => sub_mut(&mut self.small, start, len),
            RecvSlot::Extent { extent, start, len } => {
                self.extents.get_mut(extent).and_then(|extent| sub_mut(extent, start, len))
            }
        };
        bytes.ok_or_else(|| invalid("receive slot outside its buffer"))
    }

    /// Fills the slots in order with what comes first of `bytes`; returns how many fitted.
    ///
    /// # Errors
    /// `InvalidInput` when a slot lies outside its buffer.
    pub fn fill_from(&mut self, mut bytes: &[u8]) -> io::Result<usize> {
        let given = bytes.len();
        for i in 0..self.slots.len() {
            let slot = self.slots[i];
            let target = self.slot_mut(slot)?;
            let len = target.len().min(bytes.len());
            target[..len].copy_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
        }
        Ok(given - bytes.len())
    }
}

impl SendBuf {
    /// Bytes to send.
    pub fn len_bytes(&self) -> usize {
        self.parts.iter().map(SendPart::len_bytes).sum()
    }

    /// The bytes of part `index`.
    ///
    /// # Errors
    /// `InvalidInput` when the part lies outside its buffer.
    pub fn part(&self, index: usize) -> io::Result<&[u8]> {
        let bytes = match &self.parts[index] {
            SendPart::Small { start, len } => sub(&self.small, *start, *len),
            SendPart::Extent { extent, start, len } => sub(extent, *start, *len),
        };
        bytes.ok_or_else(|| invalid("send part outside its buffer"))
    }
}

fn sub(bytes: &[u8], start: usize, len: usize) -> Option<&[u8]> {
    bytes.get(start..start.checked_add(len)?)
}

fn sub_mut(bytes: &mut [u8], start: usize, len: usize) -> Option<&mut [u8]> {
    bytes.get_mut(start..start.checked_add(len)?)
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// The vector that the kernel reads, with the parts already done cut off its front. It points into a
/// buffer that its holder keeps alive.
pub(crate) struct IoVecs {
    vecs: [libc::iovec; IOVECS_MAX],
    first: usize,
    count: usize,
}

impl IoVecs {
    pub(crate) const fn new() -> IoVecs {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        IoVecs { vecs: [none; IOVECS_MAX], first: 0, count: 0 }
    }

    /// Points to the slots of `buf`, which must stay where it is until the kernel is done.
    pub(crate) fn point_to_slots(&mut self, buf: &mut RecvBuf) -> io::Result<()> {
        (self.first, self.count) = (0, 0);
        if buf.slots.len() > RECV_SLOTS_MAX {
            return Err(invalid("too many receive slots"));
        }
        for i in 0..buf.slots.len() {
            let slot = buf.slots[i];
            let bytes = buf.slot_mut(slot)?;
            self.push(bytes.as_mut_ptr(), bytes.len());
        }
        if self.count == 0 {
            return Err(invalid("receive without room")); // its 0 would read as "peer closed"
        }
        Ok(())
    }

    /// Points to the parts of `buf`, which must stay where it is until the kernel is done.
    pub(crate) fn point_to_parts(&mut self, buf: &SendBuf) -> io::Result<()> {
        (self.first, self.count) = (0, 0);
        if buf.parts.len() > SEND_PARTS_MAX {
            return Err(invalid("too many send parts"));
        }
        for index in 0..buf.parts.len() {
            let bytes = buf.part(index)?;
            self.push(bytes.as_ptr().cast_mut(), bytes.len());
        }
        Ok(())
    }

    fn push(&mut self, base: *mut u8, len: usize) {
        if len > 0 {
            self.vecs[self.count] = libc::iovec { iov_base: base.cast(), iov_len: len };
            self.count += 1;
        }
    }

    /// Cuts `done` bytes off the front.
    pub(crate) fn advance(&mut self, mut done: usize) {
        while done > 0 {
            assert!(self.first < self.count, "more bytes done than asked for");
            let vec = &mut self.vecs[self.first];
            let step = done.min(vec.iov_len);
            vec.iov_base = vec.iov_base.cast::<u8>().wrapping_add(step).cast();
            vec.iov_len -= step;
            done -= step;
            if vec.iov_len == 0 {
                self.first += 1;
            }
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.first == self.count
    }

    /// The header of `recvmsg(2)` and `sendmsg(2)` over what is left; points into `self`.
    pub(crate) fn header(&mut self) -> libc::msghdr {
        // SAFETY: all-zero is a valid msghdr: no name, no control data, no vector.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = self.vecs[self.first..].as_mut_ptr();
        header.msg_iovlen = self.count - self.first;
        header
    }
}

/// One receive that does not wait (`recvmsg(2)`); 0 bytes when the peer closed.
///
/// # Errors
/// `WouldBlock` when nothing is there, `InvalidInput` for slots outside their buffer, else what
/// `recvmsg(2)` says.
pub fn try_recv(socket: BorrowedFd<'_>, buf: &mut RecvBuf) -> io::Result<usize> {
    let mut vecs = IoVecs::new();
    vecs.point_to_slots(buf)?;
    let mut header = vecs.header();
    // SAFETY: the header points to `vecs` and that into `buf`, bounds checked; both outlive the
    // call, and `buf` is borrowed mutably.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// One send that does not wait (`sendmsg(2)`) of `buf` from its byte `from`; returns the bytes taken.
///
/// # Errors
/// `WouldBlock` when the socket is full, `InvalidInput` for parts outside their buffer, else what
/// `sendmsg(2)` says (`EPIPE` comes as an error, never as a signal).
pub fn try_send(socket: BorrowedFd<'_>, buf: &SendBuf, from: usize) -> io::Result<usize> {
    let mut vecs = IoVecs::new();
    vecs.point_to_parts(buf)?;
    if from > buf.len_bytes() {
        return Err(invalid("send from past its end"));
    }
    vecs.advance(from);
    let header = vecs.header();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the header points to `vecs` and that into `buf`, bounds checked; both outlive the
    // call, which only reads them.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &header, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Checks that `len` bytes from `start` lie inside an extent.
pub(crate) fn check_extent_range(start: usize, len: usize) -> io::Result<()> {
    match start.checked_add(len) {
        Some(end) if end <= EXTENT_LEN_BYTES => Ok(()),
        _ => Err(invalid("range outside its extent")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Arena;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_is_gathered_is_scattered_in_order() {
        let arena = Arena::new(4 * EXTENT_LEN_BYTES).unwrap();
        let (a, b) = UnixStream::pair().unwrap();
        let mut extent = arena.try_take().unwrap();
        extent[100..104].copy_from_slice(b"body");
        let extent = extent.freeze();
        let send = SendBuf {
            small: b"headtail".to_vec(),
            parts: vec![
                SendPart::Small { start: 0, len: 4 },
                SendPart::Extent { extent, start: 100, len: 4 },
                SendPart::Small { start: 4, len: 4 },
            ],
        };
        assert_eq!(try_send(a.as_fd(), &send, 0).unwrap(), 12);
        assert_eq!(try_send(a.as_fd(), &send, 6).unwrap(), 6);
        let mut recv = RecvBuf {
            small: vec![0; 6],
            extents: vec![arena.try_take().unwrap()],
            slots: vec![
                RecvSlot::Small { start: 2, len: 4 },
                RecvSlot::Extent { extent: 0, start: 8, len: 14 },
                RecvSlot::Small { start: 0, len: 2 },
            ],
            fill_max: None,
        };
        assert_eq!(try_recv(b.as_fd(), &mut recv).unwrap(), 18);
        assert_eq!(&recv.small[2..], b"head");
        assert_eq!(&recv.extents[0][8..22], b"bodytaildytail");
        let again = try_recv(b.as_fd(), &mut recv).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn slots_outside_their_buffer_never_reach_the_kernel() {
        let arena = Arena::new(EXTENT_LEN_BYTES).unwrap();
        let (_a, b) = UnixStream::pair().unwrap();
        let bad = [
            RecvSlot::Small { start: 3, len: 2 },
            RecvSlot::Small { start: usize::MAX, len: 2 },
            RecvSlot::Extent { extent: 1, start: 0, len: 1 },
            RecvSlot::Extent { extent: 0, start: EXTENT_LEN_BYTES, len: 1 },
        ];
        for slot in bad {
            let extents = arena.try_take().into_iter().collect();
            let mut recv =
                RecvBuf { small: vec![0; 4], extents, slots: vec![slot], fill_max: None };
            let error = try_recv(b.as_fd(), &mut recv).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        let mut none = RecvBuf::default();
        assert_eq!(try_recv(b.as_fd(), &mut none).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
