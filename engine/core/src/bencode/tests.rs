use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits::MESSAGE;

fn parse(bytes: &[u8]) -> Result<Document<'_>, BencodeError> {
    Document::parse(bytes, LIMITS, KeyOrder::Strict)
}

/// A tree that owns its parts: what the tests build and compare.
#[derive(Clone, Debug, PartialEq)]
enum Tree {
    Int(i64),
    Bytes(Vec<u8>),
    List(Vec<Tree>),
    Dict(BTreeMap<Vec<u8>, Tree>),
}

fn tree_of(value: Value<'_>) -> Tree {
    if let Some(int) = value.as_int() {
        Tree::Int(int)
    } else if let Some(bytes) = value.as_bytes() {
        Tree::Bytes(bytes.to_vec())
    } else if let Some(elements) = value.as_list() {
        Tree::List(elements.map(tree_of).collect())
    } else {
        let entries = value.as_dict().unwrap();
        Tree::Dict(entries.map(|(key, value)| (key.to_vec(), tree_of(value))).collect())
    }
}

fn encode(tree: &Tree, out: &mut Encoder) {
    match tree {
        Tree::Int(int) => drop(out.int(*int)),
        Tree::Bytes(bytes) => drop(out.bytes(bytes)),
        Tree::List(elements) => {
            out.list();
            elements.iter().for_each(|element| encode(element, out));
            out.end();
        }
        Tree::Dict(entries) => {
            out.dict();
            for (key, value) in entries {
                out.key(key);
                encode(value, out);
            }
            out.end();
        }
    }
}

fn encoded(tree: &Tree) -> Vec<u8> {
    let mut out = Encoder::new();
    encode(tree, &mut out);
    out.finish()
}

/// The reference: short, recursive, by the words of BEP 3, and sharing no line with the decoder.
/// Gives the value and what is behind it.
fn reference(input: &[u8], depth: u32) -> Option<(Tree, &[u8])> {
    fn canonical(digits: &[u8]) -> Option<&str> {
        let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        (plain && (digits == b"0" || digits[0] != b'0'))
            .then(|| std::str::from_utf8(digits).unwrap())
    }
    match *input.first()? {
        b'i' => {
            let end = input.iter().position(|&byte| byte == b'e')?;
            let text = std::str::from_utf8(&input[1..end]).ok()?;
            let digits = text.strip_prefix('-').unwrap_or(text);
            canonical(digits.as_bytes())?;
            (text != "-0").then_some((Tree::Int(text.parse().ok()?), &input[end + 1..]))
        }
        open @ (b'l' | b'd') => {
            let mut rest = &input[1..];
            let mut parts = Vec::new();
            if depth == 0 {
                return None;
            }
            while *rest.first()? != b'e' {
                let (part, behind) = reference(rest, depth - 1)?;
                parts.push(part);
                rest = behind;
            }
            if open == b'l' {
                return Some((Tree::List(parts), &rest[1..]));
            }
            let mut dict = BTreeMap::new();
            for pair in parts.chunks(2) {
                let [Tree::Bytes(key), value] = pair else { return None };
                if dict.last_key_value().is_some_and(|(last, _)| last >= key) {
                    return None;
                }
                dict.insert(key.clone(), value.clone());
            }
            Some((Tree::Dict(dict), &rest[1..]))
        }
        _ => {
            let colon = input.iter().position(|&byte| byte == b':')?;
            let len: usize = canonical(&input[..colon])?.parse().ok()?;
            let rest = &input[colon + 1..];
            (len <= rest.len()).then(|| (Tree::Bytes(rest[..len].to_vec()), &rest[len..]))
        }
    }
}

fn reference_whole(input: &[u8]) -> Option<Tree> {
    reference(input, LIMITS.depth_max).and_then(|(tree, rest)| rest.is_empty().then_some(tree))
}

