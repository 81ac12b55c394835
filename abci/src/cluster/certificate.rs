//! What validators sign, and the proof that enough of them did.
//!
//! A block id hashes the genesis, the height, the parent, the app hash after the parent, this and
//! the next validator set, and the transactions' root. Commit votes sign genesis, height, round and
//! id. A [`Certificate`] is checked against the validator set that *our own replay* gives; whoever
//! sends a certificate never says who may have signed it.

use std::collections::BTreeSet;

use ringseed_ledger::{PublicKey, Signature, SigningKey};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::message::SignedVote;
use crate::codec::{CodecError, Reader, put_bytes, put_len};

/// Most validators in a set (DESIGN.md 7): a certificate is never longer.
pub const VALIDATORS_MAX: usize = 50;
/// Most bytes of transactions in a block.
pub const BLOCK_LEN_BYTES_MAX: usize = 1 << 20;
/// Most bytes in a transaction.
pub const TX_LEN_BYTES_MAX: usize = 64 << 10;
/// Most transactions in a block. No transaction is shorter than its signature, so that 1 MiB holds
/// fewer; the bound keeps a decoder from counting empty ones.
pub const BLOCK_TXS_MAX: usize = BLOCK_LEN_BYTES_MAX / 64;

/// SHA-256 of a block's header: what is voted on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub [u8; 32]);

impl std::fmt::Display for BlockId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One signer of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validator {
    /// Its node key.
    pub key: [u8; 32],
    /// Its share of the vote, never 0.
    pub power: u64,
}

/// Who may sign at one height, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValidatorSet {
    validators: Vec<Validator>,
}

impl ValidatorSet {
    /// Builds a set; entries without power are left out, of two entries with one key the later
    /// wins.
    pub fn new(entries: impl IntoIterator<Item = Validator>) -> Self {
        let mut set = Self::default();
        entries.into_iter().for_each(|entry| set.update(entry));
        set
    }

    /// Gives `entry.key` its new power; 0 takes it out.
    pub fn update(&mut self, entry: Validator) {
        match (self.validators.binary_search_by_key(&entry.key, |v| v.key), entry.power) {
            (Ok(at), 0) => drop(self.validators.remove(at)),
            (Ok(at), power) => self.validators[at].power = power,
            (Err(_), 0) => {}
            (Err(at), _) => self.validators.insert(at, entry),
        }
    }

    /// The power of `key`, when it may sign.
    pub fn power(&self, key: &[u8; 32]) -> Option<u64> {
        self.index(key).map(|at| self.validators[at].power)
    }

    /// The position of `key` in the order of proposers.
    pub fn index(&self, key: &[u8; 32]) -> Option<usize> {
        self.validators.binary_search_by_key(key, |v| v.key).ok()
    }

    /// The members in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Validator> {
        self.validators.iter()
    }

    /// The member at `index`.
    pub fn get(&self, index: usize) -> Option<&Validator> {
        self.validators.get(index)
    }

    /// How many may sign.
    pub fn len(&self) -> usize {
        self.validators.len()
    }

    /// Whether nobody may sign: such a market has ended.
    pub fn is_empty(&self) -> bool {
        self.validators.is_empty()
    }

    /// The power of all.
    pub fn power_total(&self) -> u64 {
        self.validators.iter().fold(0, |sum, v| sum.saturating_add(v.power))
    }

    /// Whether `power` is more than two thirds of the whole.
    pub fn is_quorum(&self, power: u64) -> bool {
        u128::from(power) * 3 > u128::from(self.power_total()) * 2
    }

    /// Whether `power` is more than a third of the whole: at least one of its holders is honest.
    pub fn has_honest(&self, power: u64) -> bool {
        u128::from(power) * 3 > u128::from(self.power_total())
    }

    /// SHA-256 of the set.
    pub fn hash(&self) -> [u8; 32] {
        let mut bytes = b"ringseed/validators/1".to_vec();
        self.encode(&mut bytes);
        Sha256::digest(&bytes).into()
    }

    /// Appends the canonical bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_len(out, self.validators.len());
        for validator in &self.validators {
            out.extend_from_slice(&validator.key);
            out.extend_from_slice(&validator.power.to_le_bytes());
        }
    }

    /// Reads what [`ValidatorSet::encode`] wrote.
    ///
    /// # Errors
    /// See [`CodecError`].
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let count = reader.count(1 << 16, 40)?;
        let mut set = Self::default();
        for _ in 0..count {
            set.update(Validator { key: reader.array()?, power: reader.u64()? });
        }
        Ok(set)
    }
}

