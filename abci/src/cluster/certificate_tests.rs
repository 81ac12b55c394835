//! Every way in which a certificate may prove nothing, each with its own error.

use ringseed_ledger::SigningKey;

use super::*;

const GENESIS: [u8; 32] = [7; 32];

fn keys(count: u8) -> Vec<SigningKey> {
    (1..=count).map(|seed| SigningKey::from_seed(&[seed; 32])).collect()
}

fn set_of(keys: &[SigningKey]) -> ValidatorSet {
    ValidatorSet::new(keys.iter().map(|key| Validator { key: key.public().0, power: 1 }))
}

fn block_at(height: u64, set: &ValidatorSet, genesis_hash: [u8; 32]) -> ChainBlock {
    let txs = vec![b"one".to_vec(), b"two".to_vec(), b"three".to_vec()];
    let header = BlockHeader {
        genesis_hash,
        height,
        parent: BlockId([1; 32]),
        app_hash: [2; 32],
        validators_hash: set.hash(),
        next_validators_hash: set.hash(),
        txs_root: txs_root(&txs),
        last_certificate_hash: certificate_hash(None),
        evidence_hash: [0; 32],
        proposer: [3; 32],
    };
    ChainBlock { header, txs, last_certificate: None, evidence: Vec::new() }
}

fn certify(block: &ChainBlock, round: u32, signers: &[SigningKey]) -> Certificate {
    let (height, id) = (block.header.height, block.id());
    let genesis = block.header.genesis_hash;
    let message = vote_sign_bytes(&genesis, VoteKind::Precommit, height, round, Some(&id));
    let mut signatures: Vec<_> =
        signers.iter().map(|key| (key.public().0, sign(key, &message))).collect();
    signatures.sort();
    Certificate { height, round, block_id: id, signatures }
}

#[test]
fn three_of_four_signers_are_enough_and_the_bytes_round_trip() {
    let keys = keys(4);
    let set = set_of(&keys);
    let block = block_at(5, &set, GENESIS);
    let certificate = certify(&block, 2, &keys[..3]);
    assert_eq!(certificate.verify(&GENESIS, 5, &set, &block), Ok(()));

    let mut bytes = Vec::new();
    certificate.encode(&mut bytes);
    let mut reader = Reader::new(&bytes);
    assert_eq!(Certificate::decode(&mut reader), Ok(certificate.clone()));
    assert_eq!(reader.finish(), Ok(()));

    let block = ChainBlock { last_certificate: Some(certificate), ..block };
    let mut bytes = Vec::new();
    block.encode(&mut bytes);
    assert!(bytes.len() <= ChainBlock::ENCODED_LEN_BYTES_MAX);
    let mut reader = Reader::new(&bytes);
    assert_eq!(ChainBlock::decode(&mut reader), Ok(block));
}

#[test]
fn two_of_four_signers_are_not_enough() {
    let keys = keys(4);
    let set = set_of(&keys);
    let block = block_at(5, &set, GENESIS);
    let result = certify(&block, 0, &keys[..2]).verify(&GENESIS, 5, &set, &block);
    assert_eq!(result, Err(CertificateError::NoQuorum { signed: 2, total: 4 }));
}

#[test]
fn one_signer_twice_counts_for_nothing() {
    let keys = keys(4);
    let set = set_of(&keys);
    let block = block_at(5, &set, GENESIS);
    let signers = [keys[0].clone(), keys[1].clone(), keys[1].clone()];
    let result = certify(&block, 0, &signers).verify(&GENESIS, 5, &set, &block);
    let key = keys[1].public().0;
    assert_eq!(result, Err(CertificateError::SignedTwice { key }));
}

#[test]
fn a_signer_without_power_spoils_the_certificate() {
    let keys = keys(5);
    let set = set_of(&keys[..4]);
    let block = block_at(5, &set, GENESIS);
    let result = certify(&block, 0, &keys[1..]).verify(&GENESIS, 5, &set, &block);
    let key = keys[4].public().0;
    assert_eq!(result, Err(CertificateError::NotAValidator { key }));
}

