//! The extension protocol (BEP 10) and the extensions that ride on it: metadata exchange (BEP 9),
//! don't-have (BEP 54), and upload-only (BEP 21).
//!
//! Dictionaries of peers are read by a small reader of their own, and not by the strict module that
//! reads torrents: their bytes are never hashed, so an unsorted key of a stock client harms nobody,
//! and the data that follows a metadata dictionary needs to know where the dictionary ends.

use thiserror::Error;

use super::message::Message;

/// Extended ids under which *we* receive (BEP 10: each side numbers its own).
pub mod ours {
    /// The extension handshake; fixed by BEP 10.
    pub const HANDSHAKE: u8 = 0;
    /// Metadata exchange, BEP 9.
    pub const METADATA: u8 = 1;
    /// Don't-have, BEP 54.
    pub const DONT_HAVE: u8 = 2;
    /// Upload-only, BEP 21.
    pub const UPLOAD_ONLY: u8 = 3;
}

/// Most entries read from one dictionary; what follows is an error. Stock clients send about 15.
const ENTRIES_MAX: usize = 128;
/// Deepest nesting inside a dictionary of a peer.
const DEPTH_MAX: usize = 8;
/// Longest client name that is kept, in bytes.
const CLIENT_LEN_MAX: usize = 64;

/// Why an extension message cannot be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ExtensionError {
    /// No dictionary, or a damaged one.
    #[error("extension message is no dictionary at byte {at}")]
    Dict {
        /// Where reading stopped.
        at: usize,
    },
    /// A needed key is missing or has another type or range.
    #[error("extension message has no usable {key:?}")]
    Key {
        /// The key.
        key: &'static str,
    },
    /// A don't-have or upload-only message of the wrong length.
    #[error("extension message {id} of {len_bytes} bytes has the wrong length")]
    WrongLen {
        /// Our extended id.
        id: u8,
        /// What came, in bytes.
        len_bytes: usize,
    },
}

/// What the peer said in its extension handshake (BEP 10). Ids are the peer's: we send with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtendedHandshake {
    /// Id of metadata messages, if the peer has the extension.
    pub metadata_id: Option<u8>,
    /// Id of don't-have messages, if the peer has the extension.
    pub dont_have_id: Option<u8>,
    /// Length of the info dict that the peer can serve, in bytes.
    pub metadata_len_bytes: Option<u32>,
    /// How many of our requests the peer queues.
    pub requests_max: Option<u32>,
    /// The peer wants nothing (BEP 21).
    pub upload_only: bool,
    /// Name and version of the peer's program, cut to 64 bytes and to printable ASCII.
    pub client: String,
}

/// What we say in our extension handshake.
#[derive(Clone, Debug)]
pub struct OwnHandshake<'a> {
    /// Name and version of the program.
    pub client: &'a str,
    /// Length of the info dict that we serve, in bytes, if we have it.
    pub metadata_len_bytes: Option<u32>,
    /// How many requests of the peer we queue.
    pub requests_max: u32,
    /// We want nothing.
    pub upload_only: bool,
}

impl OwnHandshake<'_> {
    /// Appends the whole message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut dict = Vec::with_capacity(160);
        dict.extend_from_slice(b"d1:md11:lt_donthavei");
        put_number(&mut dict, u64::from(ours::DONT_HAVE));
        dict.extend_from_slice(b"e11:upload_onlyi");
        put_number(&mut dict, u64::from(ours::UPLOAD_ONLY));
        dict.extend_from_slice(b"e11:ut_metadatai");
        put_number(&mut dict, u64::from(ours::METADATA));
        dict.extend_from_slice(b"ee");
        if let Some(len) = self.metadata_len_bytes {
            put_entry(&mut dict, "metadata_size", u64::from(len));
        }
        put_entry(&mut dict, "reqq", u64::from(self.requests_max));
        if self.upload_only {
            put_entry(&mut dict, "upload_only", 1);
        }
        dict.extend_from_slice(b"1:v");
        put_number(&mut dict, self.client.len() as u64);
        dict.push(b':');
        dict.extend_from_slice(self.client.as_bytes());
        dict.push(b'e');
        Message::Extended { id: ours::HANDSHAKE, payload: &dict }.encode(out);
    }
}

