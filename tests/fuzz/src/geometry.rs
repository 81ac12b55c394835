//! What must hold for every layout: each byte of torrent space has one place, whoever asks.

use ringseed_core::geometry::{BLOCK_LEN, EXTENT_LEN_MAX, Geometry, PieceIndex};

/// Checks the pieces at both ends of `geometry` and some between.
pub fn check(geometry: &Geometry) {
    let count = geometry.piece_count();
    assert!(geometry.piece(count).is_err() && geometry.extent(geometry.extent_count()).is_err());
    assert!(geometry.payload_len() <= geometry.total_len());
    let step = (count / 8).max(1);
    let sample = (0..count.min(16)).chain((0..count).step_by(step as usize));
    let sample = sample.chain(count.saturating_sub(16)..count);
    for raw in sample {
        check_piece(geometry, geometry.piece(raw).expect("below the count"));
    }
    let mut end = 0;
    for extent in geometry.extents().take(64) {
        assert_eq!(geometry.extent_offset(extent), end, "extents follow one another");
        end += u64::from(geometry.extent_len(extent));
        assert!((1..=EXTENT_LEN_MAX).contains(&geometry.extent_len(extent)));
    }
    for file in geometry.files().take(64) {
        let pieces = geometry.pieces_of_file(file);
        let (offset, len) = (geometry.file_offset(file), geometry.file_len(file));
        assert_eq!(pieces.len() == 0, len == 0);
        for piece in pieces.take(4) {
            let start = geometry.piece_offset(piece);
            let end = start + u64::from(geometry.piece_len(piece));
            assert!(start < offset + len && end > offset, "a piece without a byte of its file");
        }
    }
}

fn check_piece(geometry: &Geometry, piece: PieceIndex) {
    let (offset, len) = (geometry.piece_offset(piece), geometry.piece_len(piece));
    assert!(len >= 1 && offset + u64::from(len) <= geometry.total_len());
    let mut at = offset;
    let mut data_end = offset;
    for slice in geometry.slices(offset, len.into()) {
        assert!(slice.len > 0);
        at += slice.len;
        if !slice.pad {
            assert!(slice.file_offset + slice.len <= geometry.file_len(slice.file));
            assert_eq!(geometry.file_offset(slice.file) + slice.file_offset, at - slice.len);
            assert!(!geometry.is_pad(slice.file));
            data_end = at;
        }
    }
    assert_eq!(at, offset + u64::from(len), "slices hold every byte once");
    assert_eq!(u64::from(geometry.piece_data_len(piece)), data_end - offset);

    let mut covered = 0;
    for block in geometry.blocks_of_piece(piece) {
        assert!(block.piece() == piece && block.begin() % BLOCK_LEN == 0);
        assert!(block.begin() >= covered && block.begin() + block.len() <= len);
        covered = block.begin() + block.len();
        let again = geometry.block(piece.get(), block.begin(), block.len());
        assert_eq!(again, Ok(block));
        let (extent, at) = geometry.extent_of(block);
        assert!(at + block.len() <= geometry.extent_len(extent), "a block of ours in two extents");
        assert!(geometry.pieces_of_extent(extent).any(|other| other == piece));
        assert!(geometry.extents_of_piece(piece).any(|other| other == extent));
        let offset = geometry.extent_offset(extent) + u64::from(at);
        assert_eq!(offset, geometry.block_offset(block));
        if let Some((file, leaf)) = geometry.leaf_of(block) {
            let leaf_offset = geometry.file_offset(file) + u64::from(leaf) * u64::from(BLOCK_LEN);
            assert_eq!(leaf_offset, geometry.block_offset(block));
        }
    }
    assert_eq!(u64::from(covered), data_end - offset, "blocks hold every byte of payload");
    assert!(geometry.block(piece.get(), len, 1).is_err());
    assert!(geometry.block(piece.get(), u32::MAX, 1).is_err());
    if let Some((file, index)) = geometry.piece_in_file(piece) {
        let in_file = u64::from(index) * u64::from(geometry.piece_len_nominal());
        assert_eq!(geometry.file_offset(file) + in_file, offset);
    }
}
