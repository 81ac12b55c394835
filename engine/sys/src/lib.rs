//! What touches the machine. All unsafe code of ringseed lives in this crate.
pub mod arena;
pub mod buf;
pub mod checked_map;
pub mod dir;
pub mod direct;
pub mod file;
pub mod hash;
pub mod map;
pub mod net;
pub mod probe;
pub mod process;
mod resident;
pub mod ring;
pub mod wake;

#[cfg(test)]
mod test_child;
#[cfg(test)]
mod test_dir;
