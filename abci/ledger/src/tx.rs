//! Transactions: what members sign and everybody executes.
//!
//! ```text
//! magic "RSTX" | version u8 | kind u8 | signer 32 | nonce u64 | valid until u64 | body len u32 | body | signature 64
//! ```
//! Little endian throughout. The signature covers a domain string, the full genesis hash and every
//! byte before itself, so that a transaction means nothing in a market of the same name.

use thiserror::Error;

use crate::addr::Addr;
use crate::codec::{DecodeError, Reader, Writer, field_error};
use crate::genesis::is_member_name;
use crate::key::{
    DataHash, GenesisHash, InfoHashV1, PublicKey, Signature, SigningKey, TxHash, sha256,
};

/// Longest transaction that any market allows, in bytes.
pub const TX_LEN_MAX: usize = 64 * 1024;
/// Longest name of a candidate, in bytes of UTF-8.
pub const LISTING_NAME_LEN_MAX: usize = 128;
/// Most ids in one attestation: as many as a transaction holds.
pub const ATTEST_IDS_MAX: usize = 2_000;

/// Version of the envelope.
pub const TX_VERSION: u8 = 1;

const MAGIC: &[u8; 4] = b"RSTX";
const DOMAIN: &[u8] = b"ringseed transaction v1\0";
const SIGNATURE_LEN: usize = 64;

const _: () = assert!(ATTEST_IDS_MAX * 32 + 256 <= TX_LEN_MAX);

/// A signed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tx {
    /// Whose key signed.
    pub signer: PublicKey,
    /// One more than the signer's last; the first is 1.
    pub nonce: u64,
    /// Last height at which it may be executed.
    pub valid_until_height: u64,
    /// What it asks for.
    pub body: TxBody,
    /// Over domain, genesis hash and everything before it.
    pub signature: Signature,
}

/// What a transaction asks for. Kinds 8 to 63 are kept for what DESIGN names and this version does
/// not do (votes on parameters and rules, deliveries, snapshot anchors, heartbeats).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxBody {
    /// 1: the signer asks to become a member.
    Register(Endpoint),
    /// 2: a member changes its name, addresses or capacity.
    UpdateEndpoint(Endpoint),
    /// 3: the signer leaves: no power, no member.
    Leave,
    /// 4: a validator votes for a registered key; more than two thirds of the power admit it.
    Admit {
        /// Who is to be admitted.
        member: PublicKey,
    },
    /// 5: a member offers a listing. Counts as its attestation; the signer becomes the owner.
    Candidate(Offer),
    /// 6: what a member holds durably and verified, and what no longer.
    Attest {
        /// Candidates and listings that it holds from now on; sorted, unique.
        have: Vec<DataHash>,
        /// Those that it lost; sorted, unique, none of them in `have`.
        withdrawn: Vec<DataHash>,
    },
    /// 7: the owner removes a listing, or takes back a candidate.
    Remove {
        /// Which one.
        listing: DataHash,
    },
}

/// How a member can be reached, and what it can carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What people call it: 1 to 32 of `A-Z a-z 0-9 . _ -`, unique among members.
    pub name: String,
    /// Where it speaks consensus.
    pub consensus_addr: Addr,
    /// Where it serves payload.
    pub payload_addr: Addr,
    /// Upload rate that it declares, in bytes/s; 0 says nothing.
    pub capacity: u64,
}

/// What a candidate says of its data. Every attester checks it against the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The v2 infohash: the identity.
    pub infohash_v2: DataHash,
    /// The v1 infohash of the same bytes.
    pub infohash_v1: InfoHashV1,
    /// Bytes of payload, pads not counted; at least 1.
    pub size_bytes: u64,
    /// Files, pads not counted; at least 1.
    pub file_count: u32,
    /// Piece length as a power of two, 14 (16 KiB) to 30.
    pub piece_len_log2: u8,
    /// What people call it: 1 to 128 bytes, no control characters.
    pub name: String,
}

/// Why bytes are no transaction of this market.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TxError {
    /// Above [`TX_LEN_MAX`].
    #[error("{len} bytes, at most {TX_LEN_MAX} are allowed")]
    TooLarge {
        /// Bytes it had or would have.
        len: usize,
    },
    /// Not the canonical encoding of a transaction.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// An envelope of another version.
    #[error("envelope version {0}, this program knows {TX_VERSION}")]
    UnknownVersion(u8),
    /// A kind that this version of the rules does not have.
    #[error("transaction kind {0} is not known to these rules")]
    UnknownKind(u8),
    /// Altered bytes, another key, or another market.
    #[error("the signature does not verify for this signer in this market")]
    BadSignature,
}

