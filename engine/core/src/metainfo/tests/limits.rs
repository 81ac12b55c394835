//! Every limit, from both sides: what just fits is taken, one more is refused.

use super::*;
use crate::geometry::{
    FILE_COUNT_MAX, GeometryError, PIECE_COUNT_MAX, PIECE_LEN_MAX, TOTAL_LEN_MAX,
};

/// A v1 info dictionary of one file, with `filler` bytes of something that means nothing.
fn one_file(len_bytes: u64, piece_len: u64, filler: usize) -> Vec<u8> {
    let piece_count = len_bytes.div_ceil(piece_len) as usize;
    let mut out = Encoder::new();
    out.dict();
    if filler > 0 {
        out.key(b"filler").bytes(&vec![0; filler]);
    }
    out.key(b"length").int(len_bytes).key(b"name").bytes(b"t");
    out.key(b"piece length").int(piece_len).key(b"pieces").bytes(&vec![1; 20 * piece_count]);
    out.end();
    out.finish()
}

/// A v2 info dictionary of one file of at most one piece.
fn one_v2_file(len_bytes: u64, piece_len: u64) -> Vec<u8> {
    let mut out = Encoder::new();
    out.dict().key(b"file tree").dict().key(b"t").dict().key(b"").dict();
    out.key(b"length").int(len_bytes).key(b"pieces root").bytes(&[7; 32]).end().end().end();
    out.key(b"meta version").int(2).key(b"name").bytes(b"t").key(b"piece length").int(piece_len);
    out.end();
    out.finish()
}

#[test]
fn an_info_dictionary_has_48_mib() {
    const LEN: usize = 48 * 1024 * 1024;
    let overhead = one_file(5, 1024, 10_000_000).len() - 10_000_000;
    let fits = one_file(5, 1024, LEN - overhead);
    assert_eq!(fits.len(), LEN);
    let torrent = [b"d4:info", &fits[..], b"e"].concat();
    assert!(Info::from_bytes(fits).is_ok() && Metainfo::from_bytes(torrent).is_ok());
    let past = one_file(5, 1024, LEN - overhead + 1);
    let torrent = [b"d4:info", &past[..], b"e"].concat();
    let too_long = MetainfoError::InfoTooLong { len_bytes: LEN + 1 };
    assert_eq!(Info::from_bytes(past).err(), Some(too_long.clone()));
    assert_eq!(Metainfo::from_bytes(torrent).err(), Some(too_long));
}

#[test]
fn a_torrent_file_has_128_mib() {
    const LEN: usize = 128 * 1024 * 1024;
    let torrent = |comment_len: usize| {
        let head = format!("d7:comment{comment_len}:").into_bytes();
        let info = one_file(5, 1024, 0);
        [&head[..], &vec![0xff; comment_len], b"4:info", &info, b"e"].concat()
    };
    let comment_len = LEN - (torrent(100_000_000).len() - 100_000_000);
    let fits = torrent(comment_len);
    assert_eq!(fits.len(), LEN);
    assert!(Metainfo::from_bytes(fits).is_ok());
    let (len_bytes, len_max_bytes) = (LEN + 1, LEN);
    let too_long = BencodeError::TooLong { len_bytes, len_max_bytes };
    assert_eq!(Metainfo::from_bytes(torrent(comment_len + 1)).err(), Some(too_long.into()));
}

#[test]
fn a_torrent_has_two_mebi_pieces() {
    assert_eq!(PIECE_COUNT_MAX, 2_097_152);
    let take = |pieces: u64| Info::from_bytes(one_file(1024 * pieces, 1024, 0));
    let info = take(2_097_152).unwrap();
    assert_eq!(info.geometry().piece_count(), 2_097_152);
    let last = info.geometry().pieces().next_back().unwrap();
    assert_eq!(info.v1_piece_hash(last), Some(&[1; 20]));
    let count = 2_097_153;
    assert_eq!(take(count).err(), Some(GeometryError::TooManyPieces { count }.into()));
}