/// Everything a block says but its transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// The market.
    pub genesis_hash: [u8; 32],
    /// The first block has height 1.
    pub height: u64,
    /// The block before; all zero for the first.
    pub parent: BlockId,
    /// The app hash after the parent.
    pub app_hash: [u8; 32],
    /// Hash of the set that signs this block.
    pub validators_hash: [u8; 32],
    /// Hash of the set that signs the next one.
    pub next_validators_hash: [u8; 32],
    /// RFC 6962 root over the transactions.
    pub txs_root: [u8; 32],
    /// SHA-256 of the parent's certificate as this block carries it.
    pub last_certificate_hash: [u8; 32],
    /// SHA-256 of the proofs of equivocation that this block carries.
    pub evidence_hash: [u8; 32],
    /// Who made the block (a later round may propose it again).
    pub proposer: [u8; 32],
}

impl BlockHeader {
    /// Length of the encoding: every field is fixed.
    const LEN_BYTES: usize = 8 + 9 * 32;

    /// What is voted on.
    pub fn id(&self) -> BlockId {
        let mut bytes = b"ringseed/block/1".to_vec();
        self.encode(&mut bytes);
        BlockId(Sha256::digest(&bytes).into())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.genesis_hash);
        out.extend_from_slice(&self.height.to_le_bytes());
        for hash in [
            &self.parent.0,
            &self.app_hash,
            &self.validators_hash,
            &self.next_validators_hash,
            &self.txs_root,
            &self.last_certificate_hash,
            &self.evidence_hash,
            &self.proposer,
        ] {
            out.extend_from_slice(hash);
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self {
            genesis_hash: reader.array()?,
            height: reader.u64()?,
            parent: BlockId(reader.array()?),
            app_hash: reader.array()?,
            validators_hash: reader.array()?,
            next_validators_hash: reader.array()?,
            txs_root: reader.array()?,
            last_certificate_hash: reader.array()?,
            evidence_hash: reader.array()?,
            proposer: reader.array()?,
        })
    }
}

/// A block of the market's chain: ordered transactions under a header. (STYLE.md: never a bare
/// "block", which is 16 KiB of a piece.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainBlock {
    /// What is hashed into the id.
    pub header: BlockHeader,
    /// The transactions, in the order of execution.
    pub txs: Vec<Vec<u8>>,
    /// The proposer's certificate for the parent; `None` only in the first block. Only this copy
    /// may influence the ledger: local certificates differ between nodes.
    pub last_certificate: Option<Certificate>,
    /// Proofs that validators voted twice, at most [`BLOCK_EVIDENCE_MAX`].
    pub evidence: Vec<DoubleVote>,
}

/// Most proofs of equivocation in a block; what does not fit waits for the next.
pub const BLOCK_EVIDENCE_MAX: usize = 16;

/// Two different votes of one validator, of one kind, for one height and round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoubleVote {
    /// The vote with the lesser id, so that one crime has one encoding.
    pub first: SignedVote,
    /// The other.
    pub second: SignedVote,
}

impl DoubleVote {
    /// Orders the two votes.
    pub fn new(a: SignedVote, b: SignedVote) -> Self {
        if a.id <= b.id { Self { first: a, second: b } } else { Self { first: b, second: a } }
    }

    /// Who voted twice, and at which height; `None` when it proves nothing in this market.
    pub fn proven(&self, genesis_hash: &[u8; 32]) -> Option<([u8; 32], u64)> {
        let Self { first, second } = self;
        let same = (first.kind, first.height, first.round, first.key)
            == (second.kind, second.height, second.round, second.key);
        let proven = same
            && first.id < second.id
            && first.verify(genesis_hash)
            && second.verify(genesis_hash);
        proven.then_some((first.key, first.height))
    }
}

