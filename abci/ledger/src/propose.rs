//! stub
use crate::block::*;
use crate::state::State;
pub(crate) fn check_tx(_state: &State, _tx: &[u8], _pending: &PendingNonces) -> TxResult {
    todo!()
}
pub(crate) fn prepare(_state: &State, _block: &DecidedBlock) -> Vec<Vec<u8>> {
    todo!()
}
pub(crate) fn process(_state: &State, _block: &DecidedBlock) -> Result<(), ProposalFault> {
    todo!()
}
