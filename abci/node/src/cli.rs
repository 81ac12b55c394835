//! The command line. Every flag that a hint of ours prints is parsed by a test below.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ringseed_core::magnet::PeerAddr;
use ringseed_core::select::FileSelection;
use ringseed_core::tracker::TrackerUrl;
use ringseed_engine::offline::IoMode;

use ringseed_abci::shim::ListenAddr;

use crate::units;

/// A data market in one binary: agree on listings, mirror them, serve them.
#[derive(Debug, Parser)]
#[command(name = "ringseed", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print data as JSON on stdout, and events as JSON lines on stderr.
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more (-v debug, -vv trace); the log goes to stderr.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole market on this machine, on-board newcomers, verify every byte.
    Up(Up),
    /// Make a datatrust's folder: key, configuration; prints its member line.
    Init(InitAny),
    /// Write the genesis file of a market from its founders' member lines.
    Genesis(Genesis),
    /// Run a datatrust.
    Start(Start),
    /// Run a datatrust whose market is ordered by a CometBFT daemon beside it.
    Abci(Abci),
    /// Prepare a datatrust for a market that exists, knowing one address and the genesis hash.
    Join(Join),
    /// Admit members, or list them.
    #[command(subcommand)]
    Member(Member),
    /// Offer data to the market, look at listings, remove them.
    #[command(subcommand)]
    Listing(Listing),
    /// Show a datatrust on one screen.
    Status(Status),
    /// Show or change what a running datatrust may send and receive.
    Limit(Limit),
    /// Write the `.torrent` file of a file or folder.
    Hash(Hash),
    /// Serve torrents without a market.
    Seed(Seed),
    /// Fetch a torrent without a market.
    Get(Get),
    /// Verify data on disk against its `.torrent` file, or against thousands of them.
    Check(Check),
    /// Say whether a datatrust can run here and how well, with the cure for what is wrong.
    Doctor(Doctor),
}

/// `ringseed doctor`.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// Folders that are meant for payload or state: file system, O_DIRECT, space, cost of a sync.
    #[arg(value_name = "DIR")]
    pub folders: Vec<PathBuf>,
    /// Addresses that are meant to be listened on.
    #[arg(long, value_name = "ADDR", default_values = ["127.0.0.1:7400", "127.0.0.1:7401"])]
    pub listen: Vec<SocketAddr>,
    /// Print the settings of this form of deployment, and name cures in its words.
    #[arg(long, value_name = "FORM")]
    pub cure: Option<crate::doctor::Form>,
}

/// `ringseed up`.
#[derive(Args, Clone, Debug)]
pub struct Up {
    /// Founding datatrusts (validators).
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub nodes: u32,
    /// Newcomers that join together once the founders are whole.
    #[arg(long, value_name = "M", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=16))]
    pub new: u32,
    /// Listings to make of the data.
    #[arg(long, value_name = "L", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub listings: u32,
    /// Take the files of this folder instead of the Rust toolchain's libraries. It is only read.
    #[arg(long, value_name = "DIR", conflicts_with = "synthetic")]
    pub data: Option<PathBuf>,
    /// Make this much incompressible data from a seed instead.
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub synthetic: Option<u64>,
    /// Cap each datatrust's upload, such as 40MB/s.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub uplink: Option<u64>,
    /// Keep everything under this folder when it ends.
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Leave when the story is told: 0, or non-zero with the reason if anything differed.
    #[arg(long)]
    pub once: bool,
}

/// Who orders a market's transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Consensus {
    /// Built in.
    Cluster,
    /// A CometBFT 0.38 daemon beside each datatrust.
    Cometbft,
}

/// `ringseed init`, for either consensus.
#[derive(Args, Clone, Debug)]
pub struct InitAny {
    /// The datatrust.
    #[command(flatten)]
    pub init: Init,
    /// Who orders the market's transactions; the same for all its members.
    #[arg(long, value_enum, default_value_t = Consensus::Cluster)]
    pub consensus: Consensus,
    /// Genesis file of the market, for the CometBFT folder: call `init` again once it is written.
    #[arg(long, value_name = "FILE")]
    pub genesis: Option<PathBuf>,
    /// Loopback address of the daemon's RPC, where it is not the market's port plus 1000.
    #[arg(long, value_name = "A")]
    pub rpc: Option<SocketAddr>,
}

