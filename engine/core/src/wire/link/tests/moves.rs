//! What a receive is planned for, and what a wrong prediction costs.

use super::super::super::plan::{PLAN_BLOCKS_MAX, PLAN_SLOTS_MAX};
use super::*;

/// Blocks of a torrent that has more than one receive is planned for.
const BLOCKS: u32 = 3 * PLAN_BLOCKS_MAX as u32;

/// A link that has asked for all blocks of such a torrent, and these blocks.
fn asking_for_much() -> (Bench, Vec<BlockRef>) {
    let len_bytes = u64::from(BLOCKS) * u64::from(BLOCK_LEN);
    let file = FileSpan { len_bytes, pad: false };
    let geometry = Arc::new(Geometry::new(PIECE_LEN.into(), &[file], Kind::V1).unwrap());
    let blocks: Vec<BlockRef> =
        geometry.pieces().flat_map(|piece| geometry.blocks_of_piece(piece)).collect();
    let channel = ChannelConfig { geometry: Some(geometry), ..ChannelConfig::default() };
    let now = Instant::now();
    let mut bench = Bench::of(Link::outgoing(now, LinkConfig::default(), &[TORRENT], channel), now);
    bench.receive(&peer_handshake()).unwrap();
    bench.receive(&encoded(&[Message::HaveAll, Message::Unchoke])).unwrap();
    blocks.iter().for_each(|&block| assert!(bench.request(block)));
    bench.events.clear();
    (bench, blocks)
}

fn stream_of(blocks: &[BlockRef]) -> Vec<u8> {
    blocks.iter().flat_map(|&block| piece_message(block)).collect()
}

/// One receive takes 64 blocks to their places, no more, and nothing of them is moved.
#[test]
fn a_receive_takes_64_blocks_into_place() {
    let (mut bench, blocks) = asking_for_much();
    let stream = stream_of(&blocks);
    let took = bench.receive_some(&stream, usize::MAX).unwrap();
    assert_eq!(took, 64 * (PIECE_HEADER_LEN + BLOCK_LEN as usize));
    assert_eq!(bench.blocks.len(), 64);
    let headers_alone =
        |index: &usize| matches!(bench.memory.slots[*index], PlanSlot::Small { .. });
    assert!(bench.memory.read_out.keys().all(headers_alone), "a block was read out of its place");
    // The largest plan begins in the middle of a block, and still fits one call.
    let rest = &stream[took..];
    let torn = bench.receive_some(rest, PIECE_HEADER_LEN + 100).unwrap();
    bench.receive_some(&rest[torn..], usize::MAX).unwrap();
    assert!(bench.memory.slots.len() <= PLAN_SLOTS_MAX);
    for (block, data) in &bench.blocks {
        assert!(*data == payload(*block), "wrong bytes in {block:?}");
    }
}

/// What was read out of a slot is not read out of it again, however many messages came where blocks were expected:
/// what a peer sends in between costs one move of what is behind it, not one for each message.
#[test]
fn many_messages_between_blocks_cost_one_move() {
    let (mut bench, blocks) = asking_for_much();
    let have = encoded(&[Message::Have(1)]);
    let stream: Vec<u8> =
        blocks.iter().flat_map(|&block| [have.clone(), piece_message(block)].concat()).collect();
    let took = bench.receive_some(&stream, usize::MAX).unwrap();
    let slots = bench.memory.slots.len() as u32;
    let reads: u32 = bench.memory.read_out.values().sum();
    assert!(took > 1 << 20 && reads <= slots, "{reads} reads of {slots} slots");
    bench.receive(&stream[took..]).unwrap();
    assert_eq!(bench.blocks.len(), blocks.len());
    for (block, data) in &bench.blocks {
        assert!(*data == payload(*block), "wrong bytes in {block:?}");
    }
}
