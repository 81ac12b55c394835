//! What validators say to each other, apart from how the core and the wire spell it.

use super::certificate::{
    BlockId, ChainBlock, VALIDATORS_MAX, VoteKind, proposal_sign_bytes, verify_strict,
    vote_sign_bytes,
};
use crate::codec::{CodecError, Reader, put_len};

/// One vote with its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedVote {
    /// Prevote or precommit.
    pub kind: VoteKind,
    /// For which height.
    pub height: u64,
    /// In which round.
    pub round: u32,
    /// For which block; `None` is nil.
    pub id: Option<BlockId>,
    /// Who votes.
    pub key: [u8; 32],
    /// Over [`vote_sign_bytes`].
    pub signature: [u8; 64],
}

impl SignedVote {
    /// Whether the signature is the voter's for this market.
    pub fn verify(&self, genesis_hash: &[u8; 32]) -> bool {
        let message =
            vote_sign_bytes(genesis_hash, self.kind, self.height, self.round, self.id.as_ref());
        verify_strict(&self.key, &message, &self.signature)
    }

    /// Appends the canonical bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(kind_tag(self.kind));
        out.extend_from_slice(&self.height.to_le_bytes());
        out.extend_from_slice(&self.round.to_le_bytes());
        put_id(out, self.id.as_ref());
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.signature);
    }

    /// Reads what [`SignedVote::encode`] wrote.
    ///
    /// # Errors
    /// See [`CodecError`].
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self {
            kind: kind_of(reader.u8()?)?,
            height: reader.u64()?,
            round: reader.u32()?,
            id: take_id(reader)?,
            key: reader.array()?,
            signature: reader.array()?,
        })
    }
}

/// A proposal with its signature. The block itself travels beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedProposal {
    /// For which height.
    pub height: u64,
    /// In which round.
    pub round: u32,
    /// The round whose prevotes justify proposing the block again.
    pub pol_round: Option<u32>,
    /// The block.
    pub id: BlockId,
    /// Who proposes.
    pub key: [u8; 32],
    /// Over [`proposal_sign_bytes`].
    pub signature: [u8; 64],
}

impl SignedProposal {
    /// Whether the signature is the proposer's for this market.
    pub fn verify(&self, genesis_hash: &[u8; 32]) -> bool {
        let Self { height, round, pol_round, id, key, signature } = self;
        let message = proposal_sign_bytes(genesis_hash, *height, *round, *pol_round, id);
        verify_strict(key, &message, signature)
    }
}

/// Prevotes of more than two thirds for one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolkaCertificate {
    /// At which height.
    pub height: u64,
    /// In which round.
    pub round: u32,
    /// For which block.
    pub id: BlockId,
    /// Signers and signatures.
    pub signatures: Vec<([u8; 32], [u8; 64])>,
}

/// One vote inside a [`RoundCertificate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundVote {
    /// Prevote or precommit.
    pub kind: VoteKind,
    /// For which block; `None` is nil.
    pub id: Option<BlockId>,
    /// Who voted.
    pub key: [u8; 32],
    /// Its signature.
    pub signature: [u8; 64],
}

/// Votes that justify entering a later round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundCertificate {
    /// At which height.
    pub height: u64,
    /// The round of the votes.
    pub round: u32,
    /// More than a third voted in a later round (true), or two thirds precommitted without agreeing
    /// (false).
    pub is_skip: bool,
    /// The votes.
    pub votes: Vec<RoundVote>,
}

/// A message of the consensus protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A vote.
    Vote(SignedVote),
    /// A proposal; its block comes beside it.
    Proposal(SignedProposal),
    /// Why a block may be proposed again.
    Polka(PolkaCertificate),
    /// Why a later round may be entered.
    Round(RoundCertificate),
}

impl Message {
    /// The height that it is about.
    pub fn height(&self) -> u64 {
        match self {
            Self::Vote(vote) => vote.height,
            Self::Proposal(proposal) => proposal.height,
            Self::Polka(certificate) => certificate.height,
            Self::Round(certificate) => certificate.height,
        }
    }

    /// The round that it is about.
    pub fn round(&self) -> u32 {
        match self {
            Self::Vote(vote) => vote.round,
            Self::Proposal(proposal) => proposal.round,
            Self::Polka(certificate) => certificate.round,
            Self::Round(certificate) => certificate.round,
        }
    }

