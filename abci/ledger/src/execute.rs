//! stub
use crate::block::*;
use crate::state::State;
pub(crate) fn execute(_state: &State, _block: &DecidedBlock) -> BlockOutcome {
    todo!()
}
pub(crate) fn may_claim_power(_state: &State, _key: &crate::PublicKey) -> bool {
    todo!()
}