impl Tx {
    /// Signs `body` for the market `genesis`.
    ///
    /// # Errors
    /// [`TxError::Decode`] when a field breaks the format (names, counts, order),
    /// [`TxError::TooLarge`]. What is signed therefore always decodes.
    pub fn sign(
        key: &SigningKey,
        genesis: &GenesisHash,
        nonce: u64,
        valid_until_height: u64,
        body: TxBody,
    ) -> Result<Self, TxError> {
        body.validate()?;
        let signature = Signature([0; SIGNATURE_LEN]);
        let mut tx = Self { signer: key.public(), nonce, valid_until_height, body, signature };
        let unsigned = tx.unsigned_bytes();
        let len = unsigned.len().saturating_add(SIGNATURE_LEN);
        if len > TX_LEN_MAX {
            return Err(TxError::TooLarge { len });
        }
        tx.signature = key.sign(&signed_message(genesis, &unsigned));
        Ok(tx)
    }

    /// The canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.unsigned_bytes();
        bytes.extend_from_slice(&self.signature.0);
        bytes
    }

    /// Reads canonical bytes; does not verify the signature.
    ///
    /// # Errors
    /// [`TxError`], never `BadSignature`. What decodes encodes to the same bytes again.
    pub fn decode(bytes: &[u8]) -> Result<Self, TxError> {
        if bytes.len() > TX_LEN_MAX {
            return Err(TxError::TooLarge { len: bytes.len() });
        }
        let mut reader = Reader::new(bytes);
        if &reader.array::<4>("magic")? != MAGIC {
            return Err(field_error("magic", "is not that of a transaction").into());
        }
        let version = reader.u8("version")?;
        if version != TX_VERSION {
            return Err(TxError::UnknownVersion(version));
        }
        let kind = reader.u8("kind")?;
        let signer = PublicKey(reader.array("signer")?);
        let nonce = reader.u64("nonce")?;
        let valid_until_height = reader.u64("valid until")?;
        let body = TxBody::decode(kind, reader.blob("body")?)?;
        let signature = Signature(reader.array("signature")?);
        reader.finish()?;
        Ok(Self { signer, nonce, valid_until_height, body, signature })
    }

    /// Verifies the signature for the market `genesis`.
    ///
    /// # Errors
    /// [`TxError::BadSignature`].
    pub fn verify(&self, genesis: &GenesisHash) -> Result<(), TxError> {
        self.signer
            .verify(&signed_message(genesis, &self.unsigned_bytes()), &self.signature)
            .map_err(|_| TxError::BadSignature)
    }

    /// The name under which a transaction is asked for.
    pub fn hash_of(bytes: &[u8]) -> TxHash {
        TxHash(sha256(&[bytes]))
    }

    fn unsigned_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(MAGIC).u8(TX_VERSION).u8(self.body.kind()).bytes(&self.signer.0);
        writer.u64(self.nonce).u64(self.valid_until_height).blob(&self.body.to_bytes());
        writer.into_bytes()
    }
}

fn signed_message(genesis: &GenesisHash, unsigned: &[u8]) -> Vec<u8> {
    [DOMAIN, &genesis.0, unsigned].concat()
}

