//! The programs that are compared. Each runs as a process of its own, says whether it found
//! everything complete, and is believed only then.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use ringseed_core::metainfo::Metainfo;
use serde_json::Value;

use super::data::{Data, PIECE_LEN, kind_name};
use crate::machine::{TICKS_PER_SECOND, busy_seconds};
use ringseed_core::geometry::Kind;

/// One run of a program.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Seconds on the wall.
    pub wall: f64,
    /// Seconds of processor time of the process.
    pub cpu: f64,
    /// Seconds that the whole machine was busy meanwhile, whoever kept it so.
    pub busy: f64,
}

/// A program that checks or makes torrents, or only reads.
pub struct Programs {
    pub ringseed: PathBuf,
    libtorrent: PathBuf,
    cores: usize,
    /// Names of those not installed, with how to install them.
    pub missing: Vec<String>,
    pub has_libtorrent: bool,
    pub has_aria2: bool,
    /// The program, where it is installed.
    rqbit: Option<PathBuf>,
    pub has_transmission: bool,
    pub has_fio: bool,
}

impl Programs {
    pub fn find(ringseed: Option<PathBuf>) -> Programs {
        let beside = std::env::current_exe().unwrap_or_default().with_file_name("ringseed");
        let libtorrent = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/libtorrent_disk.py");
        let runs = |program: &str, args: &[&str]| {
            let quiet = Command::new(program)
                .args(args)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            quiet.is_ok_and(|status| status.success())
        };
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/rqbit");
        let rqbit = [tools, PathBuf::from("rqbit")]
            .into_iter()
            .find(|program| runs(&program.to_string_lossy(), &["--version"]));
        let mut missing = Vec::new();
        if rqbit.is_none() {
            missing.push("rqbit is not installed: cargo install rqbit".to_owned());
        }
        let mut has = |name: &str, is_there: bool, how: &str| {
            if !is_there {
                missing.push(format!("{name} is not installed: {how}"));
            }
            is_there
        };
        Programs {
            ringseed: ringseed.unwrap_or(beside),
            libtorrent,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            has_libtorrent: has(
                "libtorrent",
                runs("python3", &["-c", "import libtorrent"]),
                "pip install libtorrent",
            ),
            has_aria2: has("aria2", runs("aria2c", &["--version"]), "apt install aria2"),
            has_transmission: has(
                "transmission-create",
                runs("transmission-create", &["--version"]),
                "apt install transmission-cli",
            ),
            has_fio: has("fio", runs("fio", &["--version"]), "apt install fio"),
            rqbit,
            missing,
        }
    }

    /// Whether rqbit is there.
    pub fn has_rqbit(&self) -> bool {
        self.rqbit.is_some()
    }

    /// rqbit on a download that is complete: it checks everything before it starts and then has nothing
    /// to do. Its time includes its start and up to a second of its own polling.
    pub fn rqbit(&self, data: &Data) -> Option<Result<Turn, String>> {
        self.rqbit.as_ref().map(|program| {
            let mut command = Command::new(program);
            command.args(["--disable-dht", "--disable-lsd", "--disable-trackers", "--ipv4-only"]);
            command.args(["--disable-tcp-listen", "--disable-upnp-port-forward"]);
            command.args(["download", "--exit-on-finish", "--overwrite", "--disable-http-api"]);
            command.arg("-o").arg(&data.dir).arg(data.torrent(Kind::V1));
            let (turn, output) = run(&mut command)?;
            complete(output.contains("needed 0"), turn)
        })
    }

    /// `ringseed check` of the long file.
    pub fn ours(&self, data: &Data, kind: Kind, io: &str) -> Result<Turn, String> {
        let mut command = Command::new(&self.ringseed);
        command.arg("check").arg(data.torrent(kind)).arg("--data").arg(&data.dir);
        let (turn, output) = run(command.args(["--io", io, "--json"]))?;
        let found: Value = serde_json::from_str(&output).map_err(|error| error.to_string())?;
        complete(found["complete"] == true && found["size_bytes"] == data.file_len, turn)
    }

