//! Frames of the socket protocol: a varint length, then one protobuf message of that many bytes.
//!
//! [`FrameBuffer`] does no I/O. It moves a byte at most a constant number of times, and its memory
//! grows with the bytes that came, never with the length that a frame declares.

use bytes::Bytes;
use prost::Message;
use prost::encoding::decode_varint;
use thiserror::Error;

/// Longest frame of the kinds that carry blocks or snapshots (DESIGN.md 7).
pub const BULK_LEN_BYTES_MAX: usize = 64 << 20;
/// Longest frame of every other kind.
pub const FRAME_LEN_BYTES_MAX: usize = 8 << 20;
/// What a connection holds while its frames are small; a window of 256 transactions of 256 bytes fits.
pub const BUFFER_LEN_BYTES: usize = 64 << 10;
/// From this length on a frame is not copied: its fields are slices of what was received.
const SHARED_LEN_BYTES_MIN: usize = 32 << 10;
/// A length of ten bytes or more is above every cap.
const PREFIX_LEN_BYTES_MAX: usize = 9;

/// Why a stream of frames cannot be read on.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The length is no varint, or an absurd one.
    #[error("a frame begins with no length")]
    BadLength,
    /// Longer than its kind may be.
    #[error("a frame declares {len_bytes} bytes, at most {len_bytes_max} are taken")]
    TooLong {
        /// What it declared.
        len_bytes: u64,
        /// What is allowed.
        len_bytes_max: usize,
    },
    /// The body is no protobuf message of the expected type.
    #[error("a frame cannot be decoded: {0}")]
    Decode(String),
}

/// Cap of a request whose first field has number `field` (the arms of `Request` in `abci.proto`).
pub fn request_len_bytes_max(field: u32) -> usize {
    match field {
        // init_chain; offer, load and apply of snapshots; the calls with a block.
        5 | 13..=18 | 20 => BULK_LEN_BYTES_MAX,
        _ => FRAME_LEN_BYTES_MAX,
    }
}

/// The bytes that were received and not yet decoded: `bytes[start..end]`.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Length, prefix included, of the frame that is coming in, as far as it is known.
    expected_len_bytes: usize,
    len_bytes_max_of: fn(u32) -> usize,
}

impl FrameBuffer {
    /// An empty buffer; `len_bytes_max_of` gives the cap of a message by its first field's number.
    pub fn new(len_bytes_max_of: fn(u32) -> usize) -> Self {
        let bytes = vec![0; BUFFER_LEN_BYTES];
        Self { bytes, start: 0, end: 0, expected_len_bytes: 0, len_bytes_max_of }
    }

    /// Where received bytes go; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.end == self.bytes.len() && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.bytes.len() {
            // Full of one frame's beginning. Twice as much as has come, not as much as was declared.
            let len_bytes = (2 * self.end).min(self.expected_len_bytes.max(self.end + 1));
            self.bytes.resize(len_bytes, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// `len_bytes` of [`FrameBuffer::space`] were filled.
    ///
    /// # Panics
    /// When that is more than the space.
    pub fn handle_received(&mut self, len_bytes: usize) {
        assert!(len_bytes <= self.bytes.len() - self.end, "more received than there was space");
        self.end += len_bytes;
    }

    /// Whether a frame has begun and not ended.
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.end
    }

    /// Bytes of memory held.
    pub fn capacity_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// The next whole message, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`]. Only after [`FrameError::Decode`] is the next frame where it should be.
    pub fn poll_message<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some((prefix_len, body_len)) = self.poll_header()? else { return Ok(None) };
        let frame_len = prefix_len + body_len;
        if self.end - self.start < frame_len {
            self.expected_len_bytes = frame_len;
            return Ok(None);
        }
        let body_start = self.start + prefix_len;
        let body_end = self.start + frame_len;
        self.start = body_end;
        let message = if body_len < SHARED_LEN_BYTES_MIN {
            M::decode(&self.bytes[body_start..body_end])
        } else {
            let rest = &self.bytes[body_end..self.end];
            let mut fresh = vec![0; rest.len().max(BUFFER_LEN_BYTES)];
            fresh[..rest.len()].copy_from_slice(rest);
            (self.start, self.end) = (0, rest.len());
            let whole = Bytes::from(std::mem::replace(&mut self.bytes, fresh));
            M::decode(whole.slice(body_start..body_end))
        };
        message.map(Some).map_err(|error| FrameError::Decode(error.to_string()))
    }

    /// Lengths of the prefix and the body, once the cap of the frame is known to hold.
    fn poll_header(&self) -> Result<Option<(usize, usize)>, FrameError> {
        let pending = &self.bytes[self.start..self.end];
        let Some((len, prefix_len)) = read_varint(pending)? else { return Ok(None) };
        let len_bytes = usize::try_from(len).unwrap_or(usize::MAX);
        let too_long = |len_bytes_max| FrameError::TooLong { len_bytes: len, len_bytes_max };
        if len_bytes > BULK_LEN_BYTES_MAX {
            return Err(too_long(BULK_LEN_BYTES_MAX));
        }
        if len_bytes > FRAME_LEN_BYTES_MAX {
            // The kind of a message is told by the tag of its first field.
            let Some((tag, _)) = read_varint(&pending[prefix_len..])? else { return Ok(None) };
            let cap = (self.len_bytes_max_of)(u32::try_from(tag >> 3).unwrap_or(u32::MAX));
            if len_bytes > cap {
                return Err(too_long(cap));
            }
        }
        Ok(Some((prefix_len, len_bytes)))
    }
}

