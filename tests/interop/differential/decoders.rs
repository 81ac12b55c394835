//! Our bencode decoder beside those of `bendy` and `bt_bencode`, on values of every shape and on mutants of them.

use std::collections::BTreeMap;

use bendy::decoding::{Decoder, Object};
use bt_bencode::Value as BtValue;
use libtest_mimic::Failed;
use ringseed_core::bencode::{BencodeError, Document, KeyOrder, Limits, Value};
use ringseed_tests::data::Seeded;

use crate::tree::Node;
use crate::{generate, mutate, setting};

/// Documents that `cargo test` tries against each crate; CI tries 100,000.
const CASES: u64 = 20_000;
/// Nested deeper than this nothing is tried: each decoder has a limit of its own.
const DEPTH_MAX: u32 = 32;

/// What a document says, whoever reads it. Numbers are text, for their range differs.
#[derive(Clone, Debug, PartialEq)]
enum Plain {
    Int(String),
    Bytes(Vec<u8>),
    List(Vec<Plain>),
    Dict(BTreeMap<Vec<u8>, Plain>),
}

fn ours(bytes: &[u8]) -> Result<Plain, BencodeError> {
    fn plain(value: Value<'_>) -> Plain {
        if let Some(int) = value.as_int() {
            Plain::Int(int.to_string())
        } else if let Some(bytes) = value.as_bytes() {
            Plain::Bytes(bytes.to_vec())
        } else if let Some(elements) = value.as_list() {
            Plain::List(elements.map(plain).collect())
        } else {
            let entries = value.as_dict().into_iter().flatten();
            Plain::Dict(entries.map(|(key, value)| (key.to_vec(), plain(value))).collect())
        }
    }
    let limits = Limits { depth_max: DEPTH_MAX, ..Limits::MESSAGE };
    Document::parse(bytes, limits, KeyOrder::Strict).map(|document| plain(document.root()))
}

fn with_bendy(bytes: &[u8]) -> Option<Plain> {
    fn plain(object: Object<'_, '_>) -> Option<Plain> {
        match object {
            Object::Integer(digits) => Some(Plain::Int(digits.to_owned())),
            Object::Bytes(bytes) => Some(Plain::Bytes(bytes.to_vec())),
            Object::List(mut list) => {
                let mut elements = Vec::new();
                while let Some(object) = list.next_object().ok()? {
                    elements.push(plain(object)?);
                }
                Some(Plain::List(elements))
            }
            Object::Dict(mut dict) => {
                let mut entries = BTreeMap::new();
                while let Some((key, object)) = dict.next_pair().ok()? {
                    entries.insert(key.to_vec(), plain(object)?);
                }
                Some(Plain::Dict(entries))
            }
        }
    }
    let mut decoder = Decoder::new(bytes).with_max_depth(DEPTH_MAX as usize);
    let value = plain(decoder.next_object().ok()??)?;
    matches!(decoder.next_object(), Ok(None)).then_some(value)
}

/// Whether `bendy` takes the whole of the bytes for one canonical value, of any depth.
pub fn bendy_takes(bytes: &[u8]) -> bool {
    with_bendy(bytes).is_some()
}

fn with_bt_bencode(bytes: &[u8]) -> Option<Plain> {
    fn plain(value: BtValue) -> Plain {
        match value {
            BtValue::Int(int) => Plain::Int(int.to_string()),
            BtValue::ByteStr(bytes) => Plain::Bytes(bytes.into_vec()),
            BtValue::List(elements) => Plain::List(elements.into_iter().map(plain).collect()),
            BtValue::Dict(entries) => Plain::Dict(
                entries.into_iter().map(|(key, value)| (key.into_vec(), plain(value))).collect(),
            ),
        }
    }
    bt_bencode::from_slice(bytes).ok().map(plain)
}

/// A document, half of them damaged.
fn document(random: &mut Seeded) -> Vec<u8> {
    fn node(random: &mut Seeded, depth: u32) -> Node {
        match random.below(if depth == 0 { 2 } else { 4 }) {
            0 => {
                let bits = random.below(64);
                Node::int((random.next_u64() >> bits) as i64)
            }
            1 => {
                let len = random.below(12) as usize;
                Node::Bytes(random.bytes(len))
            }
            2 => Node::List((0..random.below(5)).map(|_| node(random, depth - 1)).collect()),
            _ => {
                let mut dict = Node::Dict(Vec::new());
                for _ in 0..random.below(5) {
                    let len = random.below(4) as usize;
                    let (key, value) = (random.bytes(len), node(random, depth - 1));
                    dict.set(&key, value);
                }
                dict
            }
        }
    }
    let mut document =
        if random.below(4) == 0 { generate::torrent(random) } else { node(random, 5) };
    match random.below(4) {
        0 => {
            let mut bytes = document.encode();
            mutate::bytes(&mut bytes, random);
            bytes
        }
        1 => {
            mutate::structure(&mut document, random);
            document.encode()
        }
        _ => document.encode(),
    }
}

type Read = fn(&[u8]) -> Option<Plain>;
/// Why a crate may take what we refuse, or the other way round.
type Class = fn(&BencodeError) -> Option<&'static str>;

fn agree(read: Read, lenient: Class) -> Result<(), Failed> {
    let cases = setting("RINGSEED_DIFFERENTIAL_CASES", CASES);
    let mut random = Seeded::new(setting("RINGSEED_DIFFERENTIAL_SEED", 0x5eed));
    let mut by_class: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut taken = 0;
    for case in 0..cases {
        let bytes = document(&mut random);
        let (ours, theirs) = (ours(&bytes), read(&bytes));
        let class = match (&ours, &theirs) {
            (Ok(a), Some(b)) if a == b => {
                taken += 1;
                continue;
            }
            (Err(_), None) => continue,
            (Err(error), Some(_)) => lenient(error),
            _ => None,
        };
        let shown = || {
            format!("case {case} {}\n  ours: {ours:?}\n  theirs: {theirs:?}", bytes.escape_ascii())
        };
        *by_class.entry(class.ok_or_else(shown)?).or_default() += 1;
    }
    println!("{cases} documents: both take {taken}; differences by class: {by_class:?}");
    if taken * 5 < cases { Err("too few documents that both take".into()) } else { Ok(()) }
}

/// `bendy` refuses all that is not canonical, as we do. Its integers have no bound (BEP 3 sets none); ours have
/// 64 bits, for no value of any BEP needs more.
pub fn agrees_with_bendy() -> Result<(), Failed> {
    agree(with_bendy, |error| match error {
        BencodeError::NumberRange { .. } => Some("numbers past 64 bits"),
        _ => None,
    })
}

/// `bt_bencode` puts values into maps of its own and does not look at the order of keys, nor at numbers that are
/// not canonical (BEP 3, bencoding, has both invalid).
pub fn agrees_with_bt_bencode() -> Result<(), Failed> {
    agree(with_bt_bencode, |error| match error {
        BencodeError::UnsortedKey { .. } => Some("keys out of order"),
        BencodeError::DuplicateKey { .. } => Some("keys twice"),
        BencodeError::NotCanonical { .. } => Some("leading zeros"),
        BencodeError::NumberRange { .. } => Some("numbers past 64 bits"),
        _ => None,
    })
}
