//! vortex seeding or fetching one torrent.
//!
//!     vortex-peer TORRENT FOLDER LISTEN REQUESTS [PEER…]
//!
//! REQUESTS is what it lets a peer ask for at once, all else is its default. Prints `seeding` when it has
//! everything at its start and listens, `done` when it has fetched everything; goes on until it is killed.
#![forbid(unsafe_code)]

use std::error::Error;
use std::net::TcpListener;
use std::time::Duration;

use heapless::spsc::Queue;
use vortex_bittorrent::{Command, Config, PeerId, State, Torrent, TorrentEvent, TorrentMetadata};

/// How often its events are looked at.
const LOOK: Duration = Duration::from_millis(1);
/// Commands that may wait.
const COMMANDS: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [torrent, folder, listen, requests, peers @ ..] = words.as_slice() else {
        return Err("vortex-peer TORRENT FOLDER LISTEN REQUESTS [PEER…]".into());
    };
    let metadata = TorrentMetadata::read_from_file(torrent)?;
    let config =
        Config { max_reported_outstanding_requests: requests.parse()?, ..Config::default() };
    // It hashes what is there.
    let state = State::from_metadata_and_root(PeerId::generate(), metadata, folder.into(), config)?;
    let mut torrent = Torrent::new(state);
    let is_seed = torrent.is_complete();
    let peers = peers.iter().map(|peer| peer.parse()).collect::<Result<Vec<_>, _>>()?;
    let listener = TcpListener::bind(listen)?;
    let (commands, commanded) = std::sync::mpsc::sync_channel(COMMANDS);
    let mut queue: Queue<TorrentEvent, 512> = Queue::new();
    let (produced, mut events) = queue.split();
    std::thread::scope(|scope| {
        let running = scope.spawn(move || torrent.start(produced, commanded, listener));
        let mut peers = Some(peers);
        while !running.is_finished() {
            while let Some(event) = events.dequeue() {
                match event {
                    TorrentEvent::Running { .. } => {
                        if is_seed {
                            println!("seeding");
                        }
                        if let Some(peers) = peers.take().filter(|peers| !peers.is_empty()) {
                            commands.send(Command::ConnectToPeers(peers))?;
                        }
                    }
                    TorrentEvent::TorrentComplete => println!("done"),
                    _ => {}
                }
            }
            std::thread::sleep(LOOK);
        }
        running.join().map_err(|_| "vortex panicked")?.map_err(Into::into)
    })
}
