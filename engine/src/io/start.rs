//! Choosing a driver and starting it on a thread of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Once;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use ringseed_sys::arena::Arena;
use ringseed_sys::ring::RingError;
use ringseed_sys::wake::Waker;

use super::Machine;
use super::epoll::EpollDriver;
use super::external::{ExternalDriver, Seat, explain};
use super::uring::UringDriver;
use crate::config::IoDriver;

/// What a driver is given.
#[derive(Debug)]
pub struct DriverConfig {
    /// Which driver to run.
    pub driver: IoDriver,
    /// Bound listeners, see [`ringseed_sys::net::listen`]; without any it only dials.
    pub listeners: Vec<OwnedFd>,
    /// The arena that most buffers come from, registered with a ring if the limits allow it.
    pub arena: Option<Arena>,
    /// Whether to send without copying where that works, see [`crate::Config::zero_copy_send`].
    pub zero_copy_send: bool,
    /// Name of the thread, at most 15 bytes are shown.
    pub thread_name: String,
}

/// A driver at work.
#[derive(Debug)]
pub struct Running {
    /// Which driver runs: `uring`, `epoll`, or the name of one from outside.
    pub driver: &'static str,
    /// Which flags or fallbacks are in use, for people.
    pub detail: String,
    /// Makes the driver call [`Machine::handle_wake`].
    pub waker: Waker,
    /// Ends when the machine has stopped; an error when the driver broke under it.
    pub thread: JoinHandle<io::Result<()>>,
}

/// Starts a driver on a thread of its own, which makes the machine and runs it until it has stopped.
/// With [`IoDriver::Auto`] epoll takes over where there is no io_uring, with one warning that names
/// the reason and the cure.
///
/// # Errors
/// Why no driver could be started: with [`IoDriver::Uring`] why there is no ring.
pub fn start<M, F>(config: DriverConfig, make_machine: F) -> io::Result<Running>
where
    M: Machine + 'static,
    F: FnOnce(&Waker) -> M + Send + 'static,
{
    let waker = Waker::new()?;
    let (told, ready) = channel();
    let remote = waker.clone();
    let builder = std::thread::Builder::new().name(config.thread_name.clone());
    let thread = builder.spawn(move || {
        if let IoDriver::External(driver) = config.driver {
            return run_external(driver, config, make_machine, remote, told);
        }
        // A ring belongs to the thread that makes it, so the choice is made there.
        let driver = match Driver::new(config, &remote) {
            Ok(driver) => driver,
            Err(error) => {
                let _ = told.send(Err(error));
                return Ok(());
            }
        };
        driver.run(make_machine, &remote, &told)
    })?;
    match ready.recv() {
        Ok(Ok((driver, detail))) => Ok(Running { driver, detail, waker, thread }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the driver's thread died at its start")),
    }
}

/// What the starter waits for: the name of the driver and what is to be said of it, or why it is not there.
type Told = Sender<io::Result<(&'static str, String)>>;

fn run_external<M, F>(
    driver: ExternalDriver,
    config: DriverConfig,
    make_machine: F,
    waker: Waker,
    told: Told,
) -> io::Result<()>
where
    M: Machine + 'static,
    F: FnOnce(&Waker) -> M + 'static,
{
    let (name, remote, teller) = (driver.name, waker.clone(), told.clone());
    let seat = Seat::new(
        config,
        waker,
        Box::new(move |detail| {
            let machine = Box::new(make_machine(&remote));
            let _ = teller.send(Ok((name, detail)));
            machine
        }),
    );
    let begun = seat.begun.clone();
    match (driver.run)(seat) {
        Err(error) if !begun.get() => {
            let _ = told.send(Err(error));
            Ok(())
        }
        result => result,
    }
}

/// Says once in the life of a program, however many shards there are, that epoll takes over.
fn warn_of_epoll(error: &RingError) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let (reason, cure) = ringseed_sys::probe::explain_ring_error(error);
        tracing::warn!(%reason, %cure, "no io_uring: running on epoll, which is slower");
    });
}

/// Says once in the life of a program, however many shards there are, that fewer buffers are registered than
/// could be. All works without: the kernel then pins them anew for each transfer from and to files.
fn warn_of_memlock((registered_bytes, unregistered_bytes): (usize, usize)) {
    static SAID: Once = Once::new();
    if unregistered_bytes > 0 {
        SAID.call_once(|| {
            tracing::warn!(
                registered_kib = registered_bytes >> 10,
                wanted_kib = (registered_bytes + unregistered_bytes) >> 10,
                cure = "ulimit -l, LimitMEMLOCK= in a unit, --ulimit memlock= for a container",
                "the memlock limit, one for all processes of a user, leaves buffers unregistered: going on, a \
                 little slower"
            );
        });
    }
}

enum Driver {
    Uring(Box<UringDriver>),
    Epoll(Box<EpollDriver>),
}

impl Driver {
    fn new(config: DriverConfig, waker: &Waker) -> io::Result<Driver> {
        let listeners = config.listeners;
        if config.driver != IoDriver::Epoll {
            // The listeners must survive a failed try.
            let duplicates = listeners.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
            match UringDriver::new(waker.clone(), duplicates, config.arena.as_ref()) {
                Ok(mut driver) => {
                    warn_of_memlock(driver.registered_bytes());
                    if config.zero_copy_send {
                        driver.use_zero_copy();
                    }
                    return Ok(Driver::Uring(Box::new(driver)));
                }
                Err(error) if config.driver == IoDriver::Uring => return Err(explain(error)),
                Err(error) => {
                    warn_of_epoll(&error);
                }
            }
        }
        if config.zero_copy_send {
            tracing::info!("epoll sends by copying, whatever was asked for");
        }
        Ok(Driver::Epoll(Box::new(EpollDriver::new(waker.clone(), listeners)?)))
    }

    fn run<M, F>(self, make_machine: F, waker: &Waker, told: &Told) -> io::Result<()>
    where
        M: Machine,
        F: FnOnce(&Waker) -> M,
    {
        let mut machine = make_machine(waker);
        match self {
            Driver::Uring(mut driver) => {
                let _ = told.send(Ok(("uring", driver.detail())));
                driver.run(&mut machine)
            }
            Driver::Epoll(mut driver) => {
                let _ = told.send(Ok(("epoll", "helper threads for files".to_owned())));
                driver.run(&mut machine)
            }
        }
    }
}
