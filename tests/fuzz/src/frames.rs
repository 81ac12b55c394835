//! What consensus reads from sockets and disks: frames, certificates, blocks and log entries.

use ringseed_abci::cluster::certificate::{
    BlockHeader, BlockId, Certificate, ChainBlock, DoubleVote, Validator, ValidatorSet, VoteKind,
    vote_sign_bytes,
};
use ringseed_abci::cluster::frame::{FRAME_LEN_BYTES_MAX_UNKNOWN, Frame, Hello};
use ringseed_abci::cluster::message::{
    Message, PolkaCertificate, RoundCertificate, RoundVote, SignedProposal, SignedVote, TimerKind,
    WalEntry,
};
use ringseed_abci::cluster::store::CertifiedBlock;
use ringseed_abci::codec::Reader;

use crate::market;
use crate::source::{Source, damage};

const GENESIS: [u8; 32] = [9; 32];

/// Whatever decodes has one spelling, and no certificate convinces but one that enough of the set
/// signed.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    match source.below(4) {
        0 => check(source.rest()),
        1 => certificate(&mut source),
        _ => {
            let mut bytes = frame(&mut source).to_bytes();
            damage(&mut source, &mut bytes);
            read(&bytes);
            check(bytes.get(4..).unwrap_or(&[]));
        }
    }
}

/// Every decoder over the same bytes.
fn check(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        assert_eq!(&frame.to_bytes()[4..], bytes, "a second spelling of a frame");
    }
    if let Ok(entry) = WalEntry::decode(bytes) {
        let mut again = Vec::new();
        entry.encode(&mut again);
        assert_eq!(again, bytes, "a second spelling of an entry");
    }
    if let Ok(certified) = CertifiedBlock::decode(bytes) {
        let mut again = Vec::new();
        certified.encode(&mut again);
        assert_eq!(again, bytes, "a second spelling of a block");
        let block = &certified.block;
        assert!(!block.body_matches_header() || block.header.txs_root != [0; 32]);
    }
    let mut reader = Reader::new(bytes);
    if let Ok(set) = ValidatorSet::decode(&mut reader) {
        assert!(set.iter().all(|validator| validator.power > 0));
        let keys: Vec<_> = set.iter().map(|validator| validator.key).collect();
        assert!(keys.is_sorted_by(|a, b| a < b));
    }
    read(bytes);
}

/// The same through a socket, where the length comes from the peer.
fn read(bytes: &[u8]) {
    let mut input = bytes;
    while let Ok(frame) = Frame::read_from(&mut input, FRAME_LEN_BYTES_MAX_UNKNOWN) {
        assert!(frame.to_bytes().len() <= 4 + FRAME_LEN_BYTES_MAX_UNKNOWN);
    }
    let mut input = bytes;
    if let Ok(hello) = Hello::read_from(&mut input) {
        assert_eq!(hello.to_bytes(), bytes[..bytes.len() - input.len()]);
    }
}

/// A certificate over a set of six, mostly nearly good: only more than two thirds of the power, each
/// once, with a right signature, convince.
fn certificate(source: &mut Source<'_>) {
    let powers: [u64; market::KEYS] = std::array::from_fn(|_| u64::from(source.byte() % 8));
    let validators = powers
        .iter()
        .enumerate()
        .map(|(n, power)| Validator { key: market::key(n).public().0, power: *power });
    let set = ValidatorSet::new(validators);
    let (height, round, id) =
        (1 + source.below(3) as u64, source.below(3) as u32, BlockId([5; 32]));
    let mut signatures = Vec::new();
    let mut honest = [false; market::KEYS];
    let mut is_clean = true;
    for _ in 0..source.below(8) {
        let n = source.below(market::KEYS);
        let (mut for_height, mut for_round, mut for_id) = (height, round, id);
        let mut kind = VoteKind::Precommit;
        let fault = source.below(12);
        match fault {
            0 => for_height += 1,
            1 => for_round += 1,
            2 => for_id.0[0] ^= 1,
            3 => kind = VoteKind::Prevote,
            _ => {}
        }
        let bytes = vote_sign_bytes(&GENESIS, kind, for_height, for_round, Some(&for_id));
        let mut signature = market::key(n).sign(&bytes).0;
        if fault == 4 {
            signature[source.below(64)] ^= 1 << source.below(8);
        }
        is_clean &= fault > 4 && !honest[n] && powers[n] > 0;
        honest[n] |= fault > 4;
        signatures.push((market::key(n).public().0, signature));
    }
    let certificate = Certificate { height, round, block_id: id, signatures };
    let mut bytes = Vec::new();
    certificate.encode(&mut bytes);
    let mut reader = Reader::new(&bytes);
    assert_eq!(Certificate::decode(&mut reader).as_ref(), Ok(&certificate));
    let signed: u64 =
        powers.iter().zip(honest).filter(|(_, on)| *on).map(|(power, _)| *power).sum();
    let total: u64 = powers.iter().sum();
    let is_right = is_clean && signed * 3 > total * 2;
    let verdict = certificate.verify_id(&GENESIS, height, &set, &id);
    assert_eq!(verdict.is_ok(), is_right, "{signed} of {total}: {verdict:?}");
    assert!(certificate.verify_id(&GENESIS, height + 1, &set, &id).is_err());
    assert!(certificate.verify_id(&[8; 32], height, &set, &id).is_err());
    let damaged = damage(source, &mut bytes);
    let mut reader = Reader::new(&bytes);
    if let (Ok(other), true) = (Certificate::decode(&mut reader), damaged) {
        let same = other == certificate;
        assert!(same || other.verify_id(&GENESIS, height, &set, &id).is_err() || is_right);
    }
}

