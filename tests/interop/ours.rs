//! Our own side: `ringseed seed` and `ringseed get` as a user runs them.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ringseed_tests::program::{Finished, Program, run};

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");
/// Checking a test's data takes no longer.
const CHECK_MAX: Duration = Duration::from_secs(60);

fn command(home: &Path) -> Command {
    let mut command = Command::new(OURS);
    command.env("HOME", home).env_remove("XDG_STATE_HOME");
    command
}

/// Makes a torrent of `path`.
pub fn hash(path: &Path, out: &Path, flags: &[&str], logs: &Path) {
    let mut args: Vec<OsString> = vec!["hash".into(), path.into(), "-o".into(), out.into()];
    args.extend(flags.iter().map(OsString::from));
    run(OURS, &args, logs, CHECK_MAX).expect_code(0);
}

/// `ringseed seed`, serving.
pub fn seed(
    home: &Path,
    torrent: &Path,
    folder: &Path,
    listen: SocketAddr,
    flags: &[OsString],
) -> Program {
    let mut args: Vec<OsString> = vec!["-v".into(), "--json".into(), "seed".into(), torrent.into()];
    args.extend(["--data".into(), folder.into(), "--listen".into(), listen.to_string().into()]);
    args.extend_from_slice(flags);
    let mut seed = Program::start_command(command(home), &args, &home.join("logs"));
    seed.wait_until("ours to serve", CHECK_MAX, |seed| seed.stderr().contains("\"addr\""));
    seed
}

/// `ringseed get`, running. `source` is a `.torrent` file or a magnet link.
pub fn get(
    home: &Path,
    source: &std::ffi::OsStr,
    folder: &Path,
    peers: &[SocketAddr],
    flags: &[OsString],
) -> Program {
    std::fs::create_dir_all(folder).expect("folder of the payload");
    let mut args: Vec<OsString> = vec!["-v".into(), "get".into(), source.into(), "--json".into()];
    args.extend(["--data".into(), folder.into()]);
    for peer in peers {
        args.extend(["--peer".into(), peer.to_string().into()]);
    }
    args.extend_from_slice(flags);
    Program::start_command(command(home), &args, &home.join("logs"))
}

/// A counter of a finished `seed` or `get`.
pub fn counter(finished: &Finished, name: &str) -> u64 {
    let json = finished.json();
    json["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {json}"))
}