impl ExtendedHandshake {
    /// Reads the payload of an extension handshake. Unknown keys are skipped, and a known key with a
    /// useless value counts as absent.
    ///
    /// # Errors
    /// [`ExtensionError::Dict`].
    pub fn decode(payload: &[u8]) -> Result<Self, ExtensionError> {
        let mut handshake = Self::default();
        let (entries, _) = dict(payload)?;
        for (key, value) in entries {
            match (key, value) {
                (b"m", Value::Dict(span)) => {
                    for (name, value) in dict(span)?.0 {
                        // Id 0 takes an extension back (BEP 10).
                        let id = value.number().and_then(|id| u8::try_from(id).ok());
                        let id = id.filter(|&id| id != 0);
                        match name {
                            b"ut_metadata" => handshake.metadata_id = id,
                            b"lt_donthave" => handshake.dont_have_id = id,
                            _ => {}
                        }
                    }
                }
                (b"metadata_size", value) => {
                    let len = value.number().and_then(|len| u32::try_from(len).ok());
                    handshake.metadata_len_bytes = len.filter(|&len| len != 0);
                }
                (b"reqq", value) => {
                    let count = value.number().and_then(|count| u32::try_from(count).ok());
                    handshake.requests_max = count.filter(|&count| count != 0);
                }
                (b"upload_only", value) => {
                    handshake.upload_only = value.number().is_some_and(|on| on != 0);
                }
                (b"v", Value::Bytes(name)) => {
                    let printable = |byte: &&u8| byte.is_ascii_graphic() || **byte == b' ';
                    let name = name.iter().take(CLIENT_LEN_MAX).filter(printable);
                    handshake.client = name.map(|&byte| char::from(byte)).collect();
                }
                _ => {}
            }
        }
        Ok(handshake)
    }
}

/// A message of the metadata exchange (BEP 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataMessage<'a> {
    /// Asks for a 16 KiB piece of the info dict.
    Request {
        /// Which one.
        index: u32,
    },
    /// A piece of the info dict.
    Data {
        /// Which one.
        index: u32,
        /// Length of the whole info dict as the peer says, in bytes.
        total_len_bytes: u32,
        /// The piece.
        data: &'a [u8],
    },
    /// The piece will not be sent.
    Reject {
        /// Which one.
        index: u32,
    },
    /// A kind that a later version may define; BEP 9 says to ignore it.
    Unknown,
}

impl<'a> MetadataMessage<'a> {
    /// Reads the payload of a metadata message.
    ///
    /// # Errors
    /// [`ExtensionError`].
    pub fn decode(payload: &'a [u8]) -> Result<Self, ExtensionError> {
        let (entries, used) = dict(payload)?;
        let number = |wanted: &'static str| {
            let entry = entries.iter().find(|(key, _)| *key == wanted.as_bytes());
            entry
                .and_then(|(_, value)| value.number())
                .and_then(|value| u32::try_from(value).ok())
                .ok_or(ExtensionError::Key { key: wanted })
        };
        Ok(match number("msg_type")? {
            0 => Self::Request { index: number("piece")? },
            1 => Self::Data {
                index: number("piece")?,
                total_len_bytes: number("total_size")?,
                data: &payload[used..],
            },
            2 => Self::Reject { index: number("piece")? },
            _ => Self::Unknown,
        })
    }

    /// Appends the whole message, under the extended id that the peer has given.
    ///
    /// # Panics
    /// For [`MetadataMessage::Unknown`].
    pub fn encode(&self, peer_id: u8, out: &mut Vec<u8>) {
        let mut payload = b"d8:msg_typei".to_vec();
        let (kind, index) = match *self {
            Self::Request { index } => (0, index),
            Self::Data { index, .. } => (1, index),
            Self::Reject { index } => (2, index),
            Self::Unknown => panic!("an unknown metadata message is not ours to send"),
        };
        put_number(&mut payload, kind);
        payload.push(b'e');
        put_entry(&mut payload, "piece", u64::from(index));
        if let Self::Data { total_len_bytes, data, .. } = *self {
            put_entry(&mut payload, "total_size", u64::from(total_len_bytes));
            payload.push(b'e');
            payload.extend_from_slice(data);
        } else {
            payload.push(b'e');
        }
        Message::Extended { id: peer_id, payload: &payload }.encode(out);
    }
}

