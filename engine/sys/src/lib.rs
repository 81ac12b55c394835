//! What touches the machine. All unsafe code of ringseed lives in this crate.
pub mod arena;
pub mod dir;
pub mod hash;

#[cfg(test)]
mod test_dir;
