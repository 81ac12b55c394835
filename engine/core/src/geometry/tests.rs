use proptest::prelude::*;

use super::*;

fn file(len_bytes: u64) -> FileSpan {
    FileSpan { len_bytes, pad: false }
}

fn pad(len_bytes: u64) -> FileSpan {
    FileSpan { len_bytes, pad: true }
}

#[test]
fn piece_lengths_keep_the_rule_of_their_kind() {
    let build = |len: u64, kind| Geometry::new(len, &[file(5_000_000_000)], kind);
    let wrong = |len_bytes: u64, kind| Some(GeometryError::PieceLen { len_bytes, kind });
    for len in [0, 1, 1023, 128 * 1024 * 1024 + 1, u64::from(u32::MAX), u64::MAX] {
        assert_eq!(build(len, Kind::V1).err(), wrong(len, Kind::V1));
    }
    for len in [0, 8192, 16_383, 24_576, 256 * 1024 * 1024, u64::MAX] {
        assert_eq!(build(len, Kind::V2).err(), wrong(len, Kind::V2));
        assert_eq!(build(len, Kind::Hybrid).err(), wrong(len, Kind::Hybrid));
    }
    assert!(build(1_000_003, Kind::V1).is_ok());
    assert!(build(128 * 1024 * 1024, Kind::V2).is_ok());
}

#[test]
fn limits_hold_on_both_sides() {
    let count = |len| Geometry::new(1024, &[file(len)], Kind::V1).map(|made| made.piece_count());
    assert_eq!(count(2_097_152 * 1024), Ok(PIECE_COUNT_MAX));
    let too_many = GeometryError::TooManyPieces { count: 2_097_153 };
    assert_eq!(count(2_097_152 * 1024 + 1), Err(too_many));
    let total =
        |spans: &[FileSpan]| Geometry::new(128 << 20, spans, Kind::V1).map(|made| made.total_len());
    assert_eq!(total(&[file(TOTAL_LEN_MAX)]), Ok(TOTAL_LEN_MAX));
    let too_long = |file_index| Err(GeometryError::TooLong { file_index });
    assert_eq!(total(&[file(1), file(TOTAL_LEN_MAX)]), too_long(1));
    assert_eq!(total(&[file(1), pad(u64::MAX)]), too_long(1));
    assert_eq!(total(&[]), Err(GeometryError::Empty));
    assert_eq!(total(&[file(0), pad(100)]), Err(GeometryError::Empty));
    assert_eq!(total(&vec![file(1); FILE_COUNT_MAX]), Ok(FILE_COUNT_MAX as u64));
    let count = FILE_COUNT_MAX + 1;
    assert_eq!(total(&vec![file(1); count]), Err(GeometryError::TooManyFiles { count }));
}

/// Upper halves of ends are kept apart from the lower ones: where the one changes, neither may be off.
#[test]
fn ends_around_multiples_of_4_gib_are_found() {
    const STEP: u64 = 1 << 32;
    let ends = [
        0,
        1,
        STEP - 1,
        STEP - 1,
        STEP,
        STEP,
        STEP + 1,
        2 * STEP,
        5 * STEP - 1,
        5 * STEP,
        9 * STEP + 7,
        9 * STEP + 7,
        TOTAL_LEN_MAX - 1,
        TOTAL_LEN_MAX,
    ];
    let lens = ends.iter().scan(0, |before, &end| Some(end - std::mem::replace(before, end)));
    let spans: Vec<FileSpan> =
        lens.enumerate().map(|(at, len_bytes)| FileSpan { len_bytes, pad: at % 5 == 4 }).collect();
    let geometry = Geometry::new(128 << 20, &spans, Kind::V1).unwrap();
    let files = &geometry.files;
    for (at, (&end, span)) in (0..).zip(ends.iter().zip(&spans)) {
        assert_eq!((files.end(at), files.is_pad(at)), (end, span.pad), "file {at}");
    }
    for end in ends {
        for offset in [end.saturating_sub(1), end, end + 1] {
            let first = ends.iter().position(|&end| end > offset).unwrap_or(ends.len());
            assert_eq!(files.first_ending_behind(offset) as usize, first, "offset {offset}");
        }
    }
}