    /// Appends the canonical bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Vote(vote) => {
                out.push(1);
                vote.encode(out);
            }
            Self::Proposal(proposal) => {
                out.push(2);
                out.extend_from_slice(&proposal.height.to_le_bytes());
                out.extend_from_slice(&proposal.round.to_le_bytes());
                put_round(out, proposal.pol_round);
                out.extend_from_slice(&proposal.id.0);
                out.extend_from_slice(&proposal.key);
                out.extend_from_slice(&proposal.signature);
            }
            Self::Polka(certificate) => {
                out.push(3);
                out.extend_from_slice(&certificate.height.to_le_bytes());
                out.extend_from_slice(&certificate.round.to_le_bytes());
                out.extend_from_slice(&certificate.id.0);
                put_len(out, certificate.signatures.len());
                for (key, signature) in &certificate.signatures {
                    out.extend_from_slice(key);
                    out.extend_from_slice(signature);
                }
            }
            Self::Round(certificate) => {
                out.push(4);
                out.extend_from_slice(&certificate.height.to_le_bytes());
                out.extend_from_slice(&certificate.round.to_le_bytes());
                out.push(u8::from(certificate.is_skip));
                put_len(out, certificate.votes.len());
                for vote in &certificate.votes {
                    out.push(kind_tag(vote.kind));
                    put_id(out, vote.id.as_ref());
                    out.extend_from_slice(&vote.key);
                    out.extend_from_slice(&vote.signature);
                }
            }
        }
    }

    /// Reads what [`Message::encode`] wrote.
    ///
    /// # Errors
    /// See [`CodecError`].
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        match reader.u8()? {
            1 => SignedVote::decode(reader).map(Self::Vote),
            2 => Ok(Self::Proposal(SignedProposal {
                height: reader.u64()?,
                round: reader.u32()?,
                pol_round: take_round(reader)?,
                id: BlockId(reader.array()?),
                key: reader.array()?,
                signature: reader.array()?,
            })),
            3 => {
                let (height, round) = (reader.u64()?, reader.u32()?);
                let id = BlockId(reader.array()?);
                let count = reader.count(VALIDATORS_MAX, 96)?;
                let mut signatures = Vec::with_capacity(count);
                for _ in 0..count {
                    signatures.push((reader.array()?, reader.array()?));
                }
                Ok(Self::Polka(PolkaCertificate { height, round, id, signatures }))
            }
            4 => {
                let (height, round) = (reader.u64()?, reader.u32()?);
                let is_skip = reader.bool()?;
                // A validator may stand in it with both of its votes.
                let count = reader.count(2 * VALIDATORS_MAX, 98)?;
                let mut votes = Vec::with_capacity(count);
                for _ in 0..count {
                    votes.push(RoundVote {
                        kind: kind_of(reader.u8()?)?,
                        id: take_id(reader)?,
                        key: reader.array()?,
                        signature: reader.array()?,
                    });
                }
                Ok(Self::Round(RoundCertificate { height, round, is_skip, votes }))
            }
            found => Err(CodecError::UnknownTag { found }),
        }
    }
}

/// Which timer of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerKind {
    /// The proposal did not come.
    Propose,
    /// Two thirds prevoted, but not for one block.
    Prevote,
    /// Two thirds precommitted, but not for one block.
    Precommit,
    /// Nothing moves: say our last votes again.
    Rebroadcast,
}

/// What is written before anything is published, and fed to the core again after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalEntry {
    /// A message that the core accepted, ours included.
    Message(Message),
    /// A timer that fired.
    Timer {
        /// Which.
        kind: TimerKind,
        /// Of which round.
        round: u32,
    },
    /// A block that was proposed, and our verdict.
    Value {
        /// The round in which it came.
        round: u32,
        /// Whether it may be voted for.
        is_valid: bool,
        /// The block.
        block: Box<ChainBlock>,
    },
}

impl WalEntry {
    /// Appends the canonical bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Message(message) => {
                out.push(1);
                message.encode(out);
            }
            Self::Timer { kind, round } => {
                out.push(2);
                out.push(match kind {
                    TimerKind::Propose => 1,
                    TimerKind::Prevote => 2,
                    TimerKind::Precommit => 3,
                    TimerKind::Rebroadcast => 4,
                });
                out.extend_from_slice(&round.to_le_bytes());
            }
            Self::Value { round, is_valid, block } => {
                out.push(3);
                out.extend_from_slice(&round.to_le_bytes());
                out.push(u8::from(*is_valid));
                block.encode(out);
            }
        }
    }

    /// Reads what [`WalEntry::encode`] wrote, to the last byte.
    ///
    /// # Errors
    /// See [`CodecError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let entry = match reader.u8()? {
            1 => Self::Message(Message::decode(&mut reader)?),
            2 => Self::Timer {
                kind: match reader.u8()? {
                    1 => TimerKind::Propose,
                    2 => TimerKind::Prevote,
                    3 => TimerKind::Precommit,
                    4 => TimerKind::Rebroadcast,
                    found => return Err(CodecError::UnknownTag { found }),
                },
                round: reader.u32()?,
            },
            3 => Self::Value {
                round: reader.u32()?,
                is_valid: reader.bool()?,
                block: Box::new(ChainBlock::decode(&mut reader)?),
            },
            found => return Err(CodecError::UnknownTag { found }),
        };
        reader.finish()?;
        Ok(entry)
    }
}

fn kind_tag(kind: VoteKind) -> u8 {
    match kind {
        VoteKind::Prevote => 1,
        VoteKind::Precommit => 2,
    }
}

fn kind_of(tag: u8) -> Result<VoteKind, CodecError> {
    match tag {
        1 => Ok(VoteKind::Prevote),
        2 => Ok(VoteKind::Precommit),
        found => Err(CodecError::UnknownTag { found }),
    }
}

fn put_id(out: &mut Vec<u8>, id: Option<&BlockId>) {
    out.push(u8::from(id.is_some()));
    if let Some(id) = id {
        out.extend_from_slice(&id.0);
    }
}

fn take_id(reader: &mut Reader<'_>) -> Result<Option<BlockId>, CodecError> {
    reader.bool()?.then(|| reader.array().map(BlockId)).transpose()
}

fn put_round(out: &mut Vec<u8>, round: Option<u32>) {
    out.push(u8::from(round.is_some()));
    if let Some(round) = round {
        out.extend_from_slice(&round.to_le_bytes());
    }
}

fn take_round(reader: &mut Reader<'_>) -> Result<Option<u32>, CodecError> {
    reader.bool()?.then(|| reader.u32()).transpose()
}
