//! The codec of peer messages: lengths judged early, one meaning per byte string.

use ringseed_core::wire::message::{
    EXTENDED_LEN_MAX, Frame, FrameLimits, MESSAGE_LEN_MAX, Message, PIECE_HEADER_LEN, frame,
};

use crate::source::Source;

/// Reads a stream of messages as a link would and checks each.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let limits = FrameLimits {
        bitfield_len: source.flag().then_some(u32::from(source.byte())),
        hashes_max: u32::from(source.byte()),
    };
    let mut rest = source.rest();
    while let Some(len) = one(rest, limits) {
        rest = &rest[len..];
    }
}

/// Checks the message that `bytes` begins with; its length if it is whole and good.
fn one(bytes: &[u8], limits: FrameLimits) -> Option<usize> {
    let verdict = frame(bytes, limits);
    // A shorter prefix never says anything else, only less.
    for cut in [0, 4, 5, PIECE_HEADER_LEN].into_iter().filter(|cut| *cut < bytes.len()) {
        match frame(&bytes[..cut], limits) {
            Ok(Frame::NeedsBytes(needed)) => assert!(needed > cut),
            early => assert_eq!(early, verdict, "cut at {cut}"),
        }
    }
    let len = match verdict {
        Err(_) => return None,
        Ok(Frame::NeedsBytes(needed)) => {
            assert!(needed > bytes.len() && needed <= 4 + MESSAGE_LEN_MAX as usize);
            return None;
        }
        Ok(Frame::Complete(len)) => len,
        Ok(Frame::PieceHeader(block)) => {
            assert!((1..=16_384).contains(&block.len));
            PIECE_HEADER_LEN + block.len as usize
        }
    };
    let whole = bytes.get(..len)?;
    let message = Message::decode(whole, limits).expect("frame() has judged it");
    match message {
        Message::Unknown { id } => {
            assert!(whole[4] == id && len <= 4 + EXTENDED_LEN_MAX as usize);
            return Some(len);
        }
        Message::Bitfield(bits) => {
            assert!(limits.bitfield_len.is_none_or(|wanted| wanted as usize == bits.len()));
        }
        Message::Hashes { hashes, .. } => {
            assert!(hashes.len().is_multiple_of(32), "a torn hash");
            assert!((1..=limits.hashes_max as usize).contains(&(hashes.len() / 32)));
        }
        Message::Extended { payload, .. } => assert!(payload.len() < EXTENDED_LEN_MAX as usize),
        _ => {}
    }
    let mut again = Vec::new();
    message.encode(&mut again);
    assert_eq!(again, whole, "{message:?}");
    Some(len)
}
