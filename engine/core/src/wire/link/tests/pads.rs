//! Blocks with a pad behind them, from peers that see the v1 view alone.

use super::*;

/// Odd lengths in pieces of two blocks: short ends of files, one in the first block of a piece, one that
/// fills its piece, and no pad behind the last.
const LENS: [u64; 6] = [70_001, 1, 32_768, 16_384, 50_000, 40_000];

fn hybrid() -> Arc<Geometry> {
    let mut spans = Vec::new();
    for len_bytes in LENS {
        spans.push(FileSpan { len_bytes, pad: false });
        let pad = len_bytes.next_multiple_of(32_768) - len_bytes;
        spans.push(FileSpan { len_bytes: pad, pad: true });
    }
    spans.pop();
    Arc::new(Geometry::new(32_768, &spans, Kind::Hybrid).unwrap())
}

fn blocks(geometry: &Geometry) -> Vec<BlockRef> {
    geometry.pieces().flat_map(|piece| geometry.blocks_of_piece(piece)).collect()
}

/// A link over a hybrid to a peer that has the bit of BEP 52 or not.
fn bench_of(knows_v2: bool) -> Bench {
    let now = Instant::now();
    let config = ChannelConfig {
        geometry: Some(hybrid()),
        v2_id: Some(WireId([9; 20])),
        ..ChannelConfig::default()
    };
    let mut bench = Bench::of(Link::outgoing(now, LinkConfig::default(), &[TORRENT], config), now);
    let reserved = Reserved::ours(knows_v2);
    let hello = Handshake { reserved, wire_id: TORRENT, peer_id: PEER };
    bench.receive(&hello.encode()).unwrap();
    bench.receive(&encoded(&[Message::HaveAll, Message::Unchoke])).unwrap();
    bench.events.clear();
    bench.sent();
    bench
}

/// The block with `pad` bytes behind it.
fn padded(block: BlockRef, pad: &[u8]) -> Vec<u8> {
    let raw = RawBlock { len: block.len() + pad.len() as u32, ..block.into() };
    let mut bytes = piece_header(raw).to_vec();
    bytes.extend(payload(block));
    bytes.extend(pad);
    bytes
}

fn zeros(geometry: &Geometry, block: BlockRef) -> Vec<u8> {
    vec![0; geometry.pad_behind(block) as usize]
}

/// rqbit 9.1, which knows v1 alone, hung up at the first request that ended with a file.
#[test]
fn a_peer_without_the_upgrade_bit_is_asked_for_whole_blocks() {
    let geometry = hybrid();
    for knows_v2 in [false, true] {
        let mut bench = bench_of(knows_v2);
        for block in blocks(&geometry) {
            assert!(bench.request(block));
            let end = geometry.piece_len(block.piece());
            let whole = BLOCK_LEN.min(end - block.begin());
            let len = if knows_v2 { block.len() } else { whole };
            let raw = RawBlock { len, ..block.into() };
            assert_eq!(bench.sent(), encoded(&[Message::Request(raw)]));
            // It is taken back, and refused, by the same name.
            assert!(bench.channel().cancel(block));
            assert_eq!(bench.sent(), encoded(&[Message::Cancel(raw)]));
            bench.receive(&encoded(&[Message::Reject(raw)])).unwrap();
            assert!(bench.request(block));
            bench.sent();
            bench.receive(&encoded(&[Message::Reject(raw)])).unwrap();
            assert_eq!(bench.channel_events(), [ChannelEvent::Rejected(block)]);
            bench.events.clear();
            assert!(bench.request(block) && bench.channel().cancel(block));
            assert_eq!(bench.sent(), b"", "it was not sent yet");
        }
    }
}

#[test]
fn a_pad_that_is_not_zeros_ends_the_connection() {
    let geometry = hybrid();
    let block = blocks(&geometry).into_iter().find(|&b| geometry.pad_behind(b) > 2).unwrap();
    let pad = zeros(&geometry, block);
    for at in [0, pad.len() / 2, pad.len() - 1] {
        let mut bench = bench_of(false);
        assert!(bench.request(block));
        let mut pad = pad.clone();
        pad[at] = 1;
        let error = bench.receive(&padded(block, &pad)).unwrap_err();
        assert_eq!(error, LinkError::PadNotZero { block });
        assert_eq!((error.blame(), error.code()), (Blame::Peer, "bad-pad"));
        assert!(bench.blocks.is_empty(), "what came with it is not believed");
    }
}

/// What is not asked for is not taken: neither the file's end alone where the whole block was asked for,
/// nor the whole block where the end was.
#[test]
fn an_answer_of_another_length_ends_the_connection() {
    let geometry = hybrid();
    let block = blocks(&geometry).into_iter().find(|&b| geometry.pad_behind(b) > 2).unwrap();
    let pad = zeros(&geometry, block);
    for (knows_v2, answer) in [
        (false, padded(block, &[])),
        (false, padded(block, &pad[1..])),
        (true, padded(block, &pad)),
    ] {
        let mut bench = bench_of(knows_v2);
        assert!(bench.request(block));
        let error = bench.receive(&answer).unwrap_err();
        assert!(matches!(error, LinkError::BlockNotRequested { .. }), "{error}");
    }
}

proptest! {
    /// Whatever the order, the cuts, and the blocks that find no place: every block comes once, without
    /// its pad, and messages between them are heard.
    #[test]
    fn pads_are_left_out_however_the_stream_is_cut(
        order in Just((0..blocks(&hybrid()).len()).collect::<Vec<_>>()).prop_shuffle(),
        cuts in prop::collection::vec(prop_oneof![1_usize..40, 1_000_usize..60_000], 1..40),
        nowhere_of in 0_u64..4,
        talk in 0_usize..14,
    ) {
        let geometry = hybrid();
        let blocks = blocks(&geometry);
        let mut bench = bench_of(false);
        bench.nowhere_of = nowhere_of;
        for &block in &blocks {
            assert!(bench.request(block));
        }
        let mut stream = Vec::new();
        for (at, &index) in order.iter().enumerate() {
            if at == talk {
                stream.extend(encoded(&[Message::Suggest(1)]));
            }
            stream.extend(padded(blocks[index], &zeros(&geometry, blocks[index])));
        }
        let mut rest = stream.as_slice();
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let len = bench.receive_some(rest, *cuts.next().unwrap()).unwrap();
            rest = &rest[len..];
        }
        prop_assert_eq!(bench.blocks.len(), blocks.len());
        for (block, data) in &bench.blocks {
            prop_assert!(*data == payload(*block), "wrong bytes in {:?}", block);
        }
        let heard = bench.channel_events().iter().any(|e| matches!(e, ChannelEvent::Suggest(_)));
        prop_assert_eq!(heard, talk < blocks.len());
        prop_assert_eq!(bench.channel().outstanding_count(), 0);
    }
}