/// `ringseed init`.
#[derive(Args, Clone, Debug)]
pub struct Init {
    /// Folder of the datatrust; made if missing.
    #[arg(long, value_name = "D")]
    pub dir: PathBuf,
    /// Address to listen on for the market; payload is served on the next port.
    #[arg(long, value_name = "A")]
    pub listen: SocketAddr,
    /// Address that others reach it by, where that differs.
    #[arg(long, value_name = "A")]
    pub advertise: Option<SocketAddr>,
    /// Allow an address other than loopback: market and payload travel in the clear.
    #[arg(long)]
    pub insecure_plain: bool,
}

/// `ringseed genesis`.
#[derive(Args, Clone, Debug)]
pub struct Genesis {
    /// Name of the market: letters, digits and `-`.
    #[arg(long, value_name = "NAME")]
    pub market: String,
    /// Member lines as `init` printed them.
    #[arg(required = true, value_name = "MEMBER")]
    pub members: Vec<String>,
    /// File to write.
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: PathBuf,
    /// For a market on one machine: blocks as fast as every 50 ms, short windows and grace.
    #[arg(long)]
    pub local: bool,
}

/// `ringseed start`.
#[derive(Args, Clone, Debug)]
pub struct Start {
    /// Folder of the datatrust.
    #[arg(long, value_name = "D")]
    pub dir: PathBuf,
    /// Genesis file of the market; only needed the first time.
    #[arg(long, value_name = "FILE")]
    pub genesis: Option<PathBuf>,
    /// End when this process ends (used by `up`).
    #[arg(long, value_name = "PID", hide = true)]
    pub with_parent: Option<u32>,
}

/// `ringseed abci`.
#[derive(Args, Clone, Debug)]
pub struct Abci {
    /// Where the daemon finds this datatrust: `unix:PATH` (0600) or `tcp:ADDR` (loopback).
    #[arg(long, value_name = "ADDR")]
    pub listen: ListenAddr,
    /// As for `start`.
    #[command(flatten)]
    pub start: Start,
    /// Where the daemon's RPC is, where it is not the market's port plus 1000.
    #[arg(long, value_name = "A")]
    pub rpc: Option<SocketAddr>,
    /// Heights between two snapshots for newcomers by state sync.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub snapshot_every: Option<u64>,
}

/// `ringseed join`.
#[derive(Args, Clone, Debug)]
pub struct Join {
    /// Market address of any one member.
    pub addr: SocketAddr,
    /// Hash of the genesis, as the market's founders publish it.
    #[arg(long, value_name = "HASH", value_parser = genesis_hash)]
    pub genesis: [u8; 32],
    /// Folder of the new datatrust; made if missing.
    #[arg(long, value_name = "D")]
    pub dir: PathBuf,
    /// Only show what joining would take; nothing is written.
    #[arg(long)]
    pub plan: bool,
    /// Address to listen on for the market; payload is served on the next port.
    #[arg(long, value_name = "A")]
    pub listen: Option<SocketAddr>,
    /// Address that others reach it by, where that differs.
    #[arg(long, value_name = "A")]
    pub advertise: Option<SocketAddr>,
    /// Allow an address other than loopback: market and payload travel in the clear.
    #[arg(long)]
    pub insecure_plain: bool,
}

/// Which datatrust a command talks to.
#[derive(Args, Clone, Debug, Default)]
pub struct Node {
    /// Folder of the datatrust; without it, the first datatrust of the running `up`.
    #[arg(long, value_name = "D")]
    pub dir: Option<PathBuf>,
}

/// `ringseed member`.
#[derive(Debug, Subcommand)]
pub enum Member {
    /// Vote for the admission of a registered datatrust with this datatrust's key.
    Admit {
        /// Key of the newcomer: 64 hexadecimal digits, or the first eight of them or more.
        member: String,
        /// Which datatrust votes.
        #[command(flatten)]
        node: Node,
    },
    /// List registered datatrusts: power, address, caught up or not.
    Ls {
        /// Which datatrust to ask.
        #[command(flatten)]
        node: Node,
    },
}