impl TxBody {
    /// The stable number of the kind.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Register(_) => 1,
            Self::UpdateEndpoint(_) => 2,
            Self::Leave => 3,
            Self::Admit { .. } => 4,
            Self::Candidate(_) => 5,
            Self::Attest { .. } => 6,
            Self::Remove { .. } => 7,
        }
    }

    /// What people call the kind.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::UpdateEndpoint(_) => "update endpoint",
            Self::Leave => "leave",
            Self::Admit { .. } => "admit",
            Self::Candidate(_) => "candidate",
            Self::Attest { .. } => "attest",
            Self::Remove { .. } => "remove",
        }
    }

    /// An attestation of ids in any order: sorts them and drops repetitions.
    pub fn attest(mut have: Vec<DataHash>, mut withdrawn: Vec<DataHash>) -> Self {
        have.sort_unstable();
        have.dedup();
        withdrawn.sort_unstable();
        withdrawn.dedup();
        Self::Attest { have, withdrawn }
    }

    /// Checks what the encoding alone can check.
    ///
    /// # Errors
    /// The first field that breaks its rule.
    pub fn validate(&self) -> Result<(), DecodeError> {
        match self {
            Self::Register(endpoint) | Self::UpdateEndpoint(endpoint) => endpoint.validate(),
            Self::Leave | Self::Admit { .. } | Self::Remove { .. } => Ok(()),
            Self::Candidate(offer) => offer.validate(),
            Self::Attest { have, withdrawn } => {
                if have.len().saturating_add(withdrawn.len()) > ATTEST_IDS_MAX {
                    return Err(field_error("attested ids", "are more than a transaction holds"));
                }
                if !is_sorted_unique(have) || !is_sorted_unique(withdrawn) {
                    return Err(field_error("attested ids", "are not sorted and unique"));
                }
                if have.iter().any(|id| withdrawn.binary_search(id).is_ok()) {
                    return Err(field_error("attested ids", "are both held and withdrawn"));
                }
                Ok(())
            }
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        match self {
            Self::Register(endpoint) | Self::UpdateEndpoint(endpoint) => {
                endpoint.write(&mut writer)
            }
            Self::Leave => {}
            Self::Admit { member } => {
                writer.bytes(&member.0);
            }
            Self::Candidate(offer) => offer.write(&mut writer),
            Self::Attest { have, withdrawn } => {
                for ids in [have, withdrawn] {
                    writer.u16(u16::try_from(ids.len()).unwrap_or(u16::MAX));
                    ids.iter().for_each(|id| {
                        writer.bytes(&id.0);
                    });
                }
            }
            Self::Remove { listing } => {
                writer.bytes(&listing.0);
            }
        }
        writer.into_bytes()
    }

    fn decode(kind: u8, bytes: &[u8]) -> Result<Self, TxError> {
        let mut reader = Reader::new(bytes);
        let body = match kind {
            1 => Self::Register(Endpoint::read(&mut reader)?),
            2 => Self::UpdateEndpoint(Endpoint::read(&mut reader)?),
            3 => Self::Leave,
            4 => Self::Admit { member: PublicKey(reader.array("member")?) },
            5 => Self::Candidate(Offer::read(&mut reader)?),
            6 => Self::Attest { have: read_ids(&mut reader)?, withdrawn: read_ids(&mut reader)? },
            7 => Self::Remove { listing: DataHash(reader.array("listing")?) },
            _ => return Err(TxError::UnknownKind(kind)),
        };
        reader.finish()?;
        body.validate()?;
        Ok(body)
    }
}

fn read_ids(reader: &mut Reader<'_>) -> Result<Vec<DataHash>, DecodeError> {
    let count = reader.u16("attested ids")?;
    (0..count).map(|_| reader.array("attested ids").map(DataHash)).collect()
}

fn is_sorted_unique(ids: &[DataHash]) -> bool {
    ids.is_sorted_by(|a, b| a < b)
}

impl Endpoint {
    pub(crate) fn validate(&self) -> Result<(), DecodeError> {
        match is_member_name(&self.name) {
            true => Ok(()),
            false => Err(field_error("name", "must be 1 to 32 of A-Z a-z 0-9 . _ -")),
        }
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.text(&self.name);
        self.consensus_addr.write(writer);
        self.payload_addr.write(writer);
        writer.u64(self.capacity);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let endpoint = Self {
            name: reader.text(crate::genesis::MEMBER_NAME_LEN_MAX, "name")?,
            consensus_addr: Addr::read(reader, "consensus address")?,
            payload_addr: Addr::read(reader, "payload address")?,
            capacity: reader.u64("capacity")?,
        };
        endpoint.validate()?;
        Ok(endpoint)
    }
}

impl Offer {
    pub(crate) fn validate(&self) -> Result<(), DecodeError> {
        if self.size_bytes == 0 {
            return Err(field_error("size", "must be at least 1 byte"));
        }
        if self.file_count == 0 {
            return Err(field_error("file count", "must be at least 1"));
        }
        if !(14..=30).contains(&self.piece_len_log2) {
            return Err(field_error("piece length", "must be 2^14 to 2^30 bytes"));
        }
        if !(1..=LISTING_NAME_LEN_MAX).contains(&self.name.len()) {
            return Err(field_error("name", "must be 1 to 128 bytes"));
        }
        if self.name.chars().any(char::is_control) {
            return Err(field_error("name", "must not hold control characters"));
        }
        Ok(())
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.bytes(&self.infohash_v2.0).bytes(&self.infohash_v1.0);
        writer.u64(self.size_bytes).u32(self.file_count).u8(self.piece_len_log2).text(&self.name);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let offer = Self {
            infohash_v2: DataHash(reader.array("infohash v2")?),
            infohash_v1: InfoHashV1(reader.array("infohash v1")?),
            size_bytes: reader.u64("size")?,
            file_count: reader.u32("file count")?,
            piece_len_log2: reader.u8("piece length")?,
            name: reader.text(LISTING_NAME_LEN_MAX, "name")?,
        };
        offer.validate()?;
        Ok(offer)
    }
}
