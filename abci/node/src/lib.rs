//! A ringseed datatrust: command line, configuration, control, and the loop that follows the ledger with the engine.
#![forbid(unsafe_code)]