/// `ringseed listing`.
#[derive(Debug, Subcommand)]
pub enum Listing {
    /// Offer a file or folder to the market. It is copied; the original is only read.
    Add {
        /// File or folder to offer.
        path: PathBuf,
        /// Serve it from where it lies instead of copying it.
        #[arg(long)]
        in_place: bool,
        /// Return only when the market has promoted it.
        #[arg(long)]
        wait: bool,
        /// Which datatrust offers it.
        #[command(flatten)]
        node: Node,
    },
    /// List listings and candidates.
    Ls {
        /// Which datatrust to ask.
        #[command(flatten)]
        node: Node,
    },
    /// Show one listing: who holds it, who sent what.
    Show {
        /// Infohash, or the first eight digits of it or more.
        infohash: String,
        /// Which datatrust to ask.
        #[command(flatten)]
        node: Node,
    },
    /// Remove a listing that this datatrust offered.
    Rm {
        /// Infohash, or the first eight digits of it or more.
        infohash: String,
        /// Which datatrust signs the removal.
        #[command(flatten)]
        node: Node,
    },
}

/// `ringseed status`.
#[derive(Args, Clone, Debug)]
pub struct Status {
    /// Every datatrust of the running `up`, or every member that can be asked from here.
    #[arg(long)]
    pub all: bool,
    /// Which datatrust to ask.
    #[command(flatten)]
    pub node: Node,
}

/// `ringseed limit`.
#[derive(Args, Clone, Debug)]
pub struct Limit {
    /// Send at most so much, such as 40MB/s; `none` lifts the cap.
    #[arg(long, value_name = "RATE", value_parser = cap)]
    pub up: Option<Cap>,
    /// Receive at most so much.
    #[arg(long, value_name = "RATE", value_parser = cap)]
    pub down: Option<Cap>,
    /// To and from all members of the market together.
    #[arg(long, group = "scope")]
    pub members: bool,
    /// To and from everybody else together.
    #[arg(long, group = "scope")]
    pub others: bool,
    /// Of one listing: its infohash or the first digits.
    #[arg(long, value_name = "INFOHASH", group = "scope")]
    pub listing: Option<String>,
    /// Which datatrust to ask.
    #[command(flatten)]
    pub node: Node,
}

/// A cap as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    /// There is to be none.
    None,
    /// Bytes per second.
    Rate(u64),
}

fn cap(text: &str) -> Result<Cap, String> {
    if text == "none" { Ok(Cap::None) } else { rate(text).map(Cap::Rate) }
}

/// Flags of `seed` and `get` about how payload moves.
#[derive(Args, Clone, Debug)]
pub struct Moving {
    /// Cap what is sent, such as 40MB/s.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub uplink: Option<u64>,
    /// Cap what is received.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub downlink: Option<u64>,
    /// What does the I/O: io_uring, epoll, whichever the machine allows, or a driver that this program was built with.
    #[arg(long, value_name = "DRIVER", default_value = "auto", value_parser = crate::drivers::value_parser())]
    pub io_driver: String,
    /// Shards: threads that share the torrents among them. By default one for two CPUs, at most two.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub shards: Option<u32>,
    /// Send without copying (SENDMSG_ZC) for as long as the kernel does: for fast network cards.
    #[arg(long)]
    pub zero_copy_send: bool,
}

/// `ringseed hash`.
#[derive(Args, Clone, Debug)]
pub struct Hash {
    /// File or folder to hash.
    pub path: PathBuf,
    /// `.torrent` file to write.
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub out: PathBuf,
    /// BitTorrent v1 only (SHA-1): for old clients; never a market listing.
    #[arg(long, conflicts_with_all = ["v2", "hybrid"])]
    pub v1: bool,
    /// BitTorrent v2 only (SHA-256).
    #[arg(long, conflicts_with = "hybrid")]
    pub v2: bool,
    /// Both views of the same bytes (the default).
    #[arg(long)]
    pub hybrid: bool,
    /// Piece length, a power of two from 16KiB.
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub piece_len: Option<u64>,
    /// Mark it private (BEP 27).
    #[arg(long)]
    pub private: bool,
    /// Tracker to write into it, http:// or udp://; several are asked one after the other.
    #[arg(long = "tracker", value_name = "URL")]
    pub trackers: Vec<TrackerUrl>,
    /// Which way the data is read: auto takes what the page cache has from there and the rest past it.
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = IoMode::NAMES)]
    pub io: String,
}

