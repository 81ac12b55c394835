//! Transactions that wait for a block.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringseed_ledger::{PublicKey, Tx, TxHash};

/// Most transactions that wait.
pub const MEMPOOL_TXS_MAX: usize = 5_000;
/// Most of one signer.
pub const MEMPOOL_TXS_PER_SIGNER_MAX: u32 = 64;

/// One waiting transaction.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its name.
    pub hash: TxHash,
    /// Its bytes.
    pub bytes: Arc<Vec<u8>>,
    /// Whether it came in through our own handle: then we say it again until it is in a block.
    pub is_local: bool,
    signer: PublicKey,
}

/// The waiting transactions in the order of their arrival.
#[derive(Debug, Default)]
pub struct Mempool {
    txs: Vec<Waiting>,
    hashes: BTreeSet<TxHash>,
    signers: BTreeMap<PublicKey, u32>,
}

/// Why a transaction is not even checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// It waits already.
    Known,
    /// [`MEMPOOL_TXS_MAX`] wait.
    Full,
    /// [`MEMPOOL_TXS_PER_SIGNER_MAX`] of its signer wait.
    SignerFull,
}

impl Mempool {
    /// Whether there is room for a transaction: asked before the costly check.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn room_for(&self, hash: &TxHash, signer: &PublicKey) -> Result<(), NoRoom> {
        if self.hashes.contains(hash) {
            return Err(NoRoom::Known);
        }
        if self.txs.len() >= MEMPOOL_TXS_MAX {
            return Err(NoRoom::Full);
        }
        let of_signer = self.signers.get(signer).copied().unwrap_or(0);
        (of_signer < MEMPOOL_TXS_PER_SIGNER_MAX).then_some(()).ok_or(NoRoom::SignerFull)
    }

    /// Appends a checked transaction.
    pub fn push(&mut self, tx: &Tx, hash: TxHash, bytes: Arc<Vec<u8>>, is_local: bool) {
        self.hashes.insert(hash);
        *self.signers.entry(tx.signer).or_default() += 1;
        self.txs.push(Waiting { hash, bytes, is_local, signer: tx.signer });
    }

    /// Keeps those that `keep` wants, in their order.
    pub fn retain(&mut self, mut keep: impl FnMut(&Waiting) -> bool) {
        let mut gone = Vec::new();
        self.txs.retain(|waiting| {
            let kept = keep(waiting);
            if !kept {
                gone.push((waiting.hash, waiting.signer));
            }
            kept
        });
        for (hash, signer) in gone {
            self.hashes.remove(&hash);
            if let Some(count) = self.signers.get_mut(&signer) {
                *count -= 1;
                if *count == 0 {
                    self.signers.remove(&signer);
                }
            }
        }
    }

    /// The oldest, about as many as `len_bytes` hold: what a proposer picks from.
    pub fn oldest(&self, len_bytes: usize) -> Vec<Vec<u8>> {
        let mut left = len_bytes;
        let fits = |waiting: &&Waiting| {
            let fits = left >= waiting.bytes.len();
            left = left.saturating_sub(waiting.bytes.len());
            fits
        };
        self.txs.iter().take_while(fits).map(|waiting| waiting.bytes.to_vec()).collect()
    }

    /// All, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.txs.iter()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.txs.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.txs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use ringseed_ledger::{GenesisHash, SigningKey, TxBody};

    use super::*;

    fn tx(seed: u16, nonce: u64) -> Tx {
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&seed.to_le_bytes());
        let key = SigningKey::from_seed(&bytes);
        Tx::sign(&key, &GenesisHash([1; 32]), nonce, 100, TxBody::Leave).unwrap()
    }

    fn push(mempool: &mut Mempool, tx: &Tx) -> Result<(), NoRoom> {
        let bytes = tx.to_bytes();
        let hash = Tx::hash_of(&bytes);
        mempool.room_for(&hash, &tx.signer)?;
        mempool.push(tx, hash, Arc::new(bytes), false);
        Ok(())
    }

    #[test]
    fn a_signer_and_the_whole_have_their_bounds() {
        let mut mempool = Mempool::default();
        for nonce in 1..=u64::from(MEMPOOL_TXS_PER_SIGNER_MAX) {
            assert_eq!(push(&mut mempool, &tx(1, nonce)), Ok(()));
        }
        assert_eq!(push(&mut mempool, &tx(1, 65)), Err(NoRoom::SignerFull));
        assert_eq!(push(&mut mempool, &tx(1, 5)), Err(NoRoom::Known));
        let mut seed = 2;
        while mempool.len() < MEMPOOL_TXS_MAX {
            for nonce in 1..=u64::from(MEMPOOL_TXS_PER_SIGNER_MAX) {
                if mempool.len() < MEMPOOL_TXS_MAX {
                    assert_eq!(push(&mut mempool, &tx(seed, nonce)), Ok(()));
                }
            }
            seed += 1;
        }
        assert_eq!(push(&mut mempool, &tx(999, 1)), Err(NoRoom::Full));
        mempool.retain(|waiting| waiting.signer != tx(1, 1).signer);
        assert_eq!(push(&mut mempool, &tx(1, 5)), Ok(()));
    }
}