/// Value and length of the varint at the front; `None` when it is cut.
fn read_varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, FrameError> {
    let prefix = &bytes[..bytes.len().min(PREFIX_LEN_BYTES_MAX)];
    match prefix.iter().position(|byte| byte & 0x80 == 0) {
        Some(last) => {
            let value = decode_varint(&mut &prefix[..=last]).map_err(|_| FrameError::BadLength)?;
            Ok(Some((value, last + 1)))
        }
        None if prefix.len() == PREFIX_LEN_BYTES_MAX => Err(FrameError::BadLength),
        None => Ok(None),
    }
}

/// Appends `message` as a frame.
pub fn put_frame(message: &impl Message, out: &mut Vec<u8>) {
    message.encode_length_delimited(out).expect("memory takes any length");
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use prost::encoding::encode_varint;
    use tendermint_proto::v0_38::abci::{Request, RequestCheckTx, RequestFinalizeBlock, request};

    use super::*;

    fn check_tx(len: usize) -> Request {
        let tx = vec![7; len].into();
        Request { value: Some(request::Value::CheckTx(RequestCheckTx { tx, r#type: 0 })) }
    }

    fn feed(buffer: &mut FrameBuffer, mut bytes: &[u8], cut: usize) -> Vec<Request> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let space = buffer.space();
            let len = bytes.len().min(cut).min(space.len());
            space[..len].copy_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
            buffer.handle_received(len);
            while let Some(request) = buffer.poll_message().unwrap() {
                found.push(request);
            }
        }
        found
    }

    proptest! {
        /// What the decoder yields does not depend on where the stream was cut.
        #[test]
        fn decoding_ignores_segmentation(lens in vec(0usize..200_000, 1..8), cut in 1usize..300_000) {
            let sent: Vec<_> = lens.iter().map(|len| check_tx(*len)).collect();
            let mut bytes = Vec::new();
            sent.iter().for_each(|request| put_frame(request, &mut bytes));
            let mut buffer = FrameBuffer::new(request_len_bytes_max);
            prop_assert_eq!(feed(&mut buffer, &bytes, cut), sent);
            prop_assert!(!buffer.is_mid_frame());
        }
    }

    #[test]
    fn a_declared_length_takes_no_memory() {
        let mut buffer = FrameBuffer::new(request_len_bytes_max);
        let mut bytes = Vec::new();
        encode_varint(BULK_LEN_BYTES_MAX as u64, &mut bytes);
        encode_varint(20 << 3 | 2, &mut bytes);
        assert!(feed(&mut buffer, &bytes, 1).is_empty());
        assert!(buffer.is_mid_frame() && buffer.capacity_bytes() == BUFFER_LEN_BYTES);
        bytes.clear();
        bytes.resize(1 << 20, 0x80);
        // Still within the frame: nothing looks at its body yet.
        assert!(feed(&mut buffer, &bytes, 4096).is_empty());
        assert!(buffer.capacity_bytes() <= 4 << 20);
    }

    #[test]
    fn what_is_too_long_is_told_from_the_first_bytes() {
        let poll = |bytes: &[u8]| {
            let mut buffer = FrameBuffer::new(request_len_bytes_max);
            buffer.space()[..bytes.len()].copy_from_slice(bytes);
            buffer.handle_received(bytes.len());
            buffer.poll_message::<Request>()
        };
        let mut huge = Vec::new();
        encode_varint(1 << 40, &mut huge);
        let len_bytes_max = BULK_LEN_BYTES_MAX;
        assert_eq!(poll(&huge), Err(FrameError::TooLong { len_bytes: 1 << 40, len_bytes_max }));
        assert_eq!(poll(&[0xff; 16]), Err(FrameError::BadLength));
        // Nine MiB: too long for check_tx (field 8), fine for finalize_block (field 20).
        let mut nine = Vec::new();
        encode_varint(9 << 20, &mut nine);
        assert_eq!(poll(&nine), Ok(None));
        let tagged = |field: u64| {
            let mut bytes = nine.clone();
            encode_varint(field << 3 | 2, &mut bytes);
            bytes
        };
        assert!(matches!(poll(&tagged(8)), Err(FrameError::TooLong { .. })));
        assert_eq!(poll(&tagged(20)), Ok(None));
    }

    #[test]
    fn a_big_frame_is_given_back_and_its_fields_are_not_copied() {
        let txs = vec![vec![1; 300].into(); 30_000];
        let block = RequestFinalizeBlock { txs, ..Default::default() };
        let request = Request { value: Some(request::Value::FinalizeBlock(block)) };
        let mut bytes = Vec::new();
        put_frame(&request, &mut bytes);
        put_frame(&check_tx(5), &mut bytes);
        let mut buffer = FrameBuffer::new(request_len_bytes_max);
        assert_eq!(feed(&mut buffer, &bytes, 1 << 20), [request, check_tx(5)]);
        assert_eq!(buffer.capacity_bytes(), BUFFER_LEN_BYTES);
    }
}