/// Flags of `seed` and `get` about trackers.
#[derive(Args, Clone, Debug, Default)]
pub struct Trackers {
    /// Ask this tracker before those of the torrent: http:// or udp://.
    #[arg(long = "tracker", value_name = "URL")]
    pub urls: Vec<TrackerUrl>,
    /// Ask no tracker, whatever the torrent names.
    #[arg(long, conflicts_with = "urls")]
    pub no_trackers: bool,
}

/// `ringseed seed`.
#[derive(Args, Clone, Debug)]
pub struct Seed {
    /// Torrents to serve. A folder stands for the .torrent files in it: those that come while it runs are
    /// served as well, those that go are withdrawn, and a bad one is named and left out.
    #[arg(required = true, value_name = "FILE.torrent | DIR")]
    pub torrents: Vec<PathBuf>,
    /// Folder that holds each torrent's root name.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Addresses to listen on; [::]:PORT takes IPv4 as well.
    #[arg(long, value_name = "ADDR", required = true, num_args = 1..)]
    pub listen: Vec<SocketAddr>,
    /// Peers to connect to; a name may stand for several addresses.
    #[arg(long = "peer", value_name = "HOST:PORT", num_args = 1..)]
    pub peers: Vec<PeerAddr>,
    /// Where trackers come from, besides the torrents.
    #[command(flatten)]
    pub trackers: Trackers,
    /// How payload moves.
    #[command(flatten)]
    pub moving: Moving,
    /// Connections that one address may make, this machine's own included. Without it an address of
    /// another machine may make 8, and this machine as many as it likes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub peers_per_ip: Option<u32>,
}

/// `ringseed get`.
#[derive(Args, Clone, Debug)]
pub struct Get {
    /// Torrent to fetch: a file, or a magnet link (in quotes: it has an & in it).
    #[arg(value_name = "FILE.torrent | MAGNET")]
    pub torrent: PathBuf,
    /// Folder that will hold the torrent's root name.
    #[arg(long, visible_alias = "dir", value_name = "DIR")]
    pub data: PathBuf,
    /// Peers to fetch from; a name may stand for several addresses.
    #[arg(long = "peer", value_name = "HOST:PORT", num_args = 1..)]
    pub peers: Vec<PeerAddr>,
    /// Where trackers come from, besides the torrent.
    #[command(flatten)]
    pub trackers: Trackers,
    /// Fetch these files alone, numbered from 0 without pads, such as 0,2,4-7.
    #[arg(long, value_name = "LIST", value_parser = FileSelection::parse)]
    pub select: Option<FileSelection>,
    /// Addresses to listen on for other peers; [::]:PORT takes IPv4 as well.
    #[arg(long, value_name = "ADDR", num_args = 1..)]
    pub listen: Vec<SocketAddr>,
    /// Go on serving when complete, until Ctrl-C.
    #[arg(long)]
    pub seed_after: bool,
    /// How payload moves.
    #[command(flatten)]
    pub moving: Moving,
    /// End when this process ends (used by `up`).
    #[arg(long, value_name = "PID", hide = true)]
    pub with_parent: Option<u32>,
}

/// `ringseed check`.
#[derive(Args, Clone, Debug)]
pub struct Check {
    /// Torrents to check against; a folder stands for all `.torrent` files in it.
    #[arg(required = true, value_name = "FILE.torrent")]
    pub torrents: Vec<PathBuf>,
    /// Folder that holds each torrent's root name.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Which way the data is read: auto takes what the page cache has from there and the rest past it.
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = IoMode::NAMES)]
    pub io: String,
}

fn bytes(text: &str) -> Result<u64, String> {
    units::parse_bytes(text).map_err(|error| error.what)
}

fn rate(text: &str) -> Result<u64, String> {
    units::parse_rate(text).map_err(|error| error.what)
}

