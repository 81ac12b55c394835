//! SHA-1 and SHA-256 of many messages at once (FIPS 180-4).
//!
//! The calls take any number of messages of any lengths and give the digests in the same order.
//! A message may be made of parts, because a piece spans files and extents.

use sha1::Digest as _;

/// A SHA-1 digest.
pub type Sha1Digest = [u8; 20];
/// A SHA-256 digest.
pub type Sha256Digest = [u8; 32];

/// SHA-1 of each of `messages`, into `out` at the same index.
///
/// # Panics
/// When `out` is not as long as `messages`.
pub fn sha1_many(messages: &[&[u8]], out: &mut [Sha1Digest]) {
    assert_eq!(messages.len(), out.len(), "one digest per message");
    for (message, digest) in messages.iter().zip(out) {
        *digest = sha1::Sha1::digest(message).into();
    }
}

/// SHA-256 of each of `messages`, into `out` at the same index.
///
/// # Panics
/// When `out` is not as long as `messages`.
pub fn sha256_many(messages: &[&[u8]], out: &mut [Sha256Digest]) {
    assert_eq!(messages.len(), out.len(), "one digest per message");
    for (message, digest) in messages.iter().zip(out) {
        *digest = sha2::Sha256::digest(message).into();
    }
}

/// SHA-1 of each of `messages`, each the concatenation of its parts.
///
/// # Panics
/// When `out` is not as long as `messages`.
pub fn sha1_many_parts(messages: &[&[&[u8]]], out: &mut [Sha1Digest]) {
    assert_eq!(messages.len(), out.len(), "one digest per message");
    for (parts, digest) in messages.iter().zip(out) {
        let mut hasher = sha1::Sha1::new();
        parts.iter().for_each(|part| hasher.update(part));
        *digest = hasher.finalize().into();
    }
}

/// SHA-256 of each of `messages`, each the concatenation of its parts.
///
/// # Panics
/// When `out` is not as long as `messages`.
pub fn sha256_many_parts(messages: &[&[&[u8]]], out: &mut [Sha256Digest]) {
    assert_eq!(messages.len(), out.len(), "one digest per message");
    for (parts, digest) in messages.iter().zip(out) {
        let mut hasher = sha2::Sha256::new();
        parts.iter().for_each(|part| hasher.update(part));
        *digest = hasher.finalize().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_examples_and_parts_agree() {
        // FIPS 180-4 example "abc".
        let mut sha1 = [[0; 20]; 2];
        sha1_many_parts(&[&[b"a", b"", b"bc"], &[b"abc"]], &mut sha1);
        assert_eq!(sha1[0][..4], [0xa9, 0x99, 0x3e, 0x36]);
        assert_eq!(sha1[0], sha1[1]);
        let mut sha256 = [[0; 32]; 2];
        sha256_many_parts(&[&[b"a", b"", b"bc"], &[b"abc"]], &mut sha256);
        assert_eq!(sha256[0][..4], [0xba, 0x78, 0x16, 0xbf]);
        let mut whole = [[0; 32]];
        sha256_many(&[b"abc"], &mut whole);
        assert_eq!(sha256[1], whole[0]);
    }
}
