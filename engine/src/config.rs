//! What an engine is told at start: plain data with units in the names and one [`Config::validate`].
//!
//! Files, flags and environment belong to the program around the engine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ringseed_sys::arena::EXTENT_LEN_BYTES;
use thiserror::Error;

use crate::io::external::ExternalDriver;
use crate::offline::ReadOrder;

/// Which loop executes the shard's operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoDriver {
    /// io_uring where the kernel allows it, else epoll. Which one runs is in
    /// [`EngineStatus::driver`](crate::EngineStatus::driver).
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll for sockets, `pread`/`pwrite` on helper threads for files. Works in every container.
    Epoll,
    /// A driver that the program brings along, or an error.
    External(ExternalDriver),
}

/// Whether payload goes past the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectIo {
    /// O_DIRECT where the file system offers it.
    #[default]
    Auto,
    /// Buffered always.
    Off,
}

/// Everything an engine is given at start. [`Config::new`] fills in defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The loop that executes operations.
    pub io_driver: IoDriver,
    /// Threads that each have listings, connections, files, a ring and an equal part of the arena of their
    /// own. `None` takes one for every two CPUs that the process may use, no more than leave each
    /// [`ARENA_LEN_BYTES_OF_SHARD`] of the arena, and no more than [`SHARDS_MAX_DEFAULT`].
    pub shards: Option<u32>,
    /// Bytes of payload buffers in this process; the producer waits when they are all in use.
    /// Pages are touched as needed and reused. At least [`ARENA_LEN_BYTES_MIN`].
    pub arena_len_bytes: usize,
    /// Where peers may connect; without any address it only dials. Port 0 takes a free one, see
    /// [`Engine::local_addrs`](crate::Engine::local_addrs). `[::]` takes IPv4 as well, unless an IPv4
    /// address with the same port is in the list, too.
    pub listen: Vec<SocketAddr>,
    /// Our id in every handshake (BEP 3). A connection from the same id is closed.
    pub peer_id: [u8; 20],
    /// Folder of our own for journal, metadata and leaf sidecars; created if missing. One process
    /// at a time (a lock is held).
    pub state_dir: PathBuf,
    /// Payload bytes per second sent at most; `None` is unlimited.
    pub upload_rate_max: Option<u64>,
    /// Payload bytes per second received at most; `None` is unlimited.
    pub download_rate_max: Option<u64>,
    /// Sends long buffers without copying them (`SENDMSG_ZC`) where the kernel does so, until it says that
    /// it copies them all the same. Worth it on fast network cards, a loss on loopback.
    pub zero_copy_send: bool,
    /// `false` skips every sync: for tests and scratch data. After a power cut nothing is promised.
    pub durable: bool,
    /// Connections at most, over all listings, in both directions.
    pub peers_max: u32,
    /// Connections at most for one listing.
    pub peers_per_listing_max: u32,
    /// Incoming connections at most that have not shaken hands. A newcomer beyond it takes the place of
    /// the oldest one of the network that has most of them.
    pub handshakes_max: u32,
    /// Connections at most that one IPv4 address, or one IPv6 /64, may make to us. Members of a market
    /// ([`Engine::set_members`](crate::Engine::set_members)) are not counted.
    pub peers_per_ip_max: u32,
    /// Whether loopback counts as an address like any other. All programs of this machine share it, so
    /// that by default it is spared.
    pub limit_loopback: bool,
    /// Requests at most that one connection may have waiting with us; announced as `reqq` (BEP 10). No more than
    /// [`REQUESTS_PER_PEER_MAX`].
    pub requests_per_peer_max: u32,
    /// Operations in flight at most on one device, over all shards, of 256 KiB each on average.
    pub device_ops_max: u32,
    /// Payload files held open at most.
    pub open_files_max: u32,
    /// A listing of at least so many bytes is fetched and served by all shards, each over connections of its
    /// own, when it can be cut: pieces of a multiple of 256 KiB, files that begin at sectors.
    pub stripe_min_bytes: u64,
    /// A complete listing goes cold after so long without a peer: a row and nothing else, until the next
    /// handshake.
    pub idle_before_cold: Duration,
    /// A log of the journal is closed, and a checkpoint made of what it and all before it say, when a
    /// start would read more than this (or than the checkpoint itself, if that is longer), in bytes.
    pub journal_log_bytes_max: u64,
    /// Whether payload goes past the page cache.
    pub direct_io: DirectIo,
    /// In which order reads of payload go to a device that has many to do.
    pub read_order: ReadOrder,
    /// Dial the addresses of a listing also when it is complete, to bring what others lack. A datatrust
    /// does not: there whoever lacks something dials.
    pub dials_as_seed: bool,
    /// Seed of every choice that is left to chance. `None` takes one from the system.
    pub seed: Option<u64>,
}

