//! The seed that is attacked, and what holds after every attack.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringseed_core::metainfo::Metainfo;
use ringseed_tests::attacker::{Raw, Target, first_block, leech, message};
use ringseed_tests::data::write_file;
use ringseed_tests::program::{Finished, Program, free_port, run};
use ringseed_tests::scratch::Scratch;
use rustix::process::Signal;

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");
const PATIENCE: Duration = Duration::from_secs(60);
/// What a seed may hold resident: its arena (64 MiB), the program (32 MiB), 64 KiB for each of 512
/// connections; and a tenth on top.
const RESIDENT_MAX: u64 = ((64 + 32 + 32) << 20) * 11 / 10;
/// Length of a piece of what is seeded, in bytes.
pub const PIECE_LEN: u32 = 256 << 10;

/// Whether everything is required (`RINGSEED_REQUIRE=1`), or this is some machine that does other things
/// meanwhile.
pub fn is_strict() -> bool {
    std::env::var_os("RINGSEED_REQUIRE").is_some_and(|value| value == "1")
}

/// A share of sorted values, such as 0.99.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let at = (sorted.len() as f64 * share) as usize;
    sorted[at.min(sorted.len() - 1)]
}

/// One seed at a time: two cores are enough for one and its attackers.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A seed under attack.
pub struct Seed {
    program: Program,
    pub target: Target,
    _turn: MutexGuard<'static, ()>,
    _scratch: Scratch,
}

impl Seed {
    /// Starts one that has a file of so many bytes, behind some words for the shell.
    pub fn start(len_bytes: u64, shell_prefix: &str) -> Seed {
        let turn = alone();
        let scratch = Scratch::new("attacked");
        write_file(&scratch.join("source/file.bin"), len_bytes, 21);
        let torrent = scratch.join("t.torrent");
        let words = |words: &[&dyn AsRef<std::ffi::OsStr>]| -> Vec<OsString> {
            words.iter().map(|word| word.as_ref().to_owned()).collect()
        };
        let file = scratch.join("source/file.bin");
        let hash = words(&[&"hash", &file, &"-o", &torrent, &"--piece-len", &"262144"]);
        run(OURS, &hash, &scratch.join("logs"), PATIENCE).expect_code(0);
        let metainfo = Metainfo::parse(&std::fs::read(&torrent).expect("made")).expect("ours");
        let info = metainfo.info();
        let addr: SocketAddr = ([127, 0, 0, 1], free_port()).into();
        let target = Target {
            addr,
            wire_id: info.info_hash_v1().expect("hybrid"),
            piece_len_bytes: PIECE_LEN,
            piece_count: info.geometry().piece_count(),
            pieces_root: info.files().next().and_then(|file| file.pieces_root).expect("v2"),
            leaf_count: (len_bytes.div_ceil(16_384) as u32).next_power_of_two(),
        };
        let line = format!(
            "{shell_prefix} exec {OURS} seed {} --data {} --listen {addr} --peers-per-ip 8 --json",
            torrent.display(),
            scratch.join("source").display()
        );
        let mut program = Program::start("sh", &["-c", &line], &scratch.join("logs"));
        // It checks its file from the first piece to the last, and refuses what it has not checked: whoever gets
        // the last is refused nothing from then on.
        let blocks = (target.piece_count - 1) * (PIECE_LEN / 16_384);
        let last = (1..).find(|name: &u32| first_block(*name, blocks) >= blocks - 2);
        let (last, from) = (last.expect("some name begins there"), Ipv4Addr::new(127, 9, 0, 1));
        program.wait_until("the seed", PATIENCE, |_| {
            leech(&target, from, last, Duration::from_millis(50)).is_ok_and(|got| got > 0)
        });
        Seed { program, target, _turn: turn, _scratch: scratch }
    }