    /// `ringseed check` of the many.
    pub fn ours_many(&self, data: &Data) -> Result<Turn, String> {
        let mut command = Command::new(&self.ringseed);
        command.arg("check").arg(data.dir.join("torrents")).arg("--data").arg(data.many_dir());
        let (turn, output) = run(command.arg("--json"))?;
        let found: Value = serde_json::from_str(&output).map_err(|error| error.to_string())?;
        complete(found["complete"] == true && found["good"] == data.torrents.len(), turn)
    }

    /// `ringseed hash` of the long file, both views.
    pub fn ours_make(&self, data: &Data, io: &str) -> Result<Turn, String> {
        let out = data.dir.join("made-by-us.torrent");
        let mut command = Command::new(&self.ringseed);
        command.arg("hash").arg(data.file()).arg("-o").arg(&out).arg("--piece-len");
        let (turn, _) = run(command.arg(PIECE_LEN.to_string()).args(["--io", io, "--json"]))?;
        Ok(turn)
    }

    /// libtorrent checking the long file with a hashing thread per core.
    pub fn libtorrent(&self, data: &Data, kind: Kind) -> Option<Result<Turn, String>> {
        self.has_libtorrent.then(|| {
            let mut command = self.libtorrent_command("check");
            command.arg(&data.dir).arg(self.cores.to_string()).arg(data.torrent(kind));
            self.libtorrent_turn(&mut command, 1)
        })
    }

    /// libtorrent checking some of the many.
    pub fn libtorrent_many(&self, data: &Data, count: usize) -> Option<Result<Turn, String>> {
        let torrents = &data.torrents[..count.min(data.torrents.len())];
        self.has_libtorrent.then(|| {
            let mut command = self.libtorrent_command("check");
            command.arg(data.many_dir()).arg(self.cores.to_string()).args(torrents);
            self.libtorrent_turn(&mut command, torrents.len() as u64)
        })
    }

    /// libtorrent making a hybrid torrent of the long file.
    pub fn libtorrent_make(&self, data: &Data) -> Option<Result<Turn, String>> {
        self.has_libtorrent.then(|| {
            let mut command = self.libtorrent_command("create");
            command.arg(data.file()).arg(data.dir.join("made-by-libtorrent.torrent"));
            command.args([
                kind_name(Kind::Hybrid),
                &PIECE_LEN.to_string(),
                &self.cores.to_string(),
            ]);
            self.libtorrent_turn(&mut command, 1)
        })
    }

    fn libtorrent_command(&self, what: &str) -> Command {
        let mut command = Command::new("python3");
        command.arg(&self.libtorrent).arg(what);
        command
    }

    /// Its own clock counts, without the start of Python.
    fn libtorrent_turn(&self, command: &mut Command, count: u64) -> Result<Turn, String> {
        let (turn, output) = run(command)?;
        let found: Value = serde_json::from_str(&output).map_err(|error| error.to_string())?;
        let seconds = |key: &str| found[key].as_f64().ok_or("no figure");
        let turn = Turn { wall: seconds("wall")?, cpu: seconds("cpu")?, ..turn };
        complete(found["complete"] == count, turn)
    }

    /// aria2 checking the long file; it knows only v1.
    pub fn aria2(&self, data: &Data) -> Option<Result<Turn, String>> {
        self.has_aria2.then(|| {
            let mut command = Command::new("aria2c");
            command.args([
                "--check-integrity=true",
                "--hash-check-only=true",
                "--enable-dht=false",
            ]);
            command.args([
                "--bt-enable-lpd=false",
                "--enable-peer-exchange=false",
                "--seed-time=0",
            ]);
            command.args([
                "--summary-interval=0",
                "--console-log-level=notice",
                "--allow-overwrite=true",
            ]);
            command.args(["--no-conf=true", "--follow-torrent=mem"]);
            command.arg("--dir").arg(&data.dir).arg(data.torrent(Kind::V1));
            let (turn, output) = run(&mut command)?;
            complete(output.contains("Verification finished successfully"), turn)
        })
    }