/// Default of [`Config::arena_len_bytes`]: 64 MiB keep a loopback transfer busy and a datatrust's
/// resident memory well under 160 MiB.
pub const ARENA_LEN_BYTES_DEFAULT: usize = 64 << 20;

/// Part of the arena that a shard has at least when their number is chosen by itself: less makes a fast
/// connection wait for buffers.
pub const ARENA_LEN_BYTES_OF_SHARD: usize = 32 << 20;

/// Most shards that are taken without being asked for. Eight move what no single link carries.
pub const SHARDS_MAX_DEFAULT: u32 = 8;

/// Most shards that may be asked for.
pub const SHARDS_MAX: u32 = 64;

/// Default of [`Config::device_ops_max`]: depth 32 of 256 KiB keeps an NVMe busy and a rotational disk sane.
pub const DEVICE_OPS_MAX_DEFAULT: u32 = 32;

/// Most of [`Config::requests_per_peer_max`]: stock clients announce 2,000 at most, and each takes 12 bytes.
pub const REQUESTS_PER_PEER_MAX: u32 = 4096;

/// Default of [`Config::idle_before_cold`]: peers that reconnect within it find everything ready.
pub const IDLE_BEFORE_COLD_DEFAULT: Duration = Duration::from_secs(60);

/// Default of [`Config::stripe_min_bytes`]: what one shard moves in a second or two is not worth the
/// connections.
pub const STRIPE_MIN_BYTES_DEFAULT: u64 = 1 << 30;

/// Default of [`Config::journal_log_bytes_max`]: 16 MiB are replayed in about 50 ms.
pub const JOURNAL_LOG_BYTES_MAX_DEFAULT: u64 = 16 << 20;

/// Least arena: two pieces of 4 MiB in flight and room to serve beside them.
pub const ARENA_LEN_BYTES_MIN: usize = 16 << 20;

/// Most arena: 1 TiB, a typing error otherwise.
pub const ARENA_LEN_BYTES_MAX: usize = 1 << 40;

/// Why a [`Config`] was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The arena is too small or absurdly large.
    #[error("arena_len_bytes is {len_bytes}, it must be between {min} and {max}")]
    ArenaLen {
        /// What was given.
        len_bytes: usize,
        /// [`ARENA_LEN_BYTES_MIN`].
        min: usize,
        /// [`ARENA_LEN_BYTES_MAX`].
        max: usize,
    },
    /// A rate of zero would stop everything silently; `set_serving(false)` says it openly.
    #[error("{name} is {rate} bytes/s, less than one block per second")]
    Rate {
        /// The field.
        name: &'static str,
        /// What was given, bytes per second.
        rate: u64,
    },
    /// No connection could ever be made.
    #[error("{name} is zero")]
    Zero {
        /// The field.
        name: &'static str,
    },
    /// Too many shards, or none.
    #[error("shards is {shards}, it must be between 1 and {SHARDS_MAX}")]
    Shards {
        /// What was given.
        shards: u32,
    },
    /// One connection could make us keep too much.
    #[error("requests_per_peer_max is {requests}, it must be at most {REQUESTS_PER_PEER_MAX}")]
    Requests {
        /// What was given.
        requests: u32,
    },
    /// Every shard needs an arena.
    #[error("arena_len_bytes is {len_bytes}, {shards} shards need {} each", ARENA_LEN_BYTES_MIN)]
    ShardArena {
        /// What was given.
        len_bytes: usize,
        /// What was given.
        shards: u32,
    },
    /// The state folder has no name.
    #[error("state_dir is empty")]
    StateDir,
}

