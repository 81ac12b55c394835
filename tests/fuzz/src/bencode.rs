//! The bencode decoder beside a naive one, and back through the encoder.

use ringseed_core::bencode::{BencodeError, Document, Encoder, KeyOrder, Limits, Value};

/// Roomy, but with every limit in reach of an input of 4 KiB.
const LIMITS: Limits = Limits { len_max_bytes: 4096, depth_max: 12, token_max: 200 };

/// What a value means.
#[derive(Debug, PartialEq, Eq)]
enum Tree<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    List(Vec<Tree<'a>>),
    Dict(Vec<(&'a [u8], Tree<'a>)>),
}

/// The decoder that one would write in an evening: it recurses and knows no limits but those of its
/// input's length, which is why it is not the one in the engine.
struct Naive<'a> {
    rest: &'a [u8],
    depth_max: u32,
    token_count: u32,
    is_sorted: bool,
    has_twins: bool,
}

impl<'a> Naive<'a> {
    fn value(&mut self, depth: u32) -> Option<Tree<'a>> {
        self.depth_max = self.depth_max.max(depth);
        self.token_count += 1;
        match *self.rest.first()? {
            b'i' => {
                let end = self.rest.iter().position(|&byte| byte == b'e')?;
                let text = std::str::from_utf8(&self.rest[1..end]).ok()?;
                let value: i64 = text.parse().ok()?;
                // Only one spelling: no plus, no leading zero, no minus zero.
                (value.to_string() == text).then_some(())?;
                self.rest = &self.rest[end + 1..];
                Some(Tree::Int(value))
            }
            b'l' => {
                self.rest = &self.rest[1..];
                let mut list = Vec::new();
                while *self.rest.first()? != b'e' {
                    list.push(self.value(depth + 1)?);
                }
                self.rest = &self.rest[1..];
                self.depth_max = self.depth_max.max(depth + 1);
                Some(Tree::List(list))
            }
            b'd' => {
                self.rest = &self.rest[1..];
                let mut dict = Vec::new();
                while *self.rest.first()? != b'e' {
                    self.token_count += 1;
                    let key = self.string()?;
                    dict.push((key, self.value(depth + 1)?));
                }
                self.rest = &self.rest[1..];
                self.depth_max = self.depth_max.max(depth + 1);
                self.is_sorted &= dict.is_sorted_by(|a, b| a.0 < b.0);
                let mut keys: Vec<&[u8]> = dict.iter().map(|(key, _)| *key).collect();
                keys.sort_unstable();
                self.has_twins |= keys.windows(2).any(|pair| pair[0] == pair[1]);
                Some(Tree::Dict(dict))
            }
            _ => self.string().map(Tree::Bytes),
        }
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let colon = self.rest.iter().position(|&byte| byte == b':')?;
        let text = std::str::from_utf8(&self.rest[..colon]).ok()?;
        let len: u64 = text.parse().ok()?;
        (len.to_string() == text).then_some(())?;
        let rest = &self.rest[colon + 1..];
        let (string, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        self.rest = rest;
        Some(string)
    }
}

fn tree_of<'a>(value: Value<'a>) -> Tree<'a> {
    if let Some(int) = value.as_int() {
        Tree::Int(int)
    } else if let Some(bytes) = value.as_bytes() {
        Tree::Bytes(bytes)
    } else if let Some(list) = value.as_list() {
        Tree::List(list.map(tree_of).collect())
    } else {
        let dict = value.as_dict().expect("a value has one of four types");
        Tree::Dict(dict.map(|(key, value)| (key, tree_of(value))).collect())
    }
}

fn encode(tree: &Tree<'_>, out: &mut Encoder) {
    match tree {
        Tree::Int(int) => drop(out.int(*int)),
        Tree::Bytes(bytes) => drop(out.bytes(bytes)),
        Tree::List(list) => {
            out.list();
            list.iter().for_each(|value| encode(value, out));
            out.end();
        }
        Tree::Dict(dict) => {
            out.dict();
            dict.iter().for_each(|(key, value)| encode(value, out.key(key)));
            out.end();
        }
    }
}

/// Both decoders give one verdict and one meaning; what is canonical comes out of the encoder as it
/// went in.
pub fn run(data: &[u8]) {
    let mut naive =
        Naive { rest: data, depth_max: 0, token_count: 0, is_sorted: true, has_twins: false };
    let expected = naive.value(0);
    let is_whole = naive.rest.is_empty();
    let fits = naive.depth_max <= LIMITS.depth_max
        && naive.token_count <= LIMITS.token_max
        && data.len() <= LIMITS.len_max_bytes;

    let lenient = Document::parse(data, LIMITS, KeyOrder::Lenient);
    let strict = Document::parse(data, LIMITS, KeyOrder::Strict);
    let prefix = Document::parse_prefix(data, LIMITS, KeyOrder::Lenient);
    let is_good = expected.is_some() && fits && !naive.has_twins;
    assert_eq!(lenient.is_ok(), is_good && is_whole, "{lenient:?}");
    assert_eq!(strict.is_ok(), is_good && is_whole && naive.is_sorted, "{strict:?}");
    assert_eq!(prefix.is_ok(), is_good, "{prefix:?}");
    if let (Err(error), Some(_), true) = (&lenient, &expected, is_whole && !naive.has_twins) {
        let is_limit = matches!(
            error,
            BencodeError::TooDeep { .. }
                | BencodeError::TooManyTokens { .. }
                | BencodeError::TooLong { .. }
        );
        assert!(is_limit, "{error}");
    }

    let (Ok(prefix), Some(expected)) = (prefix, expected) else { return };
    let root = prefix.root();
    assert_eq!(root.span(), 0..data.len() - naive.rest.len());
    assert_eq!(tree_of(root), expected);
    assert_eq!(prefix.first_unsorted().is_none(), naive.is_sorted);
    if naive.is_sorted {
        let mut out = Encoder::new();
        encode(&expected, &mut out);
        assert_eq!(out.finish(), root.raw(), "a canonical value has one spelling");
    }
}
