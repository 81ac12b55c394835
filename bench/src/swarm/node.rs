//! `ringseed-bench node`: our engine in a process of its own, for what the command line does not offer:
//! many torrents to fetch, no syncs, other bounds.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ringseed_core::metainfo::Metainfo;
use ringseed_engine::{AddListing, Config, Engine, Event, Identity, IoDriver, Place};

/// Torrents that are handed over at once: the first ones move while the next are read.
const ADDED_TOGETHER: usize = 64;

/// A side of a transfer.
#[derive(Args)]
pub struct Options {
    /// `seed` or `leech`.
    #[arg(value_parser = ["seed", "leech"])]
    role: String,
    /// Torrents that it has, or fetches.
    #[arg(required = true)]
    torrents: Vec<PathBuf>,
    #[arg(long)]
    data: PathBuf,
    #[arg(long)]
    state: PathBuf,
    #[arg(long)]
    listen: Option<SocketAddr>,
    #[arg(long)]
    peer: Vec<SocketAddr>,
    /// Believe that everything is there.
    #[arg(long)]
    known_complete: bool,
    /// Skip every sync.
    #[arg(long)]
    no_sync: bool,
    /// Go on serving when complete.
    #[arg(long)]
    stays: bool,
    #[arg(long, value_parser = ["auto", "uring", "epoll"], default_value = "auto")]
    io_driver: String,
    /// Connections at most, for all and for one torrent.
    #[arg(long)]
    peers_max: Option<u32>,
    #[arg(long)]
    arena_mib: Option<usize>,
}

/// Runs it to its end. It prints `complete` when it has everything, and where it listens.
///
/// # Errors
/// What went wrong.
pub fn run(options: &Options) -> Result<(), String> {
    let is_seed = options.role == "seed";
    let mut peer_id = *b"-RS0100-............";
    let unique = format!("{:012x}", std::process::id());
    peer_id[8..].copy_from_slice(unique.as_bytes());
    let mut config = Config::new(&options.state, peer_id);
    config.listen = options.listen.into_iter().collect();
    if config.listen.is_empty() && is_seed {
        config.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    }
    config.durable = !options.no_sync;
    config.io_driver = match options.io_driver.as_str() {
        "uring" => IoDriver::Uring,
        "epoll" => IoDriver::Epoll,
        _ => IoDriver::Auto,
    };
    if let Some(peers) = options.peers_max {
        config.peers_max = peers;
        config.peers_per_listing_max = peers;
        config.handshakes_max = peers;
    }
    if let Some(mib) = options.arena_mib {
        config.arena_len_bytes = mib << 20;
    }
    let (engine, events) = Engine::start(config).map_err(|error| error.to_string())?;
    let mut waiting = 0usize;
    for paths in options.torrents.chunks(ADDED_TOGETHER) {
        let mut adds = Vec::with_capacity(paths.len());
        for path in paths {
            let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
            let metainfo = Metainfo::from_bytes(bytes).map_err(|error| error.to_string())?;
            let place = if is_seed { Place::InPlace } else { Place::Owned };
            adds.push(AddListing {
                identity: Identity::Metainfo(Arc::new(metainfo)),
                place: place(options.data.clone()),
                verify_v1: true,
                known_complete: options.known_complete,
                size_max_bytes: None,
                peers: options.peer.clone(),
                private_to_market: false,
            });
        }
        for added in engine.add_all(adds) {
            added.map_err(|error| error.to_string())?;
            waiting += 1;
        }
    }
    while waiting > 0 {
        match events.recv() {
            Ok(Event::Complete { .. }) => waiting -= 1,
            Ok(Event::Failed { error, .. }) => return Err(error.to_string()),
            Ok(Event::Fatal { error }) => return Err(error),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    println!("complete; {} listens at {:?}", engine.status().driver, engine.local_addr());
    if is_seed || options.stays {
        // Until it is killed.
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    engine.shutdown();
    Ok(())
}