fn genesis_hash(text: &str) -> Result<[u8; 32], String> {
    units::parse_hash(text, "genesis hash").map_err(|error| error.what)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// Every command line of the README and of our hints.
    #[test]
    fn what_we_print_is_what_we_parse() {
        let hash = "5a".repeat(32);
        for line in [
            "ringseed up".to_owned(),
            "ringseed up --nodes 4 --new 2 --listings 16 --data /usr/share --uplink 40MB/s --once --json".into(),
            "ringseed up --synthetic 64MiB --keep /var/tmp/m --once".into(),
            "ringseed init --dir /d1 --listen 127.0.0.1:7400".into(),
            "ringseed init --dir /d1 --listen 127.0.0.1:7400 --advertise 127.0.0.1:7400".into(),
            "ringseed genesis --market demo --local d1,aa,127.0.0.1:7400,127.0.0.1:7401,1 d2,bb,127.0.0.1:7410,127.0.0.1:7411,1 -o g.toml".into(),
            "ringseed start --dir /d1 --genesis g.toml".into(),
            "ringseed start --dir /d1".into(),
            "ringseed init --dir /d1 --listen 127.0.0.1:7400 --consensus cometbft --genesis g.toml".into(),
            "ringseed abci --listen unix:/d1/abci.sock --dir /d1 --rpc 127.0.0.1:8400".into(),
            "ringseed abci --listen tcp:127.0.0.1:26658 --dir /d1 --snapshot-every 100".into(),
            "ringseed limit --up 40MB/s --down none --dir /d1".into(),
            "ringseed limit --members --up 1GB/s".into(),
            "ringseed limit --listing 5a5a --down 10MB/s".into(),
            format!("ringseed join 127.0.0.1:7400 --genesis {hash} --dir /d5 --plan"),
            format!("ringseed join 127.0.0.1:7400 --genesis {hash} --dir /d5"),
            "ringseed member admit 5a5a5a5a --dir /d1".into(),
            "ringseed member ls --dir /d1 --json".into(),
            "ringseed listing add ./era5 --in-place --dir /d1".into(),
            "ringseed listing add ./era5 --wait".into(),
            "ringseed listing ls".into(),
            format!("ringseed listing show {hash}"),
            format!("ringseed listing rm {hash} --dir /d1"),
            "ringseed status".into(),
            "ringseed status --all".into(),
            "ringseed status --dir /d1 --json".into(),
            "ringseed hash era5 -o era5.torrent".into(),
            "ringseed hash era5 -o era5.torrent --v1 --piece-len 16KiB --private".into(),
            "ringseed seed era5.torrent b.torrent --data . --listen 127.0.0.1:6881".into(),
            "ringseed get era5.torrent --data out --peer 127.0.0.1:6881 127.0.0.1:6882 --seed-after --listen 127.0.0.1:6883".into(),
            "ringseed get era5.torrent --data out --peer 127.0.0.1:6881 --peer 127.0.0.1:6882".into(),
            format!("ringseed get magnet:?xt=urn:btmh:1220{hash}&x.pe=[::1]:6881 --data out"),
            "ringseed get era5.torrent --dir out --select 0,2,4-7 --tracker udp://t.example:6969".into(),
            "ringseed get era5.torrent --dir out --no-trackers --peer peer.example:6881".into(),
            "ringseed seed era5.torrent --data . --listen [::]:6881 127.0.0.1:6882 --tracker http://t.example/announce".into(),
            "ringseed hash era5 -o era5.torrent --tracker udp://t.example:6969".into(),
            "ringseed check era5.torrent --data . --json".into(),
            "ringseed check a.torrent b.torrent torrents --data . --io direct".into(),
            "ringseed hash era5 -o era5.torrent --io mmap".into(),
            "ringseed doctor".into(),
        ] {
            let parsed = Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            "ringseed hash x -o y --v1 --v2",
            "ringseed up --data /x --synthetic 1MiB",
            "ringseed join 127.0.0.1:7400 --genesis abc --dir d",
            "ringseed get x.torrent --data d --select 4-1",
            "ringseed get x.torrent --data d --tracker https://t.example/announce",
            "ringseed get x.torrent --data d --tracker udp://t:1 --no-trackers",
            "ringseed get x.torrent --data d --peer nowhere",
            "ringseed seed x.torrent --data d",
            "ringseed up --uplink 0",
            "ringseed limit --up fast",
            "ringseed limit --members --others --up none",
            "ringseed check --data .",
            "ringseed check x.torrent --data . --io fast",
            "ringseed abci --dir /d1",
            "ringseed abci --dir /d1 --listen udp:127.0.0.1:1",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