#[test]
fn spans_are_exact() {
    let bytes = b"d4:infod6:lengthi42e4:name3:abce5:otherli-7e0:ee";
    let document = parse(bytes).unwrap();
    let info = document.root().get(b"info").unwrap();
    assert_eq!(info.raw(), b"d6:lengthi42e4:name3:abce");
    assert_eq!(info.span(), 7..7 + info.raw().len());
    assert_eq!(info.get(b"length").unwrap().as_u64(), Some(42));
    assert_eq!(info.get(b"name").unwrap().as_bytes(), Some(&b"abc"[..]));
    let other: Vec<_> = document.root().get(b"other").unwrap().as_list().unwrap().collect();
    assert_eq!((other[0].as_int(), other[0].as_u64()), (Some(-7), None));
    assert_eq!((other[1].as_bytes(), other[1].as_int()), (Some(&b""[..]), None));
}

#[test]
fn what_is_not_canonical_is_refused() {
    use BencodeError as E;
    let cases: &[(&[u8], E)] = &[
        (b"", E::Truncated { offset: 0 }),
        (b"i01e", E::NotCanonical { offset: 1 }),
        (b"i-0e", E::NotCanonical { offset: 0 }),
        (b"i-01e", E::NotCanonical { offset: 2 }),
        (b"ie", E::Unexpected { byte: b'e', offset: 1 }),
        (b"i-e", E::Unexpected { byte: b'e', offset: 2 }),
        (b"i+1e", E::Unexpected { byte: b'+', offset: 1 }),
        (b"i9223372036854775808e", E::NumberRange { offset: 0 }),
        (b"i99999999999999999999999e", E::NumberRange { offset: 1 }),
        (b"03:abc", E::NotCanonical { offset: 0 }),
        (b"00:", E::NotCanonical { offset: 0 }),
        (b"4:abc", E::StringPastEnd { offset: 0, claimed: 4, left: 3 }),
        (b"99999999999:", E::StringPastEnd { offset: 0, claimed: 99_999_999_999, left: 0 }),
        (b"99999999999999999999999:", E::NumberRange { offset: 0 }),
        (b"-1:a", E::Unexpected { byte: b'-', offset: 0 }),
        (b"e", E::Unexpected { byte: b'e', offset: 0 }),
        (b"x", E::Unexpected { byte: b'x', offset: 0 }),
        (b"l", E::Truncated { offset: 1 }),
        (b"i1ei2e", E::Trailing { offset: 3 }),
        (b"di1ei2ee", E::KeyNotString { offset: 1 }),
        (b"dlei2ee", E::KeyNotString { offset: 1 }),
        (b"d1:ae", E::KeyWithoutValue { offset: 3 }),
        (b"d1:bi1e1:ai2ee", E::UnsortedKey { offset: 7 }),
        (b"d1:ai1e1:ai2ee", E::DuplicateKey { offset: 7 }),
    ];
    for (bytes, error) in cases {
        let found = parse(bytes).map(|_| ());
        assert_eq!(found, Err(*error), "{}", String::from_utf8_lossy(bytes));
        assert_eq!(reference_whole(bytes), None);
    }
    for text in ["i9223372036854775807e", "i-9223372036854775808e", "i0e", "i-1e", "0:", "le", "de"]
    {
        assert_eq!(
            parse(text.as_bytes()).map(|it| tree_of(it.root())).ok(),
            reference_whole(text.as_bytes())
        );
        assert!(reference_whole(text.as_bytes()).is_some());
    }
}

#[test]
fn lenient_order_reports_the_first_and_still_refuses_duplicates() {
    let lenient =
        |bytes| Document::parse(bytes, LIMITS, KeyOrder::Lenient).map(|it| it.first_unsorted());
    assert_eq!(lenient(b"d1:ai1e1:bi2ee"), Ok(None));
    assert_eq!(lenient(b"d1:bi1e1:ai2e1:0i1ee"), Ok(Some(7)));
    assert_eq!(lenient(b"d1:bi1e1:ai2e1:bi1ee"), Err(BencodeError::DuplicateKey { offset: 0 }));
    assert_eq!(lenient(b"d1:bi1e1:ad1:zi1e1:yi1eee"), Ok(Some(7)));
}

