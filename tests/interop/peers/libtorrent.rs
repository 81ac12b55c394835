//! libtorrent-rasterbar through its Python binding, driven by `libtorrent_peer.py`.

use ringseed_tests::program::Program;
use serde_json::json;

use super::{Job, Running};

/// The driver.
pub const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/libtorrent_peer.py");

pub struct Libtorrent {
    program: Program,
}

pub fn start(job: &Job) -> Libtorrent {
    /// `enc_policy` for "disabled".
    const DISABLED: u8 = 2;
    let mut settings = job.settings.clone().unwrap_or_else(|| json!({}));
    if job.is_plain {
        settings = json!({
            "enable_outgoing_utp": false, "enable_incoming_utp": false,
            "out_enc_policy": DISABLED, "in_enc_policy": DISABLED,
        });
    }
    // Else it dials from wherever the kernel likes, and peers could not tell two programs apart.
    settings["outgoing_interfaces"] = json!(job.addr.ip().to_string());
    if let Some(rate) = job.upload_rate_max {
        settings["upload_rate_limit"] = json!(rate);
    }
    let config = json!({
        "listen": job.addr.to_string(),
        "source": job.source.to_string_lossy(),
        "folder": job.folder.to_string_lossy(),
        "peers": job.peers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "settings": settings,
    });
    let args = ["-W", "ignore", DRIVER, "run", &config.to_string()];
    let mut program = Program::start_command(job.command("python3"), &args, &job.logs());
    program.wait_until("libtorrent to listen", super::START_MAX, |program| {
        program.stdout().contains("listening ")
    });
    Libtorrent { program }
}

impl Running for Libtorrent {
    fn is_complete(&mut self) -> bool {
        self.program.stdout().lines().any(|line| line == "done")
    }

    fn have_bytes(&mut self) -> u64 {
        let said = self.program.stdout();
        let last = said.lines().rev().find_map(|line| line.strip_prefix("have "));
        last.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn program(&mut self) -> &mut Program {
        &mut self.program
    }
}