impl ChainBlock {
    /// Most bytes of an encoded block: the body's bound, a length per transaction, a certificate.
    pub const ENCODED_LEN_BYTES_MAX: usize = BlockHeader::LEN_BYTES
        + BLOCK_LEN_BYTES_MAX
        + 4 * BLOCK_TXS_MAX
        + Certificate::ENCODED_LEN_BYTES_MAX
        + BLOCK_EVIDENCE_MAX * 2 * 142
        + 16;

    /// What is voted on.
    pub fn id(&self) -> BlockId {
        self.header.id()
    }

    /// Whether the body is the one that the header speaks of.
    pub fn body_matches_header(&self) -> bool {
        self.header.txs_root == txs_root(&self.txs)
            && self.header.last_certificate_hash == certificate_hash(self.last_certificate.as_ref())
            && self.header.evidence_hash == evidence_hash(&self.evidence)
    }

    /// Appends the canonical bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.header.encode(out);
        match &self.last_certificate {
            None => out.push(0),
            Some(certificate) => {
                out.push(1);
                certificate.encode(out);
            }
        }
        put_evidence(out, &self.evidence);
        put_len(out, self.txs.len());
        self.txs.iter().for_each(|tx| put_bytes(out, tx));
    }

    /// Reads what [`ChainBlock::encode`] wrote. Whether the body fits the header is another
    /// question: [`ChainBlock::body_matches_header`].
    ///
    /// # Errors
    /// See [`CodecError`].
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let header = BlockHeader::decode(reader)?;
        let last_certificate = reader.bool()?.then(|| Certificate::decode(reader)).transpose()?;
        let count = reader.count(BLOCK_EVIDENCE_MAX, 2 * 110)?;
        let mut evidence = Vec::with_capacity(count);
        for _ in 0..count {
            let (first, second) = (SignedVote::decode(reader)?, SignedVote::decode(reader)?);
            evidence.push(DoubleVote { first, second });
        }
        let count = reader.count(BLOCK_TXS_MAX, 4)?;
        let mut txs = Vec::with_capacity(count);
        let mut total_bytes = 0;
        for _ in 0..count {
            let tx = reader.bytes(TX_LEN_BYTES_MAX)?;
            total_bytes += tx.len();
            if total_bytes > BLOCK_LEN_BYTES_MAX {
                let max = BLOCK_LEN_BYTES_MAX as u64;
                return Err(CodecError::TooLong { found: total_bytes as u64, max });
            }
            txs.push(tx.to_vec());
        }
        Ok(Self { header, txs, last_certificate, evidence })
    }
}

/// RFC 6962 root over transactions; the root of none is the hash of nothing.
pub fn txs_root(txs: &[Vec<u8>]) -> [u8; 32] {
    fn root(leaves: &[[u8; 32]]) -> [u8; 32] {
        match leaves {
            [] => Sha256::digest([]).into(),
            [leaf] => *leaf,
            more => {
                let split = more.len().next_power_of_two() / 2;
                let (left, right) = more.split_at(split);
                let mut hasher = Sha256::new();
                hasher.update([1]);
                hasher.update(root(left));
                hasher.update(root(right));
                hasher.finalize().into()
            }
        }
    }
    let leaf = |tx: &Vec<u8>| {
        let mut hasher = Sha256::new();
        hasher.update([0]);
        hasher.update(tx);
        hasher.finalize().into()
    };
    root(&txs.iter().map(leaf).collect::<Vec<_>>())
}

/// SHA-256 of a certificate's encoding; zero for none.
pub fn certificate_hash(certificate: Option<&Certificate>) -> [u8; 32] {
    let Some(certificate) = certificate else { return [0; 32] };
    let mut bytes = Vec::new();
    certificate.encode(&mut bytes);
    Sha256::digest(&bytes).into()
}

/// SHA-256 of proofs of equivocation; zero for none.
pub fn evidence_hash(evidence: &[DoubleVote]) -> [u8; 32] {
    if evidence.is_empty() {
        return [0; 32];
    }
    let mut bytes = Vec::new();
    put_evidence(&mut bytes, evidence);
    Sha256::digest(&bytes).into()
}

fn put_evidence(out: &mut Vec<u8>, evidence: &[DoubleVote]) {
    put_len(out, evidence.len());
    for double in evidence {
        double.first.encode(out);
        double.second.encode(out);
    }
}

