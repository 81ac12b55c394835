//! The file of leaves, after rot, a tear, or a mix-up of chunks.

use ringseed_core::geometry::{FileSpan, Geometry, Kind};
use ringseed_core::leaf_sidecar::{CHUNK_LEN, LeafSidecar};
use ringseed_core::merkle::Hash;

use crate::source::{Source, noise32};

/// A chunk gives the leaves that were put into it, or nothing.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let spans: Vec<FileSpan> = (0..1 + source.below(4))
        .map(|_| {
            let leaves = [0, 1, 511, 512, 700, 1_100][source.below(6)];
            FileSpan { len_bytes: leaves * 16_384, pad: false }
        })
        .collect();
    let Ok(geometry) = Geometry::new(65_536, &spans, Kind::V2) else { return };
    let info_hash = noise32(source.byte().into());
    let sidecar = LeafSidecar::new(info_hash, &geometry).expect("a v2 torrent has leaves");
    let truth = |chunk: u32| -> Vec<Hash> {
        let first = u64::from(chunk) << 32;
        (0..sidecar.leaves_in_chunk(chunk)).map(|at| noise32(first | u64::from(at))).collect()
    };
    let last_file = geometry.files().rfind(|&file| geometry.file_len(file) > 0);
    if let Some(file) = last_file {
        let leaf = geometry.file_len(file) / 16_384 - 1;
        let (chunk, place) = sidecar.place(file, leaf);
        assert_eq!(chunk, sidecar.chunk_count() - 1);
        assert_eq!(place, sidecar.leaves_in_chunk(chunk) - 1, "the last leaf has the last place");
    }

    let mut header = sidecar.encode_header();
    assert_eq!(sidecar.check_header(&header), Ok(()));
    let place = source.below(64);
    let with = source.byte();
    header[place] ^= with;
    assert_eq!(sidecar.check_header(&header).is_ok(), with == 0, "a rotten header");

    let chunk = source.below(sidecar.chunk_count() as usize) as u32;
    let mut bytes = vec![0; CHUNK_LEN];
    sidecar.encode_chunk(chunk, &truth(chunk), &mut bytes);
    let before = bytes.clone();
    match source.below(6) {
        0 => {
            let at = source.below(CHUNK_LEN);
            bytes[at] ^= source.byte();
        }
        1 => bytes[source.below(CHUNK_LEN)..].fill(0),
        2 => bytes.truncate(source.below(CHUNK_LEN + 1)),
        3 => {
            // A sector of another chunk, whole or in part: writes that went astray.
            let other = source.below(sidecar.chunk_count() as usize) as u32;
            let mut others = vec![0; CHUNK_LEN];
            sidecar.encode_chunk(other, &truth(other), &mut others);
            let from = source.below(CHUNK_LEN / 512 + 1) * 512;
            bytes[..from].copy_from_slice(&others[..from]);
        }
        4 => {
            let (at, len) = (source.below(CHUNK_LEN), source.below(1024));
            let end = CHUNK_LEN.min(at + len);
            bytes[at..end].copy_from_slice(&vec![source.byte(); end - at]);
        }
        _ => {
            let junk = source.take(CHUNK_LEN);
            bytes[..junk.len()].copy_from_slice(junk);
        }
    }
    for (asked, truth) in [(chunk, truth(chunk))] {
        match sidecar.decode_chunk(asked, &bytes) {
            Ok(leaves) => {
                assert_eq!(leaves, truth, "leaves that were never written");
                assert_eq!(bytes, before, "a second spelling");
            }
            Err(_) => assert_ne!(bytes, before, "what was written is refused"),
        }
    }
    for other in (0..sidecar.chunk_count()).filter(|other| *other != chunk).take(2) {
        assert!(sidecar.decode_chunk(other, &before).is_err(), "a chunk in another's place");
    }
}