impl Config {
    /// Defaults for a state folder and a peer id: automatic driver, 64 MiB arena, no listener,
    /// durable, no rate cap.
    pub fn new(state_dir: impl Into<PathBuf>, peer_id: [u8; 20]) -> Self {
        Config {
            io_driver: IoDriver::Auto,
            shards: None,
            arena_len_bytes: ARENA_LEN_BYTES_DEFAULT,
            listen: Vec::new(),
            peer_id,
            state_dir: state_dir.into(),
            upload_rate_max: None,
            download_rate_max: None,
            zero_copy_send: false,
            durable: true,
            peers_max: 512,
            peers_per_listing_max: 256,
            handshakes_max: 256,
            peers_per_ip_max: 8,
            limit_loopback: false,
            requests_per_peer_max: 512,
            device_ops_max: DEVICE_OPS_MAX_DEFAULT,
            open_files_max: 256,
            stripe_min_bytes: STRIPE_MIN_BYTES_DEFAULT,
            idle_before_cold: IDLE_BEFORE_COLD_DEFAULT,
            journal_log_bytes_max: JOURNAL_LOG_BYTES_MAX_DEFAULT,
            direct_io: DirectIo::Auto,
            read_order: ReadOrder::Auto,
            dials_as_seed: false,
            seed: None,
        }
    }

    /// Whether short files go past the page cache: where they are synced right behind. Without syncs nobody waits
    /// for the device, and the page cache takes them sooner.
    pub(crate) fn puts_direct(&self) -> bool {
        self.direct_io == DirectIo::Auto && self.durable
    }

    /// Checks every value that has a bound.
    ///
    /// # Errors
    /// The first [`ConfigError`] found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(ARENA_LEN_BYTES_MIN..=ARENA_LEN_BYTES_MAX).contains(&self.arena_len_bytes) {
            return Err(ConfigError::ArenaLen {
                len_bytes: self.arena_len_bytes,
                min: ARENA_LEN_BYTES_MIN,
                max: ARENA_LEN_BYTES_MAX,
            });
        }
        if let Some(shards) = self.shards {
            if !(1..=SHARDS_MAX).contains(&shards) {
                return Err(ConfigError::Shards { shards });
            }
            let len_bytes = self.arena_len_bytes;
            if len_bytes / (shards as usize) < ARENA_LEN_BYTES_MIN {
                return Err(ConfigError::ShardArena { len_bytes, shards });
            }
        }
        for (name, rate) in [
            ("upload_rate_max", self.upload_rate_max),
            ("download_rate_max", self.download_rate_max),
        ] {
            rate.map_or(Ok(()), |rate| check_rate(name, rate))?;
        }
        for (name, value) in [
            ("peers_max", self.peers_max),
            ("peers_per_listing_max", self.peers_per_listing_max),
            ("handshakes_max", self.handshakes_max),
            ("peers_per_ip_max", self.peers_per_ip_max),
            ("requests_per_peer_max", self.requests_per_peer_max),
            ("device_ops_max", self.device_ops_max),
            ("open_files_max", self.open_files_max),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { name });
            }
        }
        if self.requests_per_peer_max > REQUESTS_PER_PEER_MAX {
            return Err(ConfigError::Requests { requests: self.requests_per_peer_max });
        }
        if self.state_dir.as_os_str().is_empty() {
            return Err(ConfigError::StateDir);
        }
        Ok(())
    }
}

impl Config {
    /// How many shards there are on a machine where this process may use `cpus` CPUs.
    ///
    /// By default one for two: a shard moves and hashes gigabytes per second, and the kernel's half of
    /// that work, disk threads and consensus want CPUs as well. So a machine of two or three CPUs has one
    /// shard with the whole arena, and one listing is as fast there as it ever was.
    pub fn shard_count(&self, cpus: usize) -> usize {
        let by_arena = self.arena_len_bytes / ARENA_LEN_BYTES_OF_SHARD;
        let by_default = (cpus / 2).min(by_arena).clamp(1, SHARDS_MAX_DEFAULT as usize);
        self.shards.map_or(by_default, |shards| shards as usize)
    }

    /// What one of `shards` shards is given of it: an equal part of what is a shard's own. The bounds of
    /// connections hold over all shards, which count them together.
    pub(crate) fn of_shard(&self, shards: usize) -> Config {
        let part = |all: u32| (all / shards as u32).max(1);
        Config {
            arena_len_bytes: self.arena_len_bytes / shards,
            open_files_max: part(self.open_files_max),
            ..self.clone()
        }
    }

