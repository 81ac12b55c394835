//! What a driver needs that lives in a crate of its own, such as those on another crate's runtime.
//!
//! This crate knows no such driver. A program that has one names it in
//! [`IoDriver::External`](crate::IoDriver::External); the engine then starts it once for each shard, on a
//! thread of that shard. The driver sets itself up, asks its [`Seat`] for the machine, and runs it.
//! The suite that every driver must pass is behind the feature `conformance`.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ringseed_sys::arena::Arena;
use ringseed_sys::ring::{Ring, RingError};
use ringseed_sys::wake::Waker;

use super::Machine;

pub use super::disk::{FileOps, canceled, refuse};

/// A driver from outside.
#[derive(Clone, Copy)]
pub struct ExternalDriver {
    /// How people choose it and what status and metrics show.
    pub name: &'static str,
    /// Runs a machine on the calling thread until it has stopped.
    ///
    /// # Errors
    /// Before [`Seat::begin`]: why it cannot start. Later: what broke under the machine.
    pub run: fn(Seat) -> io::Result<()>,
}

impl fmt::Debug for ExternalDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExternalDriver").field(&self.name).finish()
    }
}

/// Two of the same name are the same.
impl PartialEq for ExternalDriver {
    fn eq(&self, other: &ExternalDriver) -> bool {
        self.name == other.name
    }
}

impl Eq for ExternalDriver {}

/// What a driver is given on its thread.
pub struct Seat {
    /// Bound listeners, see [`ringseed_sys::net::listen`]; without any it only dials.
    pub listeners: Vec<OwnedFd>,
    /// The arena that most buffers come from.
    pub arena: Option<Arena>,
    /// Whether to send without copying where that works, see [`crate::Config::zero_copy_send`].
    pub zero_copy_send: bool,
    /// Becomes readable when [`Machine::handle_wake`] wants to be called.
    pub waker: Waker,
    begin: Begin,
    pub(super) begun: Rc<Cell<bool>>,
}

/// Makes the machine and tells that the driver runs.
pub(super) type Begin = Box<dyn FnOnce(String) -> Box<dyn Machine>>;

impl Seat {
    pub(super) fn new(config: super::DriverConfig, waker: Waker, begin: Begin) -> Seat {
        let super::DriverConfig { listeners, arena, zero_copy_send, .. } = config;
        Seat { listeners, arena, zero_copy_send, waker, begin, begun: Rc::default() }
    }

    /// Tells that the driver is set up and takes what it is to run. `detail` says, for people, which
    /// flags or fallbacks are in use.
    pub fn begin(self, detail: String) -> Box<dyn Machine> {
        self.begun.set(true);
        (self.begin)(detail)
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

/// Makes sure that this process may set up a ring, by doing so: some runtimes panic where it may not.
///
/// # Errors
/// Why there is no ring, with the cure.
pub fn check_io_uring() -> io::Result<()> {
    const ENTRIES: u32 = 8;
    Ring::new(ENTRIES).map(drop).map_err(explain)
}

/// The reason and the cure of a ring that could not be made.
pub(super) fn explain(error: RingError) -> io::Error {
    let (reason, cure) = ringseed_sys::probe::explain_ring_error(&error);
    let kind = match &error {
        RingError::Forbidden(_) => io::ErrorKind::PermissionDenied,
        RingError::TooOld => io::ErrorKind::Unsupported,
        RingError::NoMemory { .. } => io::ErrorKind::OutOfMemory,
        RingError::Io(source) => source.kind(),
    };
    io::Error::new(kind, format!("no io_uring: {reason}; {cure}"))
}