#[test]
fn alignment_is_implied_in_v2_and_demanded_in_hybrids() {
    let v2 = Geometry::new(32_768, &[file(1), file(0), file(40_000), file(2)], Kind::V2).unwrap();
    let offsets: Vec<u64> = v2.files().map(|file| v2.file_offset(file)).collect();
    assert_eq!(offsets, [0, 1, 32_768, 98_304]);
    assert_eq!((v2.total_len(), v2.payload_len(), v2.piece_count()), (131_072, 40_003, 4));
    let places: Vec<_> = v2
        .pieces()
        .map(|piece| v2.piece_in_file(piece).map(|(file, at)| (file.get(), at)))
        .collect();
    assert_eq!(places, [Some((0, 0)), Some((2, 0)), Some((2, 1)), Some((3, 0))]);
    assert_eq!(v2.piece_data_len(v2.piece(2).unwrap()), 40_000 - 32_768);

    // qBittorrent 4.5 (libtorrent 2.0) asks for a whole block at the end of the last file, as of any
    // other; we took that for a lie, so it never got the last piece of a v2 torrent.
    for piece in 0..4 {
        assert!(v2.block(piece, 0, BLOCK_LEN).is_ok(), "piece {piece}");
    }
    assert!(v2.block(3, 32_768 - 16_384, 16_385).is_err());

    let bad = Geometry::new(32_768, &[file(1), file(2)], Kind::Hybrid).err();
    assert_eq!(bad, Some(GeometryError::NotAligned { file_index: 1, offset_bytes: 1 }));
    assert!(Geometry::new(32_768, &[file(1), pad(32_767), file(2)], Kind::Hybrid).is_ok());
    let explicit = Geometry::new(32_768, &[file(1), pad(32_767)], Kind::V2).err();
    assert_eq!(explicit, Some(GeometryError::PadInV2 { file_index: 1 }));
}

/// Every triple of boundary values: a block is made exactly if it is inside its piece.
#[test]
fn no_triple_of_boundary_numbers_slips_through() {
    let geometry = Geometry::new(40_000, &[file(100_001)], Kind::V1).unwrap();
    let max = u32::MAX;
    let values =
        [0, 1, 2, 3, 16_383, 16_384, 16_385, 20_001, 39_999, 40_000, 1 << 31, max - 1, max];
    for piece in values {
        for begin in values {
            for len in values {
                let piece_len: u64 = if piece == 2 { 20_001 } else { 40_000 };
                let inside = piece < 3
                    && (1..=16_384).contains(&len)
                    && u64::from(begin) + u64::from(len) <= piece_len;
                let block = geometry.block(piece, begin, len);
                assert_eq!(block.is_ok(), inside, "{piece} {begin} {len}: {block:?}");
                let Ok(block) = block else { continue };
                assert_eq!((block.piece().get(), block.begin(), block.len()), (piece, begin, len));
                assert_eq!(geometry.extent_parts(block).map(|part| part.len).sum::<u32>(), len);
            }
        }
    }
    assert_eq!(geometry.piece(3), Err(GeometryError::PieceOutOfRange { raw: 3, count: 3 }));
}

#[test]
fn long_pieces_are_cut_and_short_ones_grouped() {
    let lens = |geometry: &Geometry| -> Vec<u32> {
        geometry.extents().map(|extent| geometry.extent_len(extent) / 1024).collect()
    };
    let cut = Geometry::new(600 * 1024, &[file(1_500 * 1024)], Kind::V1).unwrap();
    assert_eq!(lens(&cut), [256, 256, 88, 256, 256, 88, 256, 44]);
    let piece = cut.piece(1).unwrap();
    assert_eq!(cut.extents_of_piece(piece).map(ExtentIndex::get).collect::<Vec<_>>(), [3, 4, 5]);
    let grouped = Geometry::new(100 * 1024, &[file(450 * 1024)], Kind::V1).unwrap();
    assert_eq!(lens(&grouped), [200, 200, 50]);
    let extent = grouped.extent(1).unwrap();
    let pieces: Vec<u32> = grouped.pieces_of_extent(extent).map(PieceIndex::get).collect();
    assert_eq!(pieces, [2, 3]);
    assert_eq!(grouped.extent(3), Err(GeometryError::ExtentOutOfRange { raw: 3, count: 3 }));
    let exact = Geometry::new(256 * 1024, &[file(512 * 1024)], Kind::V1).unwrap();
    assert_eq!(lens(&exact), [256, 256]);
}

