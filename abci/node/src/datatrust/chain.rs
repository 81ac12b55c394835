//! The datatrust's hand on the ledger: signs, numbers and submits its transactions, one at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringseed_abci::{Driver, SubmitError};
use ringseed_ledger::{PublicKey, SigningKey, Tx, TxBody, TxCode};

use crate::error::{Code, Error, Result};

/// Heights ahead for which a transaction stays valid: minutes at a market's usual pace, and far
/// below what the ledger allows.
const VALID_HEIGHTS: u64 = 600;
/// A nonce that is taken means that an earlier transaction of ours was committed late: sign anew.
const NONCE_TRIES_MAX: u32 = 5;

/// A consensus handle with this datatrust's key.
pub struct Chain {
    driver: Arc<dyn Driver>,
    key: SigningKey,
    /// Held from choosing a nonce until its transaction is committed: nonces have no gaps.
    turn: Mutex<()>,
}

impl Chain {
    /// Signs for `driver` with `key`.
    pub fn new(driver: Arc<dyn Driver>, key: SigningKey) -> Chain {
        Chain { driver, key, turn: Mutex::new(()) }
    }

    /// The consensus handle.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// This datatrust's public key.
    pub fn me(&self) -> PublicKey {
        self.key.public()
    }

    /// Signs and submits `body`, and waits at most `wait` for the block that holds it. Returns the
    /// block's height.
    ///
    /// # Errors
    /// [`Code::Refused`] with the ledger's reason, [`Code::TimedOut`] when no block came.
    pub fn submit(&self, body: TxBody, wait: Duration) -> Result<u64> {
        let kind = body.kind_name();
        let began = Instant::now();
        // A panic in another thread has not harmed what this guards: an order in time.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..NONCE_TRIES_MAX {
            let (nonce, height, genesis) = {
                let view = self.driver.view();
                (view.nonce(&self.me()) + 1, view.height(), view.genesis_hash())
            };
            let tx = Tx::sign(&self.key, &genesis, nonce, height + VALID_HEIGHTS, body.clone())
                .map_err(|error| {
                    Error::new(Code::Refused, format!("this cannot be a transaction: {error}"))
                })?;
            let left = wait.saturating_sub(began.elapsed());
            match self.driver.submit(tx.to_bytes(), left) {
                Ok(outcome) if outcome.code == TxCode::Ok => return Ok(outcome.height),
                Ok(outcome) if is_stale_nonce(outcome.code) => {}
                Ok(outcome) => return Err(refused(kind, outcome.code, &outcome.info)),
                Err(SubmitError::Refused { code, .. }) if is_stale_nonce(code) => {
                    if began.elapsed() >= wait {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(SubmitError::Refused { code, info }) => return Err(refused(kind, code, &info)),
                Err(error @ SubmitError::Full) => {
                    return Err(Error::new(Code::Refused, format!("{kind}: {error}"))
                        .cure("try again in a moment"));
                }
                Err(SubmitError::Timeout { .. }) => break,
                Err(SubmitError::Stopped) => {
                    return Err(Error::new(
                        Code::Unreachable,
                        format!("{kind}: consensus has stopped"),
                    ));
                }
            }
        }
        Err(Error::new(
            Code::TimedOut,
            format!("{kind}: not in a block after {}", crate::units::time(began.elapsed())),
        )
        .why("too few validators answer, or they cannot reach this datatrust; it may be committed later")
        .cure("ringseed status --all"))
    }
}

fn is_stale_nonce(code: TxCode) -> bool {
    matches!(code, TxCode::NonceUsed | TxCode::NonceAhead)
}

/// The error that says what the ledger said.
fn refused(kind: &str, code: TxCode, info: &str) -> Error {
    let name = format!("{} ({})", code.name(), code.number());
    let why = if info.is_empty() { name } else { format!("{name}: {info}") };
    Error::new(Code::Refused, format!("{kind}: {}", code.text())).why(why).cure(code.cure())
}

/// The ledger's code that an error of [`Chain::submit`] carries.
pub fn ledger_code(error: &Error) -> Option<TxCode> {
    let why = error.why.as_deref().filter(|_| error.code == Code::Refused)?;
    let number = why.split_once('(')?.1.split_once(')')?.0.parse().ok()?;
    TxCode::from_number(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_exit_11_and_keeps_the_ledgers_code() {
        for code in TxCode::ALL {
            let error = refused("remove", *code, "x (y) z");
            assert_eq!(error.code.exit(), 11);
            assert_eq!(ledger_code(&error), Some(*code));
            assert!(error.what.contains(code.text()));
        }
        assert_eq!(ledger_code(&Error::bug("x (7)")), None);
    }
}