fn vote(source: &mut Source<'_>) -> SignedVote {
    SignedVote {
        kind: if source.flag() { VoteKind::Prevote } else { VoteKind::Precommit },
        height: source.u64(),
        round: source.edgy(),
        id: source.flag().then(|| BlockId([source.byte(); 32])),
        key: [source.byte(); 32],
        signature: [source.byte(); 64],
    }
}

fn message(source: &mut Source<'_>) -> Message {
    let (height, round) = (source.u64(), source.edgy());
    let (id, key, signature) = (BlockId([source.byte(); 32]), [source.byte(); 32], [7; 64]);
    match source.below(4) {
        0 => Message::Vote(vote(source)),
        1 => {
            let pol_round = source.flag().then(|| source.edgy());
            Message::Proposal(SignedProposal { height, round, pol_round, id, key, signature })
        }
        2 => {
            let signatures = vec![(key, signature); source.below(6)];
            Message::Polka(PolkaCertificate { height, round, id, signatures })
        }
        _ => {
            let votes = (0..source.below(6)).map(|_| {
                let SignedVote { kind, id, key, signature, .. } = vote(source);
                RoundVote { kind, id, key, signature }
            });
            let votes = votes.collect();
            let is_skip = source.flag();
            Message::Round(RoundCertificate { height, round, is_skip, votes })
        }
    }
}

fn block(source: &mut Source<'_>) -> ChainBlock {
    let hash = [source.byte(); 32];
    let header = BlockHeader {
        genesis_hash: hash,
        height: source.u64(),
        parent: BlockId(hash),
        app_hash: hash,
        validators_hash: hash,
        next_validators_hash: hash,
        txs_root: hash,
        last_certificate_hash: hash,
        evidence_hash: hash,
        proposer: hash,
    };
    let last_certificate = source.flag().then(|| Certificate {
        height: source.u64(),
        round: source.edgy(),
        block_id: BlockId(hash),
        signatures: vec![(hash, [1; 64]); source.below(5)],
    });
    let evidence = (0..source.below(3)).map(|_| DoubleVote::new(vote(source), vote(source)));
    let evidence = evidence.collect();
    let txs = (0..source.below(4)).map(|_| source.bytes(40).to_vec()).collect();
    ChainBlock { header, txs, last_certificate, evidence }
}

fn frame(source: &mut Source<'_>) -> Frame {
    match source.below(9) {
        0 => Frame::Status { height: source.u64() },
        1 | 2 => Frame::Consensus(message(source)),
        3 => Frame::Body { round: source.edgy(), block: Box::new(block(source)) },
        4 => Frame::Tx(source.bytes(200).to_vec()),
        5 => {
            let mut encoded = Vec::new();
            block(source).encode(&mut encoded);
            Frame::Blocks { from: source.u64(), blocks: vec![encoded; 2], height: source.u64() }
        }
        6 => {
            let addr = |source: &mut Source<'_>| match source.flag() {
                true => (source.array::<4>(), source.u16()).into(),
                false => (source.array::<16>(), source.u16()).into(),
            };
            let members = (0..source.below(4)).map(|_| ([source.byte(); 32], addr(source)));
            Frame::Members(members.collect())
        }
        7 => {
            let entry = match source.below(3) {
                0 => WalEntry::Message(message(source)),
                1 => WalEntry::Timer { kind: TimerKind::Prevote, round: source.edgy() },
                _ => WalEntry::Value {
                    round: source.edgy(),
                    is_valid: source.flag(),
                    block: Box::new(block(source)),
                },
            };
            let mut bytes = Vec::new();
            entry.encode(&mut bytes);
            assert_eq!(WalEntry::decode(&bytes).as_ref(), Ok(&entry));
            damage(source, &mut bytes);
            check(&bytes);
            Frame::Ping
        }
        _ => Frame::Genesis(source.bytes(100).to_vec()),
    }
}
