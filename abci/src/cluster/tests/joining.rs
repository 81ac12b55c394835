//! Newcomers: one address and a genesis hash, then the whole market by certificates.

use std::io::{Read, Write};
use std::net::TcpStream;

use ringseed_ledger::GenesisHash;

use super::*;
use crate::cluster::frame::{FRAME_LEN_BYTES_MAX, Frame, Hello};
use crate::cluster::mesh::{fresh_nonce, handshake};
use crate::cluster::store::CertifiedBlock;
use crate::handle::StartError;

#[test]
fn a_newcomer_follows_is_admitted_gains_power_and_signs() {
    let mut market = Market::start("join-power", 4, fast(100));
    market.submit(0, offer(1));
    for index in 1..4 {
        market.submit(index, TxBody::attest(vec![DataHash([1; 32])], Vec::new()));
    }
    let new = market.join(0);
    market.wait("the newcomer is caught up", |market| market.node(new).status().caught_up);
    assert!(!market.node(new).status().is_validator);

    // Its registration goes through the one it knows.
    let register = TxBody::Register(endpoint(&market, new));
    market.submit(new, register);
    let member = market.keys[new].public();
    for index in 0..3 {
        market.submit(index, TxBody::Admit { member });
    }
    market.wait("it knows that it is a member", |market| {
        market.node(new).view().member(&member).is_some_and(|member| member.is_admitted())
    });
    market.submit(new, TxBody::attest(vec![DataHash([1; 32])], Vec::new()));
    market.wait("it has power", |market| market.node(new).status().is_validator);
    market.wait("its signature is in a certificate", |market| {
        let height = market.height(0);
        let certificate = market.node(0).certificate(height).unwrap();
        certificate.signatures.iter().any(|(key, _)| *key == member.0)
    });
    market.settle();

    // Five validators: two may not fail, and one founder may be the newcomer's.
    market.stop(0);
    market.submit(new, offer(2));
    // It leaves: the others go on, and it stops to vote.
    market.submit(new, TxBody::Leave);
    market.wait("it has no power", |market| !market.node(new).status().is_validator);
    market.start_node(0);
    market.submit(1, offer(3));
    market.settle();
}

#[test]
fn a_newcomer_reads_a_long_chain_and_goes_on_after_a_kill() {
    let mut market = Market::start("join-long", 4, fast(60_000));
    (1..60).for_each(|seed| drop(market.submit(usize::from(seed % 4), offer(seed))));
    let height = market.top();
    let new = market.join(2);
    market.wait("the newcomer has all blocks", |market| market.height(new) >= height);
    market.settle();
    market.stop(new);
    (100..110).for_each(|seed| drop(market.submit(0, offer(seed))));
    let mut config = market.config(new);
    config.genesis = None;
    config.first = vec![market.addrs[1]];
    market.nodes[new] = Some(Cluster::start(config).unwrap());
    market.wait("it is caught up again", |market| {
        market.node(new).status().caught_up && market.height(new) == market.top()
    });
}

#[test]
fn a_wrong_genesis_hash_is_refused() {
    let mut market = Market::start("join-wrong", 1, fast(60_000));
    market.submit(0, offer(1));
    let mut config = market.config(0);
    config.dir = market.dir.path().join("other");
    config.key = key(99);
    config.genesis = None;
    config.listen = None;
    let refused = Cluster::join(market.addrs[0], GenesisHash([4; 32]), config.clone());
    // A member of another market ends the handshake: it says nothing to us.
    assert!(matches!(refused, Err(StartError::Unreachable { .. })), "{refused:?}");
    let closed = free_addr();
    let refused = Cluster::join(closed, market.genesis.hash(), config);
    assert!(matches!(refused, Err(StartError::Unreachable { .. })), "{refused:?}");
    market.stop(0);
}

fn blocks_of(market: &Market, height: u64) -> Vec<Vec<u8>> {
    let store = &market.node(0).shared.store;
    (1..=height).map(|at| store.read_bytes(at).unwrap().unwrap()).collect()
}

/// A first contact that serves `blocks` and knows of nothing else.
fn lying_contact(market: &Market, blocks: Vec<Vec<u8>>, secret: &SigningKey) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let text = market.genesis.to_text().into_bytes();
    let height = blocks.len() as u64;
    let genesis_hash = market.genesis.hash().0;
    let secret = secret.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let (text, blocks, secret) = (text.clone(), blocks.clone(), secret.clone());
            std::thread::spawn(move || {
                let key = secret.public().0;
                let nonce = fresh_nonce().unwrap();
                let hello = Hello { genesis_hash, key, nonce, advertise: None };
                handshake(&stream, &secret, hello, false).ok()?;
                let mut io = &stream;
                io.write_all(&Frame::Status { height }.to_bytes()).ok()?;
                loop {
                    let answer = match Frame::read_from(&mut io, FRAME_LEN_BYTES_MAX).ok()? {
                        Frame::GetGenesis => Frame::Genesis(text.clone()),
                        Frame::GetBlocks { from } => {
                            let rest = blocks.iter().skip(from as usize - 1).cloned().collect();
                            Frame::Blocks { from, blocks: rest, height }
                        }
                        _ => continue,
                    };
                    io.write_all(&answer.to_bytes()).ok()?;
                }
                #[allow(unreachable_code)]
                Some(())
            });
        }
    });
    at
}

