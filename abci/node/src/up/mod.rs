//! A whole market on one machine.

pub mod children;
pub mod source;
pub mod verify;