#[test]
fn an_oddly_cut_block_lies_in_two_extents() {
    let geometry = Geometry::new(1 << 20, &[file(1 << 20)], Kind::V2).unwrap();
    let block = geometry.block(0, EXTENT_LEN_MAX - 100, 16_384).unwrap();
    let parts: Vec<_> = geometry
        .extent_parts(block)
        .map(|part| (part.extent.get(), part.offset, part.len))
        .collect();
    assert_eq!(parts, [(0, EXTENT_LEN_MAX - 100, 100), (1, 0, 16_284)]);
    assert_eq!(geometry.leaf_of(block), None);
}

#[test]
fn blocks_end_where_the_file_ends_and_skip_pads() {
    let spans = [file(20_000), pad(65_536 - 20_000), file(16_384), pad(65_536 - 16_384)];
    let geometry = Geometry::new(65_536, &spans, Kind::Hybrid).unwrap();
    let blocks: Vec<_> = geometry
        .extents()
        .flat_map(|extent| geometry.blocks_of_extent(extent))
        .map(|block| (block.piece().get(), block.begin(), block.len()))
        .collect();
    assert_eq!(blocks, [(0, 0, 16_384), (0, 16_384, 3_616), (1, 0, 16_384)]);
    // A peer may ask up to the file's end, or run into the pad, or ask for nothing but pad.
    for (begin, len) in [(16_384, 3_616), (16_384, 16_384), (32_768, 16_384)] {
        assert!(geometry.block(0, begin, len).is_ok());
    }
    let leaf = |begin| {
        let block = geometry.block(0, begin, 1).unwrap();
        geometry.leaf_of(block).map(|(file, leaf)| (file.get(), leaf))
    };
    assert_eq!([leaf(0), leaf(16_384), leaf(32_768)], [Some((0, 0)), Some((0, 1)), None]);
}

#[test]
fn a_million_empty_files_at_one_place_do_not_slow_a_lookup() {
    let mut spans = vec![file(0); FILE_COUNT_MAX];
    spans[0] = file(100_000);
    spans[FILE_COUNT_MAX - 1] = file(100_000);
    let geometry = Geometry::new(65_536, &spans, Kind::V1).unwrap();
    for offset in 0..100_000 {
        let slices = geometry.slices(offset, 100_000).count();
        assert_eq!(slices, if offset == 0 { 1 } else { 2 });
    }
}

#[derive(Clone, Debug)]
struct Case {
    piece_len: u64,
    spans: Vec<FileSpan>,
    kind: Kind,
}

impl Case {
    /// `None` for a case without a byte of payload.
    fn geometry(&self) -> Option<Geometry> {
        let made = Geometry::new(self.piece_len, &self.spans, self.kind);
        let is_empty = self.spans.iter().all(|span| span.pad || span.len_bytes == 0);
        assert_eq!(made.as_ref().err(), is_empty.then_some(&GeometryError::Empty));
        made.ok()
    }
}

