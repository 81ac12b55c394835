//! libtorrent-rasterbar through its Python binding, driven by `peers/libtorrent_swarm.py`.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::super::child::{Program, Sign};
use super::super::data::Payload;
use super::{Fetching, Job, Peer, START_MAX, said};

pub struct Libtorrent {
    is_tuned: bool,
    version: String,
}

/// Both profiles.
pub fn find() -> Result<Vec<Box<dyn Peer>>, &'static str> {
    let code = "import libtorrent; print('version', libtorrent.__version__)";
    let text = said("python3", &["-W", "ignore", "-c", code]).unwrap_or_default();
    let version = text.lines().find_map(|line| line.strip_prefix("version "));
    let version =
        version.ok_or("libtorrent is not installed: python3 -m pip install libtorrent")?;
    let of = |is_tuned| -> Box<dyn Peer> {
        Box::new(Libtorrent { is_tuned, version: version.trim().to_owned() })
    };
    Ok(vec![of(false), of(true)])
}

impl Libtorrent {
    fn command(&self, role: &str, job: &Job) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/libtorrent_swarm.py");
        let config = json!({
            "role": role,
            "tuned": self.is_tuned,
            "listen": job.addr.to_string(),
            "torrents": job.payload.torrents,
            "folder": job.folder,
            "peers": job.peers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        let mut command = Command::new("python3");
        // The torrents may be thousands: the file is no longer than it must be, an argument would be.
        let path = job.home.join("config.json");
        let _ = std::fs::create_dir_all(&job.home);
        let _ = std::fs::write(&path, config.to_string());
        command.args(["-W", "ignore"]).arg(script).arg(path);
        command
    }
}

impl Peer for Libtorrent {
    fn name(&self) -> String {
        format!("libtorrent, {}", if self.is_tuned { "tuned" } else { "stock" })
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn settings(&self) -> String {
        let tuned = "2 hashing threads, 1500 requests outstanding, send buffer watermarks 1 to 8 MiB at 150 %, \
                     socket buffers of 4 MiB, disk queue of 256 MiB: its manual's advice for fast links";
        let stock = "defaults but for no discovery, no uTP, no encryption, unlimited unchoke slots, no queue";
        format!(
            "{stock}{}{}; its clock begins when Python and the library are loaded",
            if self.is_tuned { "; " } else { "" },
            if self.is_tuned { tuned } else { "" }
        )
    }

    fn takes(&self, _: &Payload) -> bool {
        true
    }

    fn seed(&self, job: &Job) -> Result<Option<Program>, String> {
        let mut seed = job.start(self.command("seed", job))?;
        seed.wait(&Sign::line("seeding"), START_MAX)?;
        Ok(Some(seed))
    }

    fn leech(&self, job: &Job) -> Result<Fetching, String> {
        let program = job.start(self.command("leech", job))?;
        Ok(Fetching { program, begins: Sign::line("begin"), done: Sign::line("done"), clock: None })
    }
}
