//! The processes of an `up`, and questions to them.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::children::Process;
use super::registry::{Entry, Running};
use crate::control::{self, Request};
use crate::error::{Code, Error, Result};
use crate::interrupt::Interrupt;
use crate::render::number;
use crate::{cli, config, market, units};

/// Between two looks at the datatrusts.
const LOOK: Duration = Duration::from_millis(40);
/// A wait in which nothing moves for so long has failed.
pub(super) const STALL_MAX: Duration = Duration::from_secs(60);

/// One datatrust.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) key: String,
    pub(super) peer_id: String,
    pub(super) listen: SocketAddr,
    process: Option<Process>,
}

impl Node {
    /// Asks it one thing.
    pub(super) fn ask(&self, request: &Request) -> Result<Value> {
        control::ask(&self.dir, request)
    }

    /// Where it serves payload.
    pub(super) fn payload_addr(&self) -> Result<SocketAddr> {
        config::payload_beside(self.listen)
    }
}

/// All datatrusts, founders first.
pub(super) struct Market {
    pub(super) root: PathBuf,
    pub(super) nodes: Vec<Node>,
    pub(super) interrupt: Interrupt,
    uplink: Option<u64>,
    registered: Option<Entry>,
    ports: Vec<SocketAddr>,
}

impl Market {
    pub(super) fn new(root: PathBuf, interrupt: Interrupt, uplink: Option<u64>) -> Market {
        let (nodes, ports) = (Vec::new(), Vec::new());
        Market { root, nodes, interrupt, uplink, registered: None, ports }
    }

    /// Finds addresses for `count` datatrusts, each with a free port and a free next one. Begins at a
    /// place that depends on the process, so that two `up`s rarely look at the same ports, and below
    /// the ports that Linux gives to outgoing connections (32,768 and up): one of those could take a
    /// newcomer's port before the newcomer starts.
    pub(super) fn reserve_ports(&mut self, count: usize) -> Result<()> {
        let first = 12_000 + (std::process::id() % 1_000) as u16 * 20;
        self.ports = market::free_pairs(IpAddr::V4(Ipv4Addr::LOCALHOST), first, count)?;
        self.ports.reverse();
        Ok(())
    }

    fn next_port(&mut self) -> Result<SocketAddr> {
        self.ports.pop().ok_or_else(|| Error::bug("more datatrusts than reserved ports"))
    }

    /// `ringseed init`; returns the member line.
    pub(super) fn init(&mut self, name: &str) -> Result<String> {
        let listen = self.next_port()?;
        let dir = self.root.join(name);
        let args = cli::Init { dir: dir.clone(), listen, advertise: None, insecure_plain: false };
        let made = market::init(&args)?;
        self.add(name, dir, listen, &made)?;
        Ok(made["member"].as_str().unwrap_or_default().to_owned())
    }

    /// `ringseed join`.
    pub(super) fn join(
        &mut self,
        name: &str,
        contact: SocketAddr,
        genesis: [u8; 32],
        reporter: crate::progress::Reporter,
    ) -> Result<()> {
        let listen = self.next_port()?;
        let dir = self.root.join(name);
        let args = cli::Join {
            addr: contact,
            genesis,
            dir: dir.clone(),
            plan: false,
            listen: Some(listen),
            advertise: None,
            insecure_plain: false,
        };
        let made = market::join(&args, reporter)?;
        self.add(name, dir, listen, &made)
    }

    fn add(&mut self, name: &str, dir: PathBuf, listen: SocketAddr, made: &Value) -> Result<()> {
        if let Some(uplink) = self.uplink {
            cap_uplink(&dir.join("datatrust.toml"), uplink)?;
        }
        let key = made["key"].as_str().unwrap_or_default().to_owned();
        let bytes = units::parse_hash(&key, "node key")?;
        let peer_id = units::hex(&crate::datatrust::peer_id(&bytes.into()));
        self.nodes.push(Node { name: name.to_owned(), dir, key, peer_id, listen, process: None });
        Ok(())
    }