#[test]
fn a_certificate_is_good_for_its_own_height_only() {
    let keys = keys(4);
    let set = set_of(&keys);
    let block = block_at(5, &set, GENESIS);
    let certificate = certify(&block, 0, &keys);
    let result = certificate.verify(&GENESIS, 6, &set, &block);
    assert_eq!(result, Err(CertificateError::OtherHeight { wanted: 6, found: 5 }));

    let later = block_at(6, &set, GENESIS);
    let result = certificate.verify(&GENESIS, 6, &set, &later);
    assert_eq!(result, Err(CertificateError::OtherHeight { wanted: 6, found: 5 }));

    // Relabelled: the signatures do not cover the new height.
    let relabelled = Certificate { height: 6, block_id: later.id(), ..certificate };
    let result = relabelled.verify(&GENESIS, 6, &set, &later);
    assert!(matches!(result, Err(CertificateError::BadSignature { .. })), "{result:?}");
}

#[test]
fn a_certificate_is_good_for_its_own_round_only() {
    let keys = keys(4);
    let set = set_of(&keys);
    let block = block_at(5, &set, GENESIS);
    let certificate = Certificate { round: 0, ..certify(&block, 3, &keys) };
    let result = certificate.verify(&GENESIS, 5, &set, &block);
    let Err(CertificateError::OtherRound { claimed, signed, .. }) = result else {
        panic!("{result:?}");
    };
    assert_eq!((claimed, signed), (0, 3));
}

#[test]
fn a_market_of_the_same_validators_proves_nothing_here() {
    let keys = keys(4);
    let set = set_of(&keys);
    let theirs = block_at(5, &set, [8; 32]);
    let certificate = certify(&theirs, 0, &keys);
    let result = certificate.verify(&GENESIS, 5, &set, &theirs);
    assert_eq!(result, Err(CertificateError::OtherMarket));

    // Their signatures over our block's id: the signed bytes name the market too.
    let ours = block_at(5, &set, GENESIS);
    let id = ours.id();
    let message = vote_sign_bytes(&[8; 32], VoteKind::Precommit, 5, 0, Some(&id));
    let mut signatures: Vec<_> =
        keys.iter().map(|key| (key.public().0, sign(key, &message))).collect();
    signatures.sort();
    let certificate = Certificate { height: 5, round: 0, block_id: id, signatures };
    let result = certificate.verify(&GENESIS, 5, &set, &ours);
    assert!(matches!(result, Err(CertificateError::BadSignature { .. })), "{result:?}");
}

#[test]
fn an_altered_body_under_a_good_certificate_is_found() {
    let keys = keys(4);
    let set = set_of(&keys);
    let block = block_at(5, &set, GENESIS);
    let certificate = certify(&block, 0, &keys);
    let mut altered = block.clone();
    altered.txs[1][0] ^= 1;
    let result = certificate.verify(&GENESIS, 5, &set, &altered);
    assert_eq!(result, Err(CertificateError::AlteredBody));
    // With the header adapted to the altered body it is another block.
    altered.header.txs_root = txs_root(&altered.txs);
    let result = certificate.verify(&GENESIS, 5, &set, &altered);
    assert_eq!(result, Err(CertificateError::OtherBlock));
}

#[test]
fn another_validator_set_in_the_header_is_found() {
    let keys = keys(4);
    let set = set_of(&keys);
    let block = block_at(5, &set_of(&keys[..3]), GENESIS);
    let result = certify(&block, 0, &keys).verify(&GENESIS, 5, &set, &block);
    assert_eq!(result, Err(CertificateError::OtherValidators));
}

#[test]
fn prevotes_are_no_precommits() {
    let keys = keys(4);
    let set = set_of(&keys);
    let block = block_at(5, &set, GENESIS);
    let id = block.id();
    let message = vote_sign_bytes(&GENESIS, VoteKind::Prevote, 5, 0, Some(&id));
    let mut signatures: Vec<_> =
        keys.iter().map(|key| (key.public().0, sign(key, &message))).collect();
    signatures.sort();
    let certificate = Certificate { height: 5, round: 0, block_id: id, signatures };
    let result = certificate.verify(&GENESIS, 5, &set, &block);
    assert!(matches!(result, Err(CertificateError::BadSignature { .. })), "{result:?}");
}