#[test]
fn a_torrent_has_a_million_files() {
    assert_eq!(FILE_COUNT_MAX, 1_000_000);
    let take = |count: usize| {
        let mut bytes = b"d5:filesl".to_vec();
        for at in 0..count {
            bytes.extend(format!("d6:lengthi1e4:pathl7:{at:07}ee").into_bytes());
        }
        let piece_count = count.div_ceil(16_384);
        let tail = format!("e4:name1:t12:piece lengthi16384e6:pieces{}:", 20 * piece_count);
        bytes.extend(tail.as_bytes());
        bytes.extend(vec![1; 20 * piece_count]);
        bytes.push(b'e');
        Info::from_bytes(bytes)
    };
    let info = take(1_000_000).unwrap();
    assert_eq!(info.files().len(), 1_000_000);
    // Names are found by their place, wherever it is.
    for at in [0, 15, 16, 17, 31, 999_983, 999_999] {
        let file = info.file(info.geometry().file(at).unwrap());
        assert_eq!(file.path().as_str(), format!("t/{at:07}"));
    }
    let count = 1_000_001;
    assert_eq!(take(count).err(), Some(GeometryError::TooManyFiles { count }.into()));
}

#[test]
fn a_path_has_32_components() {
    let list = |depth: usize| {
        let path = "1:d".repeat(depth);
        let rest = "e4:name1:t12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaae";
        Info::parse(format!("d5:filesld6:lengthi1e4:pathl{path}ee{rest}").as_bytes())
    };
    // The torrent's name is the first.
    let info = list(31).unwrap();
    assert_eq!(info.files().next().map(|file| file.path().components().count()), Some(32));
    assert_eq!(list(32).err(), Some(NameError::TooDeep.into()));
}

#[test]
fn lengths_have_a_range() {
    let len = |len_bytes| Info::from_bytes(one_file(len_bytes, u64::from(PIECE_LEN_MAX), 0));
    assert_eq!(len(1).map(|info| info.geometry().total_len()), Ok(1));
    assert_eq!(TOTAL_LEN_MAX, 1 << 46);
    assert_eq!(len(1 << 46).map(|info| info.geometry().piece_count()), Ok(1 << 19));
    let too_long = GeometryError::TooLong { file_index: 0 };
    assert_eq!(len((1 << 46) + 1).err(), Some(too_long.into()));
    assert_eq!(len(0).err(), Some(GeometryError::Empty.into()));
}

#[test]
fn pieces_have_a_range() {
    const MIB: u64 = 1024 * 1024;
    let v1 = |piece_len| Info::from_bytes(one_file(1000, piece_len, 0)).is_ok();
    for piece_len in [1024, 1025, 16_384, 99_991, MIB - 1, MIB, 128 * MIB - 1, 128 * MIB] {
        assert!(v1(piece_len), "{piece_len}");
    }
    let v2 = |piece_len| Info::from_bytes(one_v2_file(1000, piece_len)).is_ok();
    for exponent in 14..=27 {
        assert!(v2(1 << exponent) && !v2((1 << exponent) + 1) && !v2(3 << exponent), "{exponent}");
    }
    for piece_len in [1, 1023, 128 * MIB + 1, 256 * MIB, u64::from(u32::MAX) + 1025] {
        assert!(!v1(piece_len) && !v2(piece_len), "{piece_len}");
    }
    assert!(!v2(8192));
}

/// A document of nothing but openings, or of a million tiny values, costs what its bytes cost.
#[test]
fn values_have_a_number_and_a_depth() {
    let numbers = |count: usize| [b"l".as_slice(), &b"0:".repeat(count), b"e"].concat();
    let take = |bytes: &[u8]| Document::parse(bytes, LIMITS, KeyOrder::Lenient).map(|_| ());
    assert_eq!(take(&numbers(7_999_999)), Ok(()));
    let token_max = LIMITS.token_max;
    let too_many = BencodeError::TooManyTokens { offset: 1 + 2 * 7_999_999, token_max };
    assert_eq!(take(&numbers(8_000_000)), Err(too_many));
    let nested = |depth: usize| ["l".repeat(depth), "e".repeat(depth)].concat().into_bytes();
    assert_eq!(take(&nested(40)), Ok(()));
    let too_deep = BencodeError::TooDeep { offset: 40, depth_max: 40 };
    assert_eq!(take(&nested(41)), Err(too_deep));
}