#[test]
fn a_first_contact_that_hides_the_last_blocks_is_found_out() {
    let mut market = Market::start("join-hiding", 4, fast(60_000));
    (1..=20).for_each(|seed| drop(market.submit(usize::from(seed % 4), offer(seed))));
    market.settle();
    let height = market.height(0);
    let liar = lying_contact(&market, blocks_of(&market, height - 10), &key(200));
    // Alone with the liar there is no majority to ask: never caught up.
    (0..4).for_each(|index| market.stop(index));
    let mut config = market.config(0);
    config.dir = market.dir.path().join("newcomer");
    config.key = key(201);
    config.genesis = None;
    config.listen = None;
    let new = Cluster::join(liar, market.genesis.hash(), config).unwrap();
    let start = Instant::now();
    while new.status().height < height - 10 {
        assert!(start.elapsed() < PATIENCE, "{:?}", new.status());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!new.status().caught_up, "the liar alone proves nothing");
    // The members that the ledger names are asked as soon as they are there.
    (0..4).for_each(|index| market.start_node(index));
    while !(new.status().caught_up && new.status().height >= height) {
        assert!(start.elapsed() < 2 * PATIENCE, "{:?}", new.status());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_stranger_may_read_and_nothing_else() {
    let market = Market::start("join-stranger", 1, fast(60_000));
    market.submit(0, offer(1));
    let stream = TcpStream::connect(market.addrs[0]).unwrap();
    let secret = key(123);
    let hello = Hello {
        genesis_hash: market.genesis.hash().0,
        key: secret.public().0,
        nonce: fresh_nonce().unwrap(),
        advertise: None,
    };
    handshake(&stream, &secret, hello, true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut io = &stream;
    let mut ask = |frame: Frame| {
        io.write_all(&frame.to_bytes()).unwrap();
        loop {
            match Frame::read_from(&mut io, FRAME_LEN_BYTES_MAX).unwrap() {
                Frame::Status { .. } | Frame::Ping | Frame::Tx(_) => {}
                other => return other,
            }
        }
    };
    assert!(matches!(ask(Frame::GetGenesis), Frame::Genesis(_)));
    let Frame::Blocks { blocks, height, .. } = ask(Frame::GetBlocks { from: 1 }) else { panic!() };
    assert_eq!((blocks.len() as u64, height), (market.height(0), market.height(0)));
    assert!(matches!(ask(Frame::GetMembers), Frame::Members(members) if members.len() == 1));
    // A transaction that is no registration of its own key is not even looked at.
    let foreign = Tx::sign(&secret, &market.genesis.hash(), 1, 900, offer(9)).unwrap().to_bytes();
    let _ = ask_nothing(&stream, &Frame::Tx(foreign));
    // A frame longer than a stranger may send ends the connection.
    let _ = ask_nothing(&stream, &Frame::Tx(vec![1; 60_000]));
    (&stream).write_all(&(2_u32 << 20).to_le_bytes()).unwrap();
    let mut rest = Vec::new();
    let _ = (&stream).read_to_end(&mut rest);
    assert_eq!(market.node(0).status().mempool_txs, 0);
}

fn ask_nothing(mut stream: &TcpStream, frame: &Frame) -> std::io::Result<()> {
    stream.write_all(&frame.to_bytes())
}

#[test]
fn a_key_that_is_not_proven_is_nobody() {
    let market = Market::start("join-unproven", 1, fast(60_000));
    let stream = TcpStream::connect(market.addrs[0]).unwrap();
    // Claims the founder's neighbour's key but signs with its own.
    let hello = Hello {
        genesis_hash: market.genesis.hash().0,
        key: key(50).public().0,
        nonce: fresh_nonce().unwrap(),
        advertise: None,
    };
    let _ = handshake(&stream, &key(51), hello, true);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    let _ = (&stream).read_to_end(&mut rest);
    assert!(market.node(0).status().peers.is_empty());
}

#[test]
fn a_forged_chain_is_followed_up_to_the_forgery_and_no_further() {
    let mut market = Market::start("join-forged", 4, fast(60_000));
    (1..=6).for_each(|seed| drop(market.submit(usize::from(seed % 4), offer(seed))));
    market.settle();
    let honest = blocks_of(&market, 6);
    // One transaction altered under the good certificate of the fourth block.
    let mut certified = CertifiedBlock::decode(&honest[3]).unwrap();
    certified.block.txs[0][20] ^= 1;
    let mut altered = honest.clone();
    altered[3].clear();
    certified.encode(&mut altered[3]);
    // A certificate that only half of the power signed.
    let mut certified = CertifiedBlock::decode(&honest[3]).unwrap();
    certified.certificate.signatures.truncate(2);
    let mut halved = honest.clone();
    halved[3].clear();
    certified.encode(&mut halved[3]);
    // A good block in the place of another.
    let mut swapped = honest;
    swapped.swap(3, 4);
    (0..4).for_each(|index| market.stop(index));
    for (name, blocks) in [("altered", altered), ("halved", halved), ("swapped", swapped)] {
        let liar = lying_contact(&market, blocks, &key(210));
        let mut config = market.config(0);
        config.dir = market.dir.path().join(name);
        config.key = key(211);
        config.genesis = None;
        config.listen = None;
        let new = Cluster::join(liar, market.genesis.hash(), config).unwrap();
        let start = Instant::now();
        while new.status().height < 3 {
            assert!(start.elapsed() < PATIENCE, "{name}: {:?}", new.status());
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(new.status().height, 3, "{name}");
        assert!(!new.status().caught_up, "{name}");
    }
}