    /// `ringseed start` for the node at `index`.
    pub(super) fn start(&mut self, index: usize, genesis: Option<&Path>) -> Result<()> {
        let node = &mut self.nodes[index];
        let mut args: Vec<&OsStr> = vec!["start".as_ref(), "--dir".as_ref(), node.dir.as_os_str()];
        if let Some(genesis) = genesis {
            args.extend(["--genesis".as_ref(), genesis.as_os_str()]);
        }
        let log = self.root.join(format!("{}.log", node.name));
        node.process = Some(Process::start(&node.name, &args, &log)?);
        let dirs = self.nodes.iter().map(|node| (node.name.clone(), node.dir.clone())).collect();
        // Only `status` without --dir suffers when there is no place for it.
        let entry = self.registered.get_or_insert_with(Entry::new);
        let _ = entry.announce(&Running { root: self.root.clone(), dirs });
        Ok(())
    }

    /// Fails when a datatrust has ended, with its last words.
    pub(super) fn require_alive(&mut self) -> Result<()> {
        let mut processes = self.nodes.iter_mut().filter_map(|node| node.process.as_mut());
        processes.try_for_each(Process::require_alive)
    }

    /// Fails when we were asked to stop or a datatrust has ended; else rests a little.
    pub(super) fn rest(&mut self) -> Result<()> {
        if !self.interrupt.sleep(LOOK) {
            return Err(Error::new(Code::Interrupted, "stopped before the story was told")
                .cure("ringseed up"));
        }
        self.require_alive()
    }

    /// The status of every datatrust that is up.
    pub(super) fn statuses(&self) -> Result<Vec<Value>> {
        self.nodes.iter().map(|node| node.ask(&Request::Status)).collect()
    }

    /// Looks again and again until `is_done` says so. `look` returns what moves; when that stands still
    /// too long the wait has failed, and the error shows what the datatrusts say of themselves.
    pub(super) fn wait(
        &mut self,
        what: &str,
        mut look: impl FnMut(&Market) -> Result<(bool, u64)>,
    ) -> Result<()> {
        let (mut last, mut moved_at) = (None, Instant::now());
        loop {
            // A datatrust that has died explains more than its silence.
            let looked = look(self);
            self.require_alive()?;
            let (is_done, moving) = looked?;
            if is_done {
                return Ok(());
            }
            if last != Some(moving) {
                (last, moved_at) = (Some(moving), Instant::now());
            } else if moved_at.elapsed() > STALL_MAX {
                return Err(self.stalled(what));
            }
            self.rest()?;
        }
    }

    fn stalled(&self, what: &str) -> Error {
        let line = |node: &Node| {
            let state = node.ask(&Request::Status).map(|status| {
                format!(
                    "height {}, {}/{} whole, {} held, {} peers",
                    number(&status["consensus"], "height"),
                    number(&status["payload"], "complete"),
                    number(&status["payload"], "wanted"),
                    units::bytes(number(&status["payload"], "have_bytes")),
                    number(&status["engine"], "peers")
                )
            });
            let log = super::children::last_lines(&self.root.join(format!("{}.log", node.name)), 1);
            let state = state.unwrap_or_else(|error| error.what);
            format!("{}: {state}; log: {}", node.name, log.join(""))
        };
        Error::new(Code::TimedOut, format!("{what}: nothing moved for {}", units::time(STALL_MAX)))
            .lines(self.nodes.iter().map(line).collect())
            .cure("run it again with --keep DIR and look at the logs in DIR")
    }

    /// Asks all to end, then waits for all.
    pub(super) fn stop(&mut self) {
        self.registered = None;
        for node in &self.nodes {
            if let Some(process) = &node.process {
                process.terminate();
            }
        }
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                process.reap();
            }
        }
    }

    /// Name of the datatrust with this peer id.
    pub(super) fn name_of_peer(&self, peer_id: &str) -> Option<&str> {
        self.nodes.iter().find(|node| node.peer_id == peer_id).map(|node| node.name.as_str())
    }
}

impl Drop for Market {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sets `engine.uplink` in a configuration file.
fn cap_uplink(path: &Path, rate: u64) -> Result<()> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
    let capped = text.replace("# uplink = \"\"", &format!("uplink = \"{rate}\""));
    if capped == text {
        return Err(Error::bug("the configuration has no line for the uplink"));
    }
    crate::layout::write_private(path, capped.as_bytes())
}
