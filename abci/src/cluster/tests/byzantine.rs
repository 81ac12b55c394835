//! A validator that breaks the rules, played by the test with a founder's key.

use std::io::Write;
use std::net::TcpStream;

use ringseed_ledger::Standing;

use super::*;
use crate::cluster::certificate::{BlockId, VoteKind, sign, vote_sign_bytes};
use crate::cluster::frame::{Frame, Hello};
use crate::cluster::mesh::{fresh_nonce, handshake};
use crate::cluster::message::{Message, SignedVote};

/// A connection to `to` with the key of `index`, whose node does not run.
fn connect_as(market: &Market, index: usize, to: usize) -> TcpStream {
    let stream = TcpStream::connect(market.addrs[to]).unwrap();
    let secret = &market.keys[index];
    let hello = Hello {
        genesis_hash: market.genesis.hash().0,
        key: secret.public().0,
        nonce: fresh_nonce().unwrap(),
        advertise: None,
    };
    handshake(&stream, secret, hello, true).unwrap();
    stream
}

fn vote(market: &Market, index: usize, height: u64, id: Option<BlockId>) -> Frame {
    let secret = &market.keys[index];
    let (kind, round) = (VoteKind::Prevote, 0);
    let bytes = vote_sign_bytes(&market.genesis.hash().0, kind, height, round, id.as_ref());
    let (key, signature) = (secret.public().0, sign(secret, &bytes));
    Frame::Consensus(Message::Vote(SignedVote { kind, height, round, id, key, signature }))
}

#[test]
fn a_validator_that_votes_twice_is_expelled_by_the_proof() {
    let mut market = Market::start("byz-twice", 4, fast(60_000));
    market.submit(0, offer(1));
    market.settle();
    market.stop(3);
    let liar = market.keys[3].public();
    let mut stream = connect_as(&market, 3, 0);
    // Twice, because the height may be over before both votes are in.
    for _ in 0..5 {
        let height = market.top() + 1;
        for id in [BlockId([1; 32]), BlockId([2; 32])] {
            stream.write_all(&vote(&market, 3, height, Some(id)).to_bytes()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(300));
        let is_expelled = |node: &Cluster| {
            let view = node.view();
            view.member(&liar).is_some_and(|member| member.standing == Standing::Expelled)
        };
        if market.running().all(is_expelled) {
            break;
        }
    }
    market.wait("the liar is expelled on all", |market| {
        market.running().all(|node| {
            let view = node.view();
            view.member(&liar).is_some_and(|member| member.standing == Standing::Expelled)
        })
    });
    market.submit(1, offer(2));
    market.settle();
}

#[test]
fn junk_from_a_validator_ends_its_connection_and_nothing_else() {
    let mut market = Market::start("byz-junk", 4, fast(60_000));
    market.submit(0, offer(1));
    market.settle();
    market.stop(3);
    let mut dice: u64 = 1;
    for step in 0..60 {
        let mut stream = connect_as(&market, 3, step % 3);
        let mut junk = vec![0_u8; 40 + step];
        for byte in &mut junk {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (dice >> 56) as u8;
        }
        let len = junk.len() as u32;
        // A frame of the right length with a plausible kind.
        junk[0] = 1 + (step % 12) as u8;
        let _ = stream.write_all(&len.to_le_bytes());
        let _ = stream.write_all(&junk);
    }
    // Votes for heights far away, for the past, with a broken signature.
    let mut stream = connect_as(&market, 3, 0);
    let height = market.top() + 1;
    for height in [0, 1, height, height + 1, u64::MAX] {
        let _ = stream.write_all(&vote(&market, 3, height, None).to_bytes());
        let mut broken = vote(&market, 3, height, Some(BlockId([9; 32])));
        if let Frame::Consensus(Message::Vote(vote)) = &mut broken {
            vote.signature[5] ^= 1;
        }
        let _ = stream.write_all(&broken.to_bytes());
        let _ = stream.write_all(&Frame::Status { height: u64::MAX }.to_bytes());
        let _ = stream.write_all(&Frame::GetBlocks { from: u64::MAX }.to_bytes());
        let _ = stream.write_all(&Frame::GetBlocks { from: 0 }.to_bytes());
        let _ = stream.write_all(&Frame::Wake { height: u64::MAX }.to_bytes());
        // An answer that nobody asked for, and one that is asked for right before.
        let blocks = vec![vec![1; 100]; 3];
        let _ = stream.write_all(&Frame::Blocks { from: u64::MAX, blocks, height }.to_bytes());
    }
    market.submit(1, offer(2));
    market.submit(0, offer(3));
    market.settle();
}
