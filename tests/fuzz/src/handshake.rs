//! The first 68 bytes of a connection, in any cuts, from any stranger.

use std::time::Instant;

use ringseed_core::geometry::BlockRef;
use ringseed_core::wire::handshake::{HANDSHAKE_LEN, HandshakeError};
use ringseed_core::wire::{
    ChannelConfig, ChannelId, Handshake, Landed, Link, LinkConfig, LinkError, LinkEvent, PlanSlot,
    ReceivePlan, WireId,
};

use crate::source::Source;

/// Memory for what comes before any block.
struct Staging(Vec<u8>);

impl Landed for Staging {
    fn slot(&mut self, _: usize) -> &mut [u8] {
        &mut self.0
    }

    fn place(&mut self, _: ChannelId, _: BlockRef) -> Option<&mut [u8]> {
        None
    }
}

const PREFIX: &[u8; 20] = b"\x13BitTorrent protocol";

/// A link takes a handshake exactly when it is one, refuses another protocol at its first wrong
/// byte, and never asks for more than the handshake has.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let mode = source.byte();
    let is_incoming = mode & 1 != 0;
    let cut = 1 + source.below(80);
    let mut sent = source.rest().to_vec();
    if mode & 2 != 0 {
        // Past the name, which a fuzzer would have to guess.
        sent.splice(0..0, PREFIX.iter().copied());
    }
    let config = LinkConfig::default();
    let wire_ids = [WireId([7; 20]), WireId([8; 20])];
    let now = Instant::now();
    let mut link = if is_incoming {
        Link::incoming(now, config.clone())
    } else {
        Link::outgoing(now, config.clone(), &wire_ids, ChannelConfig::default())
    };
    let wrong_at = sent.iter().zip(PREFIX).position(|(found, wanted)| found != wanted);

    let mut taken = 0;
    while taken < sent.len() && link.peer().is_none() {
        let mut plan = ReceivePlan::default();
        link.poll_receive(&mut plan, &mut |_, _| panic!("no block is asked for"));
        let [PlanSlot::Small { len }] = plan.slots[..] else { panic!("one slot: {plan:?}") };
        assert!(len > 0 && taken + len <= HANDSHAKE_LEN, "reads past the handshake");
        let step = len.min(cut).min(sent.len() - taken);
        let mut staging = Staging(sent[taken..taken + step].to_vec());
        staging.0.resize(len, 0xee);
        taken += step;
        match link.handle_received(now, step, &mut staging) {
            Ok(()) => assert!(wrong_at.is_none_or(|at| at >= taken), "another protocol goes on"),
            Err(LinkError::Handshake(HandshakeError::OtherProtocol { at })) => {
                assert_eq!(Some(at), wrong_at);
                return;
            }
            Err(LinkError::SelfConnection) => {
                assert_eq!(sent[48..HANDSHAKE_LEN], config.peer_id.0);
                return;
            }
            Err(LinkError::WrongTorrent { found }) => {
                assert!(!is_incoming && !wire_ids.contains(&found));
                return;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let Some(peer) = link.peer().copied() else {
        assert!(sent.len() < HANDSHAKE_LEN, "a whole handshake was not seen");
        return;
    };
    assert_eq!(peer.encode()[..], sent[..HANDSHAKE_LEN], "every bit is kept");
    assert_eq!(Handshake::decode(&peer.encode()), Ok(peer));
    assert_eq!(link.poll_event(), Some(LinkEvent::Handshake(peer)));
    assert_eq!(link.is_open(), !is_incoming);
    if is_incoming {
        let mut plan = ReceivePlan::default();
        link.poll_receive(&mut plan, &mut |_, _| false);
        assert!(plan.slots.is_empty(), "nothing is read before the torrent is known");
        link.accept(peer.wire_id, ChannelConfig::default());
        assert!(link.is_open());
    }
}