/// Which of the two votes of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VoteKind {
    /// "I saw this block and it is valid", or nil.
    Prevote,
    /// "I saw that more than two thirds did", or nil.
    Precommit,
}

/// The bytes a vote signs. A vote for nil has no id.
pub fn vote_sign_bytes(
    genesis_hash: &[u8; 32],
    kind: VoteKind,
    height: u64,
    round: u32,
    id: Option<&BlockId>,
) -> Vec<u8> {
    let mut bytes = b"ringseed/vote/1".to_vec();
    bytes.extend_from_slice(genesis_hash);
    bytes.push(match kind {
        VoteKind::Prevote => 1,
        VoteKind::Precommit => 2,
    });
    bytes.extend_from_slice(&height.to_le_bytes());
    bytes.extend_from_slice(&round.to_le_bytes());
    bytes.push(u8::from(id.is_some()));
    bytes.extend_from_slice(&id.copied().unwrap_or_default().0);
    bytes
}

/// The bytes a proposal signs; `pol_round` is the round whose prevotes justify proposing again.
pub fn proposal_sign_bytes(
    genesis_hash: &[u8; 32],
    height: u64,
    round: u32,
    pol_round: Option<u32>,
    id: &BlockId,
) -> Vec<u8> {
    let mut bytes = b"ringseed/proposal/1".to_vec();
    bytes.extend_from_slice(genesis_hash);
    bytes.extend_from_slice(&height.to_le_bytes());
    bytes.extend_from_slice(&round.to_le_bytes());
    bytes.extend_from_slice(&pol_round.map_or(-1, i64::from).to_le_bytes());
    bytes.extend_from_slice(&id.0);
    bytes
}

/// The one verification rule of the market, the ledger's ([`PublicKey::verify`]), over raw bytes.
pub fn verify_strict(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    PublicKey(*key).verify(message, &Signature(*signature)).is_ok()
}

/// Signs `message`.
pub fn sign(key: &SigningKey, message: &[u8]) -> [u8; 64] {
    key.sign(message).0
}

/// Precommits of more than two thirds of the power for one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The block's height.
    pub height: u64,
    /// The round in which it was decided.
    pub round: u32,
    /// The block.
    pub block_id: BlockId,
    /// Signers and their signatures, in the order of the keys.
    pub signatures: Vec<([u8; 32], [u8; 64])>,
}

/// Why a certificate proves nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CertificateError {
    /// The block belongs to another market, perhaps one of the same name.
    #[error("the block belongs to another market")]
    OtherMarket,
    /// The certificate or the block is for another height than the one asked for.
    #[error("height {found} where {wanted} is due")]
    OtherHeight {
        /// The height due.
        wanted: u64,
        /// The height found.
        found: u64,
    },
    /// The transactions or the parent's certificate are not those of the header.
    #[error("the body is not the one that the header speaks of")]
    AlteredBody,
    /// The certificate is for another block of this height.
    #[error("the certificate is for another block")]
    OtherBlock,
    /// The header names another validator set than our replay gives.
    #[error("the header names another validator set than our replay gives")]
    OtherValidators,
    /// The block does not follow ours: another parent or another app hash.
    #[error("the block does not continue our chain")]
    OtherChain,
    /// A signer has no power at this height.
    #[error("signed by {}, who has no power at this height", hex(.key))]
    NotAValidator {
        /// The signer.
        key: [u8; 32],
    },
    /// A signer appears twice.
    #[error("signed twice by {}", hex(.key))]
    SignedTwice {
        /// The signer.
        key: [u8; 32],
    },
    /// A signature was made for another round.
    #[error("claims round {claimed}, but {} signed round {signed}", hex(.key))]
    OtherRound {
        /// The signer.
        key: [u8; 32],
        /// The round on the certificate.
        claimed: u32,
        /// The round that the signature is for.
        signed: u32,
    },
    /// A signature is not one of this signer for this block.
    #[error("the signature of {} is wrong", hex(.key))]
    BadSignature {
        /// The signer.
        key: [u8; 32],
    },
    /// Not more than two thirds of the power signed.
    #[error("{signed} of {total} signed; more than two thirds are needed")]
    NoQuorum {
        /// Power that signed.
        signed: u64,
        /// Power of all.
        total: u64,
    },
}