/// Torrents of every kind. Hybrids get the pads they need, with or without one at the tail.
fn cases() -> impl Strategy<Value = Case> {
    let len = prop_oneof![
        Just(0_u64),
        1_u64..100,
        1_u64..40_000,
        1_u64..900_000,
        Just(16_384),
        Just(262_144)
    ];
    let lens = proptest::collection::vec(len, 1..12);
    let pads = proptest::collection::vec(any::<bool>(), 12);
    let kind = prop_oneof![Just(Kind::V1), Just(Kind::V2), Just(Kind::Hybrid)];
    let v1_piece_len =
        prop_oneof![1024_u64..70_000, 1024_u64..900_000, Just(262_144), Just(65_536)];
    (lens, pads, kind, v1_piece_len, 14_u32..20, any::<bool>()).prop_map(
        |(lens, pads, kind, v1_piece_len, shift, tail)| {
            let piece_len = if kind == Kind::V1 { v1_piece_len } else { 1 << shift };
            let spans = match kind {
                Kind::V1 => {
                    let both = lens.iter().zip(pads);
                    both.map(|(&len_bytes, pad)| FileSpan { len_bytes, pad }).collect()
                }
                Kind::V2 => lens.iter().map(|&len| file(len)).collect(),
                Kind::Hybrid => {
                    let padded = lens
                        .iter()
                        .flat_map(|&len| [file(len), pad(len.next_multiple_of(piece_len) - len)]);
                    let count = if tail { 2 * lens.len() } else { 2 * lens.len() - 1 };
                    padded.take(count).collect()
                }
            };
            Case { piece_len, spans, kind }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every byte of every file is asked for exactly once, and blocks neither leave their extent
    /// nor begin anywhere but at a multiple of the block length.
    #[test]
    fn blocks_cover_every_byte_of_every_file_once(case in cases()) {
        let Some(geometry) = case.geometry() else { return Ok(()) };
        // The end of what was fetched of each file; blocks come in order, so order is coverage.
        let mut fetched = vec![0_u64; case.spans.len()];
        let mut by_extent = Vec::new();
        for extent in geometry.extents() {
            for block in geometry.blocks_of_extent(extent) {
                by_extent.push(block);
                let (piece, begin, len) = (block.piece(), block.begin(), block.len());
                prop_assert!(begin.is_multiple_of(BLOCK_LEN));
                prop_assert_eq!(geometry.block(piece.get(), begin, len), Ok(block));
                let (found, in_extent) = geometry.extent_of(block);
                let offset = geometry.block_offset(block);
                prop_assert_eq!(found, extent);
                prop_assert_eq!(geometry.extent_offset(extent) + u64::from(in_extent), offset);
                prop_assert_eq!(geometry.extent_parts(block).count(), 1);
                prop_assert!(geometry.pieces_of_extent(extent).any(|other| other == piece));
                prop_assert!(geometry.extents_of_piece(piece).any(|other| other == extent));
                let slices: Vec<_> = geometry.slices(offset, u64::from(len)).collect();
                prop_assert!(!slices[slices.len() - 1].pad);
                if case.kind != Kind::V1 {
                    prop_assert_eq!(slices.len(), 1);
                    let leaf = (slices[0].file_offset / u64::from(BLOCK_LEN)) as u32;
                    prop_assert_eq!(geometry.leaf_of(block), Some((slices[0].file, leaf)));
                }
                for slice in slices.iter().filter(|slice| !slice.pad) {
                    let at = slice.file.get() as usize;
                    prop_assert_eq!(fetched[at], slice.file_offset);
                    fetched[at] += slice.len;
                }
            }
        }
        let wanted = case.spans.iter().map(|span| if span.pad { 0 } else { span.len_bytes });
        prop_assert_eq!(fetched, wanted.collect::<Vec<u64>>());
        let by_piece = geometry.pieces().flat_map(|piece| geometry.blocks_of_piece(piece));
        prop_assert_eq!(by_piece.collect::<Vec<_>>(), by_extent);
    }

    /// Pieces and extents partition the torrent space, and so do the slices of any range.
    #[test]
    fn pieces_extents_and_slices_are_partitions(
        case in cases(), cut in 0_u64..4_000_000, len in 0_u64..900_000,
    ) {
        let Some(geometry) = case.geometry() else { return Ok(()) };
        let mut end = 0;
        for extent in geometry.extents() {
            prop_assert_eq!(geometry.extent_offset(extent), end);
            let len = geometry.extent_len(extent);
            prop_assert!((1..=EXTENT_LEN_MAX).contains(&len));
            prop_assert!(geometry.extent_data_len(extent) <= len);
            end += u64::from(len);
            for piece in geometry.pieces_of_extent(extent) {
                prop_assert!(geometry.extents_of_piece(piece).any(|other| other == extent));
            }
        }
        prop_assert_eq!(end, geometry.total_len());
        let pieces: u64 = geometry.pieces().map(|at| u64::from(geometry.piece_len(at))).sum();
        prop_assert_eq!(pieces, geometry.total_len());

        let offset = cut.min(geometry.total_len());
        let len = len.min(geometry.total_len() - offset);
        let mut at = offset;
        let mut last_was_pad = false;
        for slice in geometry.slices(offset, len) {
            prop_assert!(slice.len > 0 && !(slice.pad && last_was_pad));
            last_was_pad = slice.pad;
            if !slice.pad {
                prop_assert!(!geometry.is_pad(slice.file));
                prop_assert_eq!(geometry.file_offset(slice.file) + slice.file_offset, at);
                prop_assert!(slice.file_offset + slice.len <= geometry.file_len(slice.file));
            }
            at += slice.len;
        }
        prop_assert_eq!(at, offset + len);
    }

    /// In an aligned torrent every piece with data has its place in one file.
    #[test]
    fn pieces_of_files_and_files_of_pieces_agree(case in cases()) {
        prop_assume!(case.kind != Kind::V1);
        let Some(geometry) = case.geometry() else { return Ok(()) };
        for file in geometry.files().filter(|&file| !geometry.is_pad(file)) {
            for (in_file, piece) in geometry.pieces_of_file(file).enumerate() {
                prop_assert_eq!(geometry.piece_in_file(piece), Some((file, in_file as u32)));
            }
        }
        for piece in geometry.pieces() {
            let has_data = geometry.piece_data_len(piece) > 0;
            prop_assert_eq!(geometry.piece_in_file(piece).is_some(), has_data);
        }
    }
}

/// A client without v2 cuts the torrent into whole blocks; each of ours is the beginning of one of them,
/// and the rest of that one is pad.
#[test]
fn blocks_of_ours_and_whole_blocks_name_each_other() {
    let spans = [file(70_001), pad(61_071), file(65_536), file(5), pad(65_531), file(20_000)];
    let geometry = Geometry::new(65_536, &spans, Kind::Hybrid).unwrap();
    let mut whole_count = 0;
    for piece in geometry.pieces() {
        let ours: Vec<BlockRef> = geometry.blocks_of_piece(piece).collect();
        for begin in (0..geometry.piece_len(piece)).step_by(BLOCK_LEN as usize) {
            let len = BLOCK_LEN.min(geometry.piece_len(piece) - begin);
            let whole = geometry.block(piece.get(), begin, len).unwrap();
            let meant = geometry.without_pad(whole);
            assert_eq!(meant, ours.iter().find(|block| block.begin() == begin).copied());
            let Some(meant) = meant else { continue };
            assert_eq!(meant.len() + geometry.pad_behind(meant), len);
            whole_count += 1;
            // Neither is anything else that begins there.
            for other in [1, meant.len() - 1, meant.len() + 1, len - 1] {
                if let Ok(other) = geometry.block(piece.get(), begin, other)
                    && other != meant
                    && other != whole
                {
                    assert_eq!(geometry.pad_behind(other), 0, "{other:?}");
                    assert_eq!(geometry.without_pad(other), None, "{other:?}");
                }
            }
        }
    }
    assert_eq!(whole_count, 5 + 4 + 1 + 2);
}

#[test]
fn files_lie_askew_where_one_begins_inside_of_a_page() {
    let lies_askew =
        |files: &[FileSpan], kind| Geometry::new(32_768, files, kind).unwrap().lies_askew();
    assert!(lies_askew(&[file(1), file(1)], Kind::V1));
    assert!(!lies_askew(&[file(8192), file(1)], Kind::V1));
    assert!(!lies_askew(&[file(1), file(0), pad(32_767), file(3)], Kind::V1), "padded");
    assert!(!lies_askew(&[file(1), file(0), file(3)], Kind::V2));
}