#[test]
fn deep_nesting_ends_at_the_limit_without_recursion() {
    for (open, close) in [("l", "e"), ("d1:a", "e")] {
        let deep = |depth: usize| (open.repeat(depth), close.repeat(depth));
        let (head, tail) = deep(10_000);
        assert!(matches!(parse(head.as_bytes()), Err(BencodeError::TooDeep { depth_max: 32, .. })));
        let unlimited = Limits { depth_max: u32::MAX, ..LIMITS };
        let whole = if open == "l" { head + &tail } else { head + "le" + &tail };
        assert!(Document::parse(whole.as_bytes(), unlimited, KeyOrder::Strict).is_ok());
    }
    let (ok, too_deep) = ("l".repeat(32) + &"e".repeat(32), "l".repeat(33) + &"e".repeat(33));
    assert!(parse(ok.as_bytes()).is_ok());
    assert_eq!(
        parse(too_deep.as_bytes()).map(|_| ()),
        Err(BencodeError::TooDeep { offset: 32, depth_max: 32 })
    );
    // Ten megabytes of openings end after 32 nodes.
    assert!(parse(&vec![b'l'; 10_000_000]).is_err());
}

#[test]
fn tokens_and_length_are_limited() {
    let limits = Limits { len_max_bytes: 10, depth_max: 32, token_max: 3 };
    let limited = |bytes| Document::parse(bytes, limits, KeyOrder::Strict).map(|_| ());
    assert_eq!(limited(b"li1ei2ee"), Ok(()));
    assert_eq!(limited(b"llelelee"), Err(BencodeError::TooManyTokens { offset: 5, token_max: 3 }));
    assert_eq!(
        limited(b"d0:0:0:0:e"),
        Err(BencodeError::TooManyTokens { offset: 5, token_max: 3 })
    );
    assert_eq!(
        limited(b"9:123456789"),
        Err(BencodeError::TooLong { len_bytes: 11, len_max_bytes: 10 })
    );
}

#[test]
fn what_is_behind_a_value_is_left() {
    let document = Document::parse_prefix(b"d1:ai1eerest", LIMITS, KeyOrder::Strict).unwrap();
    assert_eq!(document.root().span(), 0..8);
}

#[test]
#[should_panic(expected = "keys out of order")]
fn the_encoder_refuses_unsorted_keys() {
    Encoder::new().dict().key(b"b").int(1).key(b"a");
}

#[test]
#[should_panic(expected = "without a value")]
fn the_encoder_refuses_a_lonely_key() {
    Encoder::new().dict().key(b"b").end();
}

fn trees() -> impl Strategy<Value = Tree> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..20);
    let leaf = prop_oneof![any::<i64>().prop_map(Tree::Int), bytes().prop_map(Tree::Bytes)];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        let dict = proptest::collection::btree_map(bytes(), inner.clone(), 0..6);
        prop_oneof![
            proptest::collection::vec(inner, 0..6).prop_map(Tree::List),
            dict.prop_map(Tree::Dict)
        ]
    })
}

proptest! {
    /// What was encoded decodes to itself, every cut of it is refused, and so is anything behind.
    #[test]
    fn round_trip(tree in trees()) {
        let bytes = encoded(&tree);
        prop_assert_eq!(tree_of(parse(&bytes).unwrap().root()), tree.clone());
        prop_assert_eq!(reference_whole(&bytes), Some(tree));
        for cut in 0..bytes.len() {
            prop_assert!(parse(&bytes[..cut]).is_err());
        }
        let trailing = [&bytes[..], b"e"].concat();
        prop_assert_eq!(parse(&trailing).map(|_| ()), Err(BencodeError::Trailing { offset: bytes.len() }));
    }

    /// Bytes drawn from the alphabet of the format: both decoders say the same.
    #[test]
    fn agrees_with_the_reference(bytes in "[ilde0-3:a\\-]{0,24}") {
        let found = parse(bytes.as_bytes()).ok().map(|document| tree_of(document.root()));
        prop_assert_eq!(found, reference_whole(bytes.as_bytes()));
    }

    /// One byte of a good document changed: both decoders still say the same.
    #[test]
    fn agrees_with_the_reference_after_a_flip(tree in trees(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encoded(&tree);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let found = parse(&bytes).ok().map(|document| tree_of(document.root()));
        prop_assert_eq!(found, reference_whole(&bytes));
    }

    /// Whatever decodes strictly is canonical: encoding it gives the same bytes.
    #[test]
    fn strict_means_canonical(bytes in "[ilde0-3:a\\-]{0,24}") {
        if let Ok(document) = parse(bytes.as_bytes()) {
            prop_assert_eq!(encoded(&tree_of(document.root())), bytes.as_bytes());
        }
    }
}