/// How many rounds are tried to tell a certificate of another round from a forged one. Rounds
/// above a handful are rare; past this bound the answer is "wrong signature".
const DIAGNOSED_ROUNDS: u32 = 16;

impl Certificate {
    /// Most bytes of an encoded certificate.
    pub const ENCODED_LEN_BYTES_MAX: usize = 48 + VALIDATORS_MAX * 96;

    /// Checks that more than two thirds of the power of `set` signed exactly `block` at `height`
    /// in the market `genesis_hash`. `set` must come from our own replay.
    ///
    /// # Errors
    /// A [`CertificateError`] that tells the first thing found wrong.
    pub fn verify(
        &self,
        genesis_hash: &[u8; 32],
        height: u64,
        set: &ValidatorSet,
        block: &ChainBlock,
    ) -> Result<(), CertificateError> {
        if block.header.genesis_hash != *genesis_hash {
            return Err(CertificateError::OtherMarket);
        }
        if block.header.height != height {
            let found = block.header.height;
            return Err(CertificateError::OtherHeight { wanted: height, found });
        }
        if block.header.validators_hash != set.hash() {
            return Err(CertificateError::OtherValidators);
        }
        if !block.body_matches_header() {
            return Err(CertificateError::AlteredBody);
        }
        self.verify_id(genesis_hash, height, set, &block.id())
    }

    /// Checks that more than two thirds of the power of `set` signed `block_id` at `height`.
    ///
    /// # Errors
    /// See [`Certificate::verify`].
    pub fn verify_id(
        &self,
        genesis_hash: &[u8; 32],
        height: u64,
        set: &ValidatorSet,
        block_id: &BlockId,
    ) -> Result<(), CertificateError> {
        if self.height != height {
            return Err(CertificateError::OtherHeight { wanted: height, found: self.height });
        }
        if self.block_id != *block_id {
            return Err(CertificateError::OtherBlock);
        }
        // Who signed, before any signature: junk costs no curve arithmetic.
        let mut seen = BTreeSet::new();
        let mut signed: u64 = 0;
        for (key, _) in &self.signatures {
            if !seen.insert(key) {
                return Err(CertificateError::SignedTwice { key: *key });
            }
            let power = set.power(key).ok_or(CertificateError::NotAValidator { key: *key })?;
            signed = signed.saturating_add(power);
        }
        if !set.is_quorum(signed) {
            return Err(CertificateError::NoQuorum { signed, total: set.power_total() });
        }
        let bytes = |round| {
            vote_sign_bytes(genesis_hash, VoteKind::Precommit, height, round, Some(block_id))
        };
        let message = bytes(self.round);
        for (key, signature) in &self.signatures {
            if verify_strict(key, &message, signature) {
                continue;
            }
            let signed =
                (0..DIAGNOSED_ROUNDS).find(|at| verify_strict(key, &bytes(*at), signature));
            return Err(match signed {
                Some(signed) => {
                    CertificateError::OtherRound { key: *key, claimed: self.round, signed }
                }
                None => CertificateError::BadSignature { key: *key },
            });
        }
        Ok(())
    }

    /// Appends the canonical bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.height.to_le_bytes());
        out.extend_from_slice(&self.round.to_le_bytes());
        out.extend_from_slice(&self.block_id.0);
        put_len(out, self.signatures.len());
        for (key, signature) in &self.signatures {
            out.extend_from_slice(key);
            out.extend_from_slice(signature);
        }
    }

    /// Reads what [`Certificate::encode`] wrote.
    ///
    /// # Errors
    /// See [`CodecError`].
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let (height, round) = (reader.u64()?, reader.u32()?);
        let block_id = BlockId(reader.array()?);
        let count = reader.count(VALIDATORS_MAX, 96)?;
        let mut signatures = Vec::with_capacity(count);
        for _ in 0..count {
            signatures.push((reader.array()?, reader.array()?));
        }
        Ok(Self { height, round, block_id, signatures })
    }
}

/// Lower-case hex, for people.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "certificate_tests.rs"]
mod tests;