/// Other versions verify what this one signed: a change of any of these is a change of format, with
/// its own version and a word in the changelog.
#[test]
fn the_formats_are_what_they_were() {
    let keys = keys(4);
    let set = set_of(&keys);
    let block = block_at(5, &set, GENESIS);
    let certificate = certify(&block, 2, &keys[..3]);
    let mut bytes = Vec::new();
    certificate.encode(&mut bytes);
    let evidence = DoubleVote::new(vote_of(&keys[0], 1), vote_of(&keys[0], 2));
    let full = ChainBlock {
        last_certificate: Some(certificate),
        evidence: vec![evidence],
        ..block.clone()
    };
    let mut full_bytes = Vec::new();
    full.encode(&mut full_bytes);
    let digest = |bytes: &[u8]| hex(&<[u8; 32]>::from(Sha256::digest(bytes)));
    let found = [
        hex(&set.hash()),
        hex(&block.id().0),
        digest(&bytes),
        digest(&full_bytes),
        digest(&vote_sign_bytes(&GENESIS, VoteKind::Prevote, 1, 0, None)),
        digest(&proposal_sign_bytes(&GENESIS, 1, 0, Some(3), &block.id())),
    ];
    assert_eq!(found, FORMATS);
}

fn vote_of(key: &SigningKey, id: u8) -> SignedVote {
    let (kind, height, round, id) = (VoteKind::Prevote, 4, 0, Some(BlockId([id; 32])));
    let signature = sign(key, &vote_sign_bytes(&GENESIS, kind, height, round, id.as_ref()));
    SignedVote { kind, height, round, id, key: key.public().0, signature }
}

#[test]
fn only_two_different_votes_of_one_validator_prove_something() {
    let keys = keys(2);
    let (a, b) = (vote_of(&keys[0], 1), vote_of(&keys[0], 2));
    let proven = Some((keys[0].public().0, 4));
    assert_eq!(DoubleVote::new(b.clone(), a.clone()).proven(&GENESIS), proven);
    assert_eq!(DoubleVote { first: b.clone(), second: a.clone() }.proven(&GENESIS), None);
    assert_eq!(DoubleVote::new(a.clone(), a.clone()).proven(&GENESIS), None);
    assert_eq!(DoubleVote::new(a.clone(), vote_of(&keys[1], 2)).proven(&GENESIS), None);
    assert_eq!(DoubleVote::new(a.clone(), b.clone()).proven(&[8; 32]), None);
    let forged = SignedVote { signature: [1; 64], ..b };
    assert_eq!(DoubleVote::new(a, forged).proven(&GENESIS), None);
}

/// SHA-256 over a set, a block id, a certificate, a whole block, a vote and a proposal.
const FORMATS: [&str; 6] = [
    "e0f50e9b77004ce50297f890cb81956a48d52378e68d79fbfa92d1ebdd97726b",
    "7cee8136218ec530455f8121d1dad3b9f0aeccf8101ceffb5c64557e7244cc5e",
    "3ef0a87546595bc477b05229ab9324bdab6bca3059e889163a5874806a9f9c09",
    "5c4ce88390d37dfb3c956905a406aa9de43f0caad822e45c337a76899a721655",
    "a02a751d1043f53c3ccdca19e3044464a861aed611c7f7cfb6b1188a3196b91a",
    "09cc15063ca8aecf476b18e78eb00c28c629be5c3b71b8e15cde093699966c4e",
];

proptest::proptest! {
    /// Whatever a peer or a disk says, decoding answers and allocates no more than it was given.
    #[test]
    fn decoders_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
        let _ = ChainBlock::decode(&mut Reader::new(&bytes));
        let _ = Certificate::decode(&mut Reader::new(&bytes));
        let _ = ValidatorSet::decode(&mut Reader::new(&bytes));
    }
}