/// Reads the payload of a don't-have message (BEP 54): the piece index as it came.
///
/// # Errors
/// [`ExtensionError::WrongLen`].
pub fn decode_dont_have(payload: &[u8]) -> Result<u32, ExtensionError> {
    let wrong = ExtensionError::WrongLen { id: ours::DONT_HAVE, len_bytes: payload.len() };
    payload.try_into().map(u32::from_be_bytes).map_err(|_| wrong)
}

fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(number.to_string().as_bytes());
}

fn put_entry(out: &mut Vec<u8>, key: &str, number: u64) {
    put_number(out, key.len() as u64);
    out.push(b':');
    out.extend_from_slice(key.as_bytes());
    out.push(b'i');
    put_number(out, number);
    out.push(b'e');
}

/// A value in a dictionary of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value<'a> {
    Number(i64),
    Bytes(&'a [u8]),
    Dict(&'a [u8]),
    List,
}

impl Value<'_> {
    /// The value if it is a number that is not negative.
    fn number(&self) -> Option<u64> {
        match *self {
            Self::Number(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }
}

type Entries<'a> = Vec<(&'a [u8], Value<'a>)>;

/// Reads the dictionary that `bytes` begins with, and says how long it is.
fn dict(bytes: &[u8]) -> Result<(Entries<'_>, usize), ExtensionError> {
    let mut reader = Reader { bytes, at: 0 };
    let mut entries = Vec::new();
    reader.expect(b'd')?;
    while reader.peek()? != b'e' {
        if entries.len() == ENTRIES_MAX {
            return Err(reader.error());
        }
        let key = reader.string()?;
        let start = reader.at;
        let value = match reader.peek()? {
            b'i' => Value::Number(reader.number()?),
            b'd' => {
                reader.skip()?;
                Value::Dict(&bytes[start..reader.at])
            }
            b'l' => {
                reader.skip()?;
                Value::List
            }
            _ => Value::Bytes(reader.string()?),
        };
        entries.push((key, value));
    }
    Ok((entries, reader.at + 1))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn error(&self) -> ExtensionError {
        ExtensionError::Dict { at: self.at }
    }

    fn peek(&self) -> Result<u8, ExtensionError> {
        self.bytes.get(self.at).copied().ok_or(self.error())
    }

    fn expect(&mut self, byte: u8) -> Result<(), ExtensionError> {
        if self.peek()? != byte {
            return Err(self.error());
        }
        self.at += 1;
        Ok(())
    }

    /// Digits up to `end`, at most 19 of them.
    fn digits(&mut self, end: u8) -> Result<u64, ExtensionError> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().take(20).position(|&byte| byte == end).ok_or(self.error())?;
        let text = std::str::from_utf8(&rest[..len]).map_err(|_| self.error())?;
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(self.error());
        }
        let number = text.parse().map_err(|_| self.error())?;
        self.at += len + 1;
        Ok(number)
    }

    fn number(&mut self) -> Result<i64, ExtensionError> {
        self.expect(b'i')?;
        let negative = self.peek()? == b'-';
        self.at += usize::from(negative);
        let number = i64::try_from(self.digits(b'e')?).map_err(|_| self.error())?;
        Ok(if negative { -number } else { number })
    }

    fn string(&mut self) -> Result<&'a [u8], ExtensionError> {
        let len = usize::try_from(self.digits(b':')?).map_err(|_| self.error())?;
        let end = self.at.checked_add(len).ok_or(self.error())?;
        let string = self.bytes.get(self.at..end).ok_or(self.error())?;
        self.at = end;
        Ok(string)
    }

    /// Skips one value of any kind, without recursion.
    fn skip(&mut self) -> Result<(), ExtensionError> {
        let mut depth = 0;
        loop {
            match self.peek()? {
                b'd' | b'l' => {
                    depth += 1;
                    if depth > DEPTH_MAX {
                        return Err(self.error());
                    }
                    self.at += 1;
                }
                b'e' if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                b'i' => {
                    self.number()?;
                }
                _ => {
                    self.string()?;
                }
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::FrameLimits;

    fn payload_of(bytes: &[u8]) -> (u8, Vec<u8>) {
        let limits = FrameLimits { bitfield_len: None, hashes_max: 0 };
        match Message::decode(bytes, limits) {
            Ok(Message::Extended { id, payload }) => (id, payload.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn our_extension_handshake_reads_back() {
        let mut bytes = Vec::new();
        let own = OwnHandshake {
            client: "ringseed 0.1.0",
            metadata_len_bytes: Some(31_235),
            requests_max: 512,
            upload_only: true,
        };
        own.encode(&mut bytes);
        let (id, payload) = payload_of(&bytes);
        assert_eq!(id, 0);
        let read = ExtendedHandshake::decode(&payload).unwrap();
        assert_eq!(
            read,
            ExtendedHandshake {
                metadata_id: Some(ours::METADATA),
                dont_have_id: Some(ours::DONT_HAVE),
                metadata_len_bytes: Some(31_235),
                requests_max: Some(512),
                upload_only: true,
                client: "ringseed 0.1.0".to_owned(),
            }
        );
    }

    #[test]
    fn a_stock_handshake_with_strange_keys_is_read() {
        let payload = b"d12:complete_agoi-1e1:md11:ut_metadatai2e6:ut_pexi0ee13:metadata_sizei77e\
            1:pi6881e4:reqqi2000e1:v16:Some Client\x01 2.06:yourip4:\x7f\0\0\x014:listl1:ai3eee";
        let read = ExtendedHandshake::decode(payload).unwrap();
        assert_eq!((read.metadata_id, read.metadata_len_bytes), (Some(2), Some(77)));
        assert_eq!((read.requests_max, read.client.as_str()), (Some(2000), "Some Client 2.0"));
    }

    #[test]
    fn metadata_messages_read_back() {
        for sent in [
            MetadataMessage::Request { index: 3 },
            MetadataMessage::Data { index: 0, total_len_bytes: 5, data: b"d1:ae" },
            MetadataMessage::Reject { index: 9 },
        ] {
            let mut bytes = Vec::new();
            sent.encode(7, &mut bytes);
            let (id, payload) = payload_of(&bytes);
            assert_eq!(id, 7);
            assert_eq!(MetadataMessage::decode(&payload), Ok(sent));
        }
        assert_eq!(
            MetadataMessage::decode(b"d8:msg_typei1e5:piecei0ee"),
            Err(ExtensionError::Key { key: "total_size" })
        );
    }

    #[test]
    fn hostile_dictionaries_end_in_an_error() {
        let deep = [b"d1:a".as_slice(), &[b'l'; 1000], &[b'e'; 1000], b"e"].concat();
        let long = b"d99999999999:a".as_slice();
        for bytes in [b"".as_slice(), b"d", b"i1e", b"d1:a", b"d1:ai1", b"d-1:", long, &deep] {
            assert!(matches!(ExtendedHandshake::decode(bytes), Err(ExtensionError::Dict { .. })));
        }
        let many = [b"d".to_vec(), b"1:ai1e".repeat(ENTRIES_MAX + 1), b"e".to_vec()].concat();
        assert!(ExtendedHandshake::decode(&many).is_err());
    }
}