    /// The same with no more connections and open files than `descriptors` (of `RLIMIT_NOFILE`) carry, a
    /// tenth of them and a reserve for the rest of the program left over: a listener that runs out of
    /// descriptors serves nobody.
    pub(crate) fn within_descriptors(mut self, descriptors: u64) -> Self {
        let of_u64 = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        // A file may take two: one past the page cache, one through it.
        let open_files_max = self.open_files_max.min(of_u64(descriptors / 8)).max(1);
        let reserve = (descriptors / 4).min(64);
        let rest = descriptors - descriptors / 10;
        let rest = rest.saturating_sub(reserve + 2 * u64::from(open_files_max));
        let peers_max = self.peers_max.min(of_u64(rest)).max(1);
        if (peers_max, open_files_max) != (self.peers_max, self.open_files_max) {
            tracing::warn!(
                descriptors,
                peers_max,
                open_files_max,
                "fewer connections and files than configured: raise the limit of open files (ulimit -n, LimitNOFILE=)"
            );
        }
        (self.peers_max, self.open_files_max) = (peers_max, open_files_max);
        self
    }
}

/// Refuses a rate below one block (16 KiB) per second, which no request would ever get through.
fn check_rate(name: &'static str, rate: u64) -> Result<(), ConfigError> {
    if rate < 16 << 10 { Err(ConfigError::Rate { name, rate }) } else { Ok(()) }
}

const _: () = assert!(ARENA_LEN_BYTES_MIN >= 16 * EXTENT_LEN_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Config::new("state", [7; 20]).validate(), Ok(()));
    }

    #[test]
    fn short_files_wait_for_the_device_where_a_sync_would_make_them() {
        let mut config = Config::new("state", [7; 20]);
        assert!(config.puts_direct());
        config.durable = false;
        assert!(!config.puts_direct());
        (config.durable, config.direct_io) = (true, DirectIo::Off);
        assert!(!config.puts_direct());
    }

    #[test]
    fn connections_and_files_fit_into_the_descriptors() {
        let good = Config::new("state", [7; 20]);
        let plenty = good.clone().within_descriptors(20_000);
        assert_eq!((plenty.peers_max, plenty.open_files_max), (512, 256));
        for descriptors in [8, 64, 256, 1024] {
            let few = good.clone().within_descriptors(descriptors);
            let taken = u64::from(few.peers_max) + 2 * u64::from(few.open_files_max);
            assert!(few.peers_max >= 1 && few.open_files_max >= 1);
            assert!(taken <= descriptors * 9 / 10, "{descriptors}: {few:?}");
        }
        assert!(good.within_descriptors(64).peers_max >= 20);
    }

    #[test]
    fn shards_follow_the_cpus_and_leave_each_other_an_arena() {
        let good = Config::new("state", [7; 20]);
        let shards = |cpus| good.shard_count(cpus);
        assert_eq!([1, 2, 3, 4, 64].map(shards), [1, 1, 1, 2, 2], "64 MiB are enough for two");
        let large = Config { arena_len_bytes: 1 << 30, ..good.clone() };
        assert_eq!([2, 8, 64].map(|cpus| large.shard_count(cpus)), [1, 4, 8]);
        let asked = Config { shards: Some(4), ..good.clone() };
        assert_eq!((asked.validate(), asked.shard_count(1)), (Ok(()), 4));
        let part = asked.of_shard(4);
        assert_eq!((part.arena_len_bytes, part.open_files_max), (16 << 20, 64));
        let none = Config { shards: Some(0), ..good.clone() };
        assert_eq!(none.validate(), Err(ConfigError::Shards { shards: 0 }));
        let many = Config { shards: Some(5), ..good };
        assert!(matches!(many.validate(), Err(ConfigError::ShardArena { shards: 5, .. })));
    }

    #[test]
    fn bounds_are_checked() {
        let good = Config::new("state", [7; 20]);
        let small = Config { arena_len_bytes: 1 << 20, ..good.clone() };
        assert!(matches!(small.validate(), Err(ConfigError::ArenaLen { .. })));
        let slow = Config { upload_rate_max: Some(0), ..good.clone() };
        let name = "upload_rate_max";
        assert_eq!(slow.validate(), Err(ConfigError::Rate { name, rate: 0 }));
        let slow = Config { download_rate_max: Some(9), ..good.clone() };
        let name = "download_rate_max";
        assert_eq!(slow.validate(), Err(ConfigError::Rate { name, rate: 9 }));
        let alone = Config { peers_max: 0, ..good.clone() };
        assert_eq!(alone.validate(), Err(ConfigError::Zero { name: "peers_max" }));
        let nowhere = Config { state_dir: PathBuf::new(), ..good };
        assert_eq!(nowhere.validate(), Err(ConfigError::StateDir));
    }
}
