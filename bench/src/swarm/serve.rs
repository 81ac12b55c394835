//! A seed of somebody's to talk to, for the workloads whose peers are our own connections.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Bench;
use super::child::{Program, free_port};
use super::data::Payload;
use super::peers::{Job, Peer};
use super::tracker::Tracker;

/// A running seed with its source in the page cache.
pub struct Serving {
    pub addr: SocketAddr,
    pub program: Program,
    home: PathBuf,
    _tracker: Tracker,
}

impl Serving {
    /// Starts one.
    ///
    /// # Errors
    /// Why not.
    pub fn start(bench: &Bench, peer: &dyn Peer, payload: &Payload) -> Result<Serving, String> {
        Serving::start_on(bench, peer, payload, None)
    }

    /// Starts one on a core of its own, if that is given.
    ///
    /// # Errors
    /// Why not.
    pub fn start_on(
        bench: &Bench,
        peer: &dyn Peer,
        payload: &Payload,
        core: Option<usize>,
    ) -> Result<Serving, String> {
        let addr = SocketAddr::from((peer.ip(), free_port()));
        let home = bench.runner.dir.join(format!("serving-{}", addr.port()));
        let tracker = Tracker::start(peer.ip(), Vec::new()).map_err(|error| error.to_string())?;
        let job = Job {
            home: home.clone(),
            addr,
            payload,
            folder: payload.root.clone(),
            peers: Vec::new(),
            tracker: tracker.url(),
            core,
            stays: true,
            counts_calls: false,
        };
        let program = peer.seed(&job)?.ok_or("it does not serve by itself")?;
        payload.warm().map_err(|error| error.to_string())?;
        Ok(Serving { addr, program, home, _tracker: tracker })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// Takes [`lift_priority`] back for the calling thread.
pub fn lower_priority() {
    let _ = rustix::process::setpriority_process(None, 0);
}

/// Lets the calling thread run before others, so that it measures whom it asks and not the scheduler;
/// whether that was allowed.
pub fn lift_priority() -> bool {
    rustix::process::setpriority_process(None, -10).is_ok()
}
