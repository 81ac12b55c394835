//! A real CometBFT daemon: where its program is, and a running one that never outlives its test.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use ringseed_abci::comet::home::COMETBFT_VERSION;

use crate::program::Program;
use crate::skip::Need;

/// Where the tests look for the program, and where they install it.
pub fn binary() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/cometbft")
}

/// The need for the daemon. In CI (`RINGSEED_REQUIRE=1`) it is installed when Go is there; elsewhere
/// a test run downloads nothing.
pub fn need() -> Need {
    let has_version = || {
        let output = Command::new(binary()).arg("version").output();
        output
            .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == COMETBFT_VERSION)
    };
    let may_install = std::env::var_os("RINGSEED_REQUIRE").is_some_and(|value| value == "1");
    if may_install && !has_version() {
        let tools = binary().parent().expect("it has a folder").to_owned();
        let package = format!("github.com/cometbft/cometbft/cmd/cometbft@v{COMETBFT_VERSION}");
        let _ = std::fs::create_dir_all(&tools);
        let tools = tools.canonicalize().unwrap_or(tools);
        let _ = Command::new("go").env("GOBIN", tools).args(["install", &package]).status();
    }
    Need {
        name: "CometBFT 0.38.25",
        install: "GOBIN=$PWD/target/tools go install \
                  github.com/cometbft/cometbft/cmd/cometbft@v0.38.25",
        present: has_version(),
    }
}

/// The first of three free ports in a row on 127.0.0.1, for a market, its payload and the daemon's RPC.
/// Below the range from which the kernel takes ports for outgoing connections (32,768 on): a process
/// that is killed and started again finds them free.
pub fn free_ports() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let start = (std::process::id() % 5_000) as u16;
        let port = 10_000 + (start + step) % 7_000 * 3;
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if (port..port + 3).all(is_free) {
            return ([127, 0, 0, 1], port).into();
        }
    }
}

/// Starts the daemon of `home`.
pub fn start(home: &Path, logs: &Path) -> Program {
    let args = ["node".into(), "--home".into(), home.as_os_str().to_owned()];
    Program::start(binary(), &args, logs)
}

/// Waits for a height of the daemon at `rpc`.
///
/// # Panics
/// When it has not come after `deadline`.
#[track_caller]
pub fn wait_height(rpc: SocketAddr, height: u64, deadline: Duration) {
    let daemon = ringseed_abci::comet::rpc::Rpc::new(rpc);
    let start = std::time::Instant::now();
    loop {
        let status = daemon.status();
        if status.as_ref().is_ok_and(|status| status.height >= height) {
            return;
        }
        assert!(start.elapsed() < deadline, "no height {height} at {rpc}: {status:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
