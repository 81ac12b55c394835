//! Dictionaries of the extension protocol beside the strict decoder.

use ringseed_core::bencode::{Document, KeyOrder, Limits, Value};
use ringseed_core::wire::extension::{ExtendedHandshake, MetadataMessage, decode_dont_have, ours};
use ringseed_core::wire::message::{FrameLimits, Message};

/// What the little reader of the extension protocol allows; it counts entries and not tokens.
const LIMITS: Limits = Limits { len_max_bytes: 17 * 1024, depth_max: 8, token_max: 200 };

/// Whatever the strict decoder takes the reader takes, and finds the same in it.
pub fn run(data: &[u8]) {
    let handshake = ExtendedHandshake::decode(data);
    let message = MetadataMessage::decode(data);
    assert_eq!(decode_dont_have(data).is_ok(), data.len() == 4);
    if let Ok(handshake) = &handshake {
        assert!(handshake.client.len() <= 64, "a name without end");
        assert!(handshake.client.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
        assert!(handshake.metadata_id != Some(0) && handshake.dont_have_id != Some(0));
    }
    if let Ok(message) = message
        && message != MetadataMessage::Unknown
    {
        let mut bytes = Vec::new();
        message.encode(ours::METADATA, &mut bytes);
        let limits = FrameLimits { bitfield_len: None, hashes_max: 0 };
        // 16 KiB of data fill a message; longer ones never arrive.
        if let Ok(Message::Extended { payload, .. }) = Message::decode(&bytes, limits) {
            assert_eq!(MetadataMessage::decode(payload), Ok(message));
        }
    }

    let Ok(document) = Document::parse_prefix(data, LIMITS, KeyOrder::Strict) else { return };
    let root = document.root();
    if root.as_dict().is_none_or(|entries| entries.count() > 90) {
        return;
    }
    let handshake = handshake.expect("the strict decoder takes it");
    // A number that both take: the reader knows 63 bits and no more.
    let number = |value: Option<Value<'_>>| value.and_then(|value| value.as_u64());
    let small = |value: Option<Value<'_>>| {
        number(value).and_then(|value| u32::try_from(value).ok()).filter(|&value| value != 0)
    };
    assert_eq!(handshake.metadata_len_bytes, small(root.get(b"metadata_size")));
    assert_eq!(handshake.requests_max, small(root.get(b"reqq")));
    assert_eq!(handshake.upload_only, number(root.get(b"upload_only")).is_some_and(|on| on != 0));
    let ids = root.get(b"m").filter(|ids| ids.as_dict().is_some());
    let id = |name: &[u8]| {
        let id = ids.and_then(|ids| number(ids.get(name)));
        id.and_then(|id| u8::try_from(id).ok()).filter(|&id| id != 0)
    };
    assert_eq!(handshake.metadata_id, id(b"ut_metadata"));
    assert_eq!(handshake.dont_have_id, id(b"lt_donthave"));

    let part = |key: &[u8]| number(root.get(key)).and_then(|value| u32::try_from(value).ok());
    let expected = match (part(b"msg_type"), part(b"piece"), part(b"total_size")) {
        (Some(0), Some(index), _) => Some(MetadataMessage::Request { index }),
        (Some(1), Some(index), Some(total_len_bytes)) => {
            let data = &data[root.span().end..];
            Some(MetadataMessage::Data { index, total_len_bytes, data })
        }
        (Some(2), Some(index), _) => Some(MetadataMessage::Reject { index }),
        (Some(3..), _, _) => Some(MetadataMessage::Unknown),
        _ => None,
    };
    assert_eq!(message.ok(), expected);
}