    /// A line of `/proc/PID/status` in KiB, as bytes.
    pub fn memory(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.program.pid());
        let text = std::fs::read_to_string(path).expect("the seed lives");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of it");
        let kib = line.trim_matches(|c: char| !c.is_ascii_digit());
        kib.parse::<u64>().expect("a number") << 10
    }

    /// CPU time it has used.
    pub fn cpu(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.program.pid());
        let text = std::fs::read_to_string(path).expect("the seed lives");
        let (_, fields) = text.rsplit_once(')').expect("the name of the program");
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().expect("ticks"))
            .sum();
        Duration::from_millis(ticks * 10)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Whether its log has such a word by now.
    pub fn has_logged(&self, word: &str) -> bool {
        self.program.stderr().contains(word)
    }

    /// Stops it, and checks what holds after every attack: it lives, an honest peer is served at once, and its
    /// memory has never been more than its cap and a tenth.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let (peak, now) = (self.memory("VmHWM:"), self.memory("VmRSS:"));
        assert!(peak <= RESIDENT_MAX, "{} MiB resident, {} MiB now", peak >> 20, now >> 20);
        let honest = leech(&self.target, Ipv4Addr::new(127, 9, 0, 2), 2, Duration::from_secs(1));
        let honest = honest.expect("an honest peer is served after the attack");
        assert!(honest > 1 << 20, "{honest} bytes in a second after the attack");
        self.program.signal(Signal::INT);
        let Finished { code, stdout, stderr } = self.program.wait(PATIENCE);
        assert_eq!(code, Some(0), "{stderr}");
        let summary = stdout.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        let summary: serde_json::Value = summary.unwrap_or_else(|| panic!("no summary: {stdout}"));
        let closed = summary["counters"]["closed"].as_object().expect("counters").clone();
        let closed = closed.into_iter().map(|(code, count)| (code, count.as_u64().unwrap_or(0)));
        assert!(!stderr.contains("panicked"), "{stderr}");
        Ended { closed: closed.collect(), log: stderr }
    }
}

/// What a seed says of an attack.
pub struct Ended {
    /// Connections that have ended, by the code of the reason.
    pub closed: BTreeMap<String, u64>,
    /// What it has written to its log.
    pub log: String,
}

/// So many connections at least were ended for a reason.
pub struct Expected {
    pub code: &'static str,
    pub count: u64,
}

impl Ended {
    /// How many connections ended for a reason.
    pub fn count(&self, code: &str) -> u64 {
        self.closed.get(code).copied().unwrap_or(0)
    }

    /// Whether a line of the log says of an address that it was dropped for that.
    pub fn names(&self, code: &str, ip: Ipv4Addr) -> bool {
        let (code, addr) = (format!("code=\"{code}\""), format!("addr={ip}:"));
        self.log.lines().any(|line| line.contains(&code) && line.contains(&addr))
    }

    /// Each was counted and named in the log with the address of an attacker.
    #[track_caller]
    pub fn expect(&self, expected: &[Expected]) {
        for Expected { code, count } in expected {
            let found = self.count(code);
            let Ended { closed, log } = self;
            assert!(found >= *count, "{found} of {count} ended by {code}: {closed:?}\n{log}");
            let code = format!("code=\"{code}\"");
            let is_named =
                |line: &str| line.contains(&code) && line.contains(&format!("addr={EVIL_PREFIX}"));
            assert!(log.lines().any(is_named), "nobody is named for {code}:\n{log}");
        }
    }
}

/// How addresses of attackers begin.
const EVIL_PREFIX: &str = "127.1.";

/// An attacker's address: `host` counts them.
pub fn evil(host: u32) -> Ipv4Addr {
    assert!(host < 0xfffe, "beyond 127.1.0.0/16");
    Ipv4Addr::from(0x7f01_0000 + host + 1)
}

/// A connection that has shaken hands, seen our greeting, and said it has nothing.
pub fn joined(target: &Target, host: u32) -> Raw {
    let mut raw = Raw::greet(target, evil(host), host).expect("accepted");
    assert!(raw.push(&message(15, &[])));
    raw
}
