//! What is no BitTorrent: rsync as the floor, and a bare TCP connection as the roof.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::child::{Program, Sign};
use super::super::data::Payload;
use super::{Fetching, Job, Peer, START_MAX, said, version_in};

/// Bytes that the pump moves at a time: what its buffer holds stays in the second-level cache.
const PUMP_STEP: usize = 256 << 10;

struct Rsync {
    version: String,
}

pub fn find_rsync() -> Result<Vec<Box<dyn Peer>>, &'static str> {
    let text =
        said("rsync", &["--version"]).ok_or("rsync is not installed: apt-get install rsync")?;
    Ok(vec![Box::new(Rsync { version: version_in(&text) })])
}

impl Peer for Rsync {
    fn name(&self) -> String {
        "rsync, on one machine".into()
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self) -> String {
        "--whole-file --inplace --recursive; both sides are its own processes and count as the leech".into()
    }

    fn takes(&self, _: &Payload) -> bool {
        true
    }

    fn swarms(&self) -> bool {
        false
    }

    fn seed(&self, _: &Job) -> Result<Option<Program>, String> {
        Ok(None)
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let mut command = Command::new("rsync");
        command.args(["--whole-file", "--inplace", "--recursive"]);
        command.arg(job.payload.root.join("")).arg(job.folder.join(""));
        Ok(Fetching {
            program: job.start(command)?,
            begins: Sign::Exec,
            done: Sign::Exit,
            clock: None,
        })
    }
}

/// The first file of the payload over one TCP connection, by this program; nothing is checked on the way.
struct Pump {
    /// Written to a new file, or thrown away.
    writes: bool,
}

/// Both.
pub fn pumps() -> Vec<Box<dyn Peer>> {
    vec![Box::new(Pump { writes: true }), Box::new(Pump { writes: false })]
}

impl Peer for Pump {
    fn name(&self) -> String {
        let end = if self.writes { "written to a file" } else { "thrown away" };
        format!("TCP pump, {end}")
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").into()
    }

    fn durability(&self) -> &'static str {
        "nothing synced"
    }

    fn settings(&self) -> String {
        "read from the source in steps of 256 KiB, sent over one connection; no hash, no protocol"
            .into()
    }

    fn takes(&self, payload: &Payload) -> bool {
        payload.files() == 1
    }

    fn keeps(&self) -> bool {
        self.writes
    }

    fn swarms(&self) -> bool {
        false
    }

    fn seed(&self, job: &Job) -> Result<Option<Program>, String> {
        let name = job.payload.metainfo().info().name().to_owned();
        let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
        command.args(["pump", "send", &job.addr.to_string()]).arg(job.folder.join(name));
        let mut seed = job.start(command)?;
        seed.wait(&Sign::line("listening"), START_MAX)?;
        Ok(Some(seed))
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
        command.args(["pump", "receive", &job.peers[0].to_string()]);
        if self.writes {
            command.arg(job.folder.join(job.payload.metainfo().info().name()));
        }
        Ok(Fetching {
            program: job.start(command)?,
            begins: Sign::Exec,
            done: Sign::Exit,
            clock: None,
        })
    }
}

/// A disk job that reads the source and writes as much, both past the page cache and at the same time: the
/// roof of a cold run.
struct Fio {
    version: String,
    block: &'static str,
    depth: &'static str,
}

/// The jobs of which the best counts.
pub fn find_fio() -> Result<Vec<Box<dyn Peer>>, &'static str> {
    let text = said("fio", &["--version"]).ok_or("fio is not installed: apt-get install fio")?;
    let version = text.trim().trim_start_matches("fio-").to_owned();
    let jobs = [("256k", "8"), ("256k", "32"), ("1m", "8"), ("1m", "32")];
    let job = |(block, depth)| -> Box<dyn Peer> {
        Box::new(Fio { version: version.clone(), block, depth })
    };
    Ok(jobs.map(job).into())
}

impl Peer for Fio {
    fn name(&self) -> String {
        format!("fio, {} x {}", self.block, self.depth)
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn durability(&self) -> &'static str {
        "past the page cache, nothing synced"
    }

    fn settings(&self) -> String {
        "io_uring, O_DIRECT, one job reads the source and one writes as much; by its own clock"
            .into()
    }

    fn takes(&self, payload: &Payload) -> bool {
        payload.files() == 1
    }

    fn keeps(&self) -> bool {
        false
    }

    fn swarms(&self) -> bool {
        false
    }

    fn seed(&self, _: &Job) -> Result<Option<Program>, String> {
        Ok(None)
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let source = job.folder.join("written");
        let mut command = Command::new("fio");
        command.args(["--direct=1", "--ioengine=io_uring", "--output-format=json"]);
        command.arg(format!("--bs={}", self.block)).arg(format!("--iodepth={}", self.depth));
        command.arg(format!("--size={}", job.payload.len_bytes));
        let name = job.payload.metainfo().info().name().to_owned();
        let read = super::flag("--filename=", &job.payload.root.join(name));
        command.args(["--name=read", "--rw=read"]).arg(read);
        command.args(["--name=write", "--rw=write"]).arg(super::flag("--filename=", &source));
        Ok(Fetching {
            program: job.start(command)?,
            begins: Sign::Exec,
            done: Sign::Exit,
            clock: Some(fio_seconds),
        })
    }
}

/// Until both jobs are through.
fn fio_seconds(lines: &[String]) -> Option<f64> {
    let from = lines.iter().position(|line| line.starts_with('{'))?;
    let found: serde_json::Value = serde_json::from_str(&lines[from..].concat()).ok()?;
    let of = |job: usize, way: &str| found["jobs"][job][way]["runtime"].as_f64();
    Some(of(0, "read")?.max(of(1, "write")?) / 1000.0)
}

/// One end of the pump: `ringseed-bench pump send|receive ADDR [FILE]`.
///
/// # Errors
/// What the system says.
pub fn pump_end(end: &str, addr: SocketAddr, file: Option<&Path>) -> std::io::Result<()> {
    let mut buf = vec![0; PUMP_STEP];
    if end == "receive" {
        let mut stream = TcpStream::connect(addr)?;
        let mut file: Option<File> = file.map(File::create).transpose()?;
        loop {
            let count = stream.read(&mut buf)?;
            if count == 0 {
                return Ok(());
            }
            if let Some(file) = &mut file {
                file.write_all(&buf[..count])?;
            }
        }
    }
    let path: PathBuf = file.map(Path::to_path_buf).ok_or(std::io::ErrorKind::InvalidInput)?;
    let listener = TcpListener::bind(addr)?;
    println!("listening");
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut file = File::open(&path)?;
        loop {
            let count = file.read(&mut buf)?;
            if count == 0 {
                break;
            }
            stream.write_all(&buf[..count])?;
        }
    }
}
