//! Keys, signatures under one rule, and the 32-byte names of things.

use core::fmt;
use core::str::FromStr;

use ed25519_dalek::Signer as _;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// A hexadecimal text that names no 32 bytes.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("expected {expected} hexadecimal digits")]
pub struct ParseHexError {
    expected: usize,
}

/// SHA-256 of `parts`, one after the other.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

pub(crate) fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseHexError> {
    let error = ParseHexError { expected: N.saturating_mul(2) };
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !odd.is_empty() {
        return Err(error);
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let (high, low) = digit(high).zip(digit(low)).ok_or(error)?;
        *byte = (high << 4) | low;
    }
    Ok(bytes)
}

macro_rules! name_of_bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseHexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text).map(Self)
            }
        }

        impl From<[u8; $len]> for $name {
            fn from(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
    };
}

name_of_bytes! {
    /// An ed25519 public key: who signs, who is a member, who owns a listing.
    PublicKey, 32
}
name_of_bytes! {
    /// The identity of a listing or candidate: the BitTorrent v2 infohash (BEP 52, SHA-256).
    DataHash, 32
}
name_of_bytes! {
    /// SHA-256 of a genesis in its fixed binary encoding: the full name of a market.
    GenesisHash, 32
}
name_of_bytes! {
    /// Root of the Merkle tree over all state.
    AppHash, 32
}
name_of_bytes! {
    /// SHA-256 of an encoded transaction.
    TxHash, 32
}
name_of_bytes! {
    /// The BitTorrent v1 infohash (SHA-1). Never an identity: it only tells nodes what to check.
    InfoHashV1, 20
}
name_of_bytes! {
    /// An ed25519 signature.
    Signature, 64
}

/// A signature that does not verify, or a public key that is no usable point.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the signature does not verify")]
pub struct BadSignature;

impl PublicKey {
    /// Verifies by the one rule of a market: `verify_strict` of ed25519-dalek, which refuses small
    /// order keys, small order R and a non-canonical S. Batch verification accepts other sets of
    /// signatures and is therefore used nowhere.
    ///
    /// # Errors
    /// [`BadSignature`], also when the key is no point of the curve.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(message, &signature).map_err(|_| BadSignature)
    }

    /// Whether any signature under this key can verify: it is a point, and not of small order.
    pub fn is_usable(&self) -> bool {
        ed25519_dalek::VerifyingKey::from_bytes(&self.0).is_ok_and(|key| !key.is_weak())
    }
}

/// An ed25519 secret key. It is wiped when dropped and never printed.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// The key of a 32-byte seed (RFC 8032). The caller brings the randomness.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `message` as it is. The caller puts a domain string in front of everything it signs.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.public())
    }
}