    /// transmission making a v1 torrent of the long file.
    pub fn transmission_make(&self, data: &Data) -> Option<Result<Turn, String>> {
        self.has_transmission.then(|| {
            let out = data.dir.join("made-by-transmission.torrent");
            let _ = fs::remove_file(&out);
            let mut command = Command::new("transmission-create");
            command.args(["-s", &(PIECE_LEN / 1024).to_string(), "-o"]).arg(&out).arg(data.file());
            let (turn, _) = run(&mut command)?;
            let made = Metainfo::parse(&fs::read(&out).map_err(|error| error.to_string())?);
            let ours = Metainfo::parse(
                &fs::read(data.torrent(Kind::V1)).map_err(|error| error.to_string())?,
            );
            let is_same = match (made, ours) {
                (Ok(made), Ok(ours)) => same_v1(&made, &ours),
                _ => false,
            };
            complete(is_same, turn)
        })
    }

    /// The best of fio's jobs: bytes per second that the device gives to whoever only reads.
    pub fn fio(&self, data: &Data) -> Option<Result<f64, String>> {
        self.has_fio.then(|| {
            let mut best = 0.0f64;
            for block in ["256k", "1m"] {
                for depth in ["8", "32"] {
                    let mut command = Command::new("fio");
                    command.args(["--name=roof", "--rw=read", "--direct=1", "--ioengine=io_uring"]);
                    command.args([
                        "--output-format=json",
                        "--readonly",
                        "--time_based",
                        "--runtime=2",
                    ]);
                    command.arg(format!("--filename={}", data.file().display()));
                    command.arg(format!("--bs={block}")).arg(format!("--iodepth={depth}"));
                    let (_, output) = run(&mut command)?;
                    let from = output.find('{').unwrap_or(0);
                    let found: Value =
                        serde_json::from_str(&output[from..]).map_err(|error| error.to_string())?;
                    let rate = found["jobs"][0]["read"]["bw_bytes"].as_f64().ok_or("no figure")?;
                    best = best.max(rate);
                }
            }
            Ok(best)
        })
    }
}

/// Whether two torrents say the same of the v1 view.
pub fn same_v1(a: &Metainfo, b: &Metainfo) -> bool {
    let count = a.info().geometry().piece_count();
    count == b.info().geometry().piece_count()
        && (0..count).all(|raw| {
            let of = |of: &Metainfo| {
                let piece = of.info().geometry().piece(raw).ok()?;
                of.info().v1_piece_hash(piece).copied()
            };
            of(a).is_some() && of(a) == of(b)
        })
}

fn complete(is_complete: bool, turn: Turn) -> Result<Turn, String> {
    is_complete.then_some(turn).ok_or_else(|| "it did not find everything complete".to_owned())
}

/// Runs a program to its end; what it took, and what it printed.
fn run(command: &mut Command) -> Result<(Turn, String), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (cpu, busy, started) = (children_cpu(), busy_seconds(), Instant::now());
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("{name}: {error}"))?;
    let wall = started.elapsed().as_secs_f64();
    let turn = Turn { wall, cpu: children_cpu() - cpu, busy: busy_seconds() - busy };
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name}: {}: {}", output.status, text.trim()));
    }
    Ok((turn, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Processor time of all children that have ended, in seconds (`proc_pid_stat(5)`, cutime and cstime).
fn children_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    // The state is field 3; cutime and cstime are 16 and 17.
    after_name
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|n| n.parse::<f64>().ok())
        .sum::<f64>()
        / TICKS_PER_SECOND
}
