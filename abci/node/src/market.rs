//! `init`, `genesis` and `join`: how a datatrust and a market come to be.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use ringseed_abci::{Cluster, ClusterConfig, Driver};
use ringseed_ledger::{Addr, Genesis, GenesisMember, Params, PublicKey, SigningKey};
use serde_json::{Value, json};

use crate::config::{self, Market};
use crate::datatrust::start_error;
use crate::error::{Code, Error, Result};
use crate::interrupt::Interrupt;
use crate::layout::{Layout, write_private};
use crate::progress::Reporter;
use crate::{cli, keys, preflight, units};

/// First port that `join` tries when no address is given.
const PORT_FIRST: u16 = 7400;
/// How long `join --plan` waits for the ledger.
const PLAN_MAX: Duration = Duration::from_secs(60);

/// `ringseed init`: key and configuration. The result carries the member line.
///
/// # Errors
/// [`Code::AlreadyInitialised`], [`Code::NotLoopback`], I/O errors.
pub fn init(args: &cli::Init) -> Result<Value> {
    let layout = Layout::new(&args.dir);
    let market = market_of(&layout, args.listen, args.advertise, args.insecure_plain)?;
    let key = create(&layout, &market)?;
    described(&layout, &market, key)
}

/// What [`init`] said of a datatrust that is there already.
///
/// # Errors
/// As [`Layout::load_config`] and [`keys::load`].
pub fn describe(layout: &Layout) -> Result<Value> {
    let key = keys::load(&layout.key())?.public();
    described(layout, &layout.load_config()?.market, key)
}

fn described(layout: &Layout, market: &Market, key: PublicKey) -> Result<Value> {
    let member = member_line(market, key)?;
    Ok(json!({
        "dir": layout.root(), "name": market.name, "key": key.to_string(),
        "member": member.to_string(),
    }))
}

fn market_of(
    layout: &Layout,
    listen: SocketAddr,
    advertise: Option<SocketAddr>,
    insecure_plain: bool,
) -> Result<Market> {
    let payload_listen = config::payload_beside(listen)?;
    if !insecure_plain {
        config::require_loopback(listen)?;
    }
    Ok(Market {
        name: config::name_of(layout.root()),
        listen,
        advertise,
        payload_listen,
        payload_advertise: advertise.map(config::payload_beside).transpose()?,
        contact: None,
        genesis_hash: None,
        insecure_plain,
    })
}

/// Writes folder, key and configuration.
fn create(layout: &Layout, market: &Market) -> Result<PublicKey> {
    layout.create()?;
    write_private(&layout.config(), config::example(market).as_bytes())?;
    // The key comes last: a folder with a key is a whole one.
    let key = keys::create(&layout.key())?;
    Ok(key.public())
}

fn member_line(market: &Market, key: PublicKey) -> Result<GenesisMember> {
    let addr = |addr: SocketAddr| {
        Addr::new(addr).map_err(|error| {
            Error::new(Code::BadValue, format!("others cannot dial {addr}: {error}"))
                .cure("give the address that they can dial with --advertise")
        })
    };
    Ok(GenesisMember {
        name: market.name.clone(),
        key,
        consensus_addr: addr(market.advertise.unwrap_or(market.listen))?,
        payload_addr: addr(market.payload_advertise.unwrap_or(market.payload_listen))?,
        power: 1,
    })
}

/// `ringseed genesis`: the market's first state. The result carries the complete `join` command.
///
/// # Errors
/// [`Code::BadValue`] for a member line or name that is none; I/O errors.
pub fn genesis(args: &cli::Genesis) -> Result<Value> {
    let bad = |error: ringseed_ledger::GenesisError| {
        Error::new(Code::BadValue, error.to_string())
            .cure("give the member lines exactly as `ringseed init` printed them")
    };
    let members: Vec<GenesisMember> =
        args.members.iter().map(|line| line.parse().map_err(bad)).collect::<Result<_>>()?;
    let params = if args.local { Params::local() } else { Params::default() };
    let genesis = Genesis::new(&args.market, params, members).map_err(bad)?;
    std::fs::write(&args.out, genesis.to_text())
        .map_err(|error| Error::io("write", &args.out, error))?;
    let hash = genesis.hash().to_string();
    let contact = genesis.members.first().map(|member| member.consensus_addr.to_string());
    let contact = contact.unwrap_or_default();
    Ok(json!({
        "file": args.out, "market": args.market, "chain": genesis.chain_id(), "hash": hash,
        "members": genesis.members.len(),
        "start": format!("ringseed start --dir D --genesis {}", args.out.display()),
        "join": format!("ringseed join {contact} --genesis {hash} --dir D"),
    }))
}

/// `ringseed join`: fetches the genesis and writes key and configuration; with `--plan` only shows
/// what joining would take.
///
/// # Errors
/// [`Code::Unreachable`], [`Code::Genesis`] when the contact serves another one,
/// [`Code::AlreadyInitialised`].
pub fn join(args: &cli::Join, reporter: Reporter) -> Result<Value> {
    let layout = Layout::new(&args.dir);
    if !args.insecure_plain {
        config::require_loopback(args.addr)?;
    }
    let mut seed = [0; 32];
    keys::fill_random(&mut seed)?;
    let visitor = SigningKey::from_seed(&seed);
    let genesis = Cluster::fetch_genesis(args.addr, args.genesis.into(), &visitor)
        .map_err(|error| start_error(error, &layout))?;
    if args.plan {
        return plan(args, &genesis, visitor, reporter);
    }
    let listen = match args.listen {
        Some(listen) => listen,
        None => free_pair(args.addr)?,
    };
    let mut market = market_of(&layout, listen, args.advertise, args.insecure_plain)?;
    market.contact = Some(args.addr);
    market.genesis_hash = Some(genesis.hash().to_string());
    let key = create(&layout, &market)?;
    write_private(&layout.genesis(), genesis.to_text().as_bytes())?;
    let dir = layout.root().display().to_string();
    Ok(json!({
        "dir": layout.root(), "name": market.name, "key": key.to_string(),
        "market": genesis.market, "genesis": genesis.hash().to_string(),
        "listen": listen.to_string(),
        "start": format!("ringseed start --dir {dir}"),
        "admit": format!("ringseed member admit {key} --dir MEMBER"),
    }))
}

/// Two free ports in a row on the loopback interface that the contact is on.
fn free_pair(contact: SocketAddr) -> Result<SocketAddr> {
    let ip = if contact.is_ipv6() { "::1" } else { "127.0.0.1" };
    let ip = ip.parse().map_err(|_| Error::bug("a loopback address that is none"))?;
    free_pairs(ip, PORT_FIRST, 1)?.pop().ok_or_else(|| Error::bug("a pair was promised"))
}

/// `count` addresses on `ip` whose port and next port are free right now.
///
/// # Errors
/// [`Code::PortInUse`] when there are not as many.
pub fn free_pairs(ip: std::net::IpAddr, first: u16, count: usize) -> Result<Vec<SocketAddr>> {
    let mut pairs = Vec::new();
    for port in (first..=65_000).step_by(2) {
        if pairs.len() == count {
            break;
        }
        let is_free = |port| TcpListener::bind(SocketAddr::new(ip, port)).is_ok();
        if is_free(port) && is_free(port + 1) {
            pairs.push(SocketAddr::new(ip, port));
        }
    }
    if pairs.len() < count {
        return Err(Error::new(Code::PortInUse, format!("no {count} pairs of free ports on {ip}"))
            .cure("stop what holds them: ss -ltn"));
    }
    Ok(pairs)
}

/// Catches up with the ledger in a temporary folder and says what the market holds.
fn plan(
    args: &cli::Join,
    genesis: &Genesis,
    visitor: SigningKey,
    reporter: Reporter,
) -> Result<Value> {
    let interrupt = Interrupt::watch()?;
    let layout = Layout::new(&args.dir);
    let name = format!("ringseed-plan-{}", std::process::id());
    let folder = Temporary(std::env::temp_dir().join(name));
    let mut made = ClusterConfig::new(&folder.0, visitor);
    made.genesis = Some(genesis.clone());
    made.first = vec![args.addr];
    std::fs::create_dir_all(&folder.0).map_err(|e| Error::io("create", &folder.0, e))?;
    let cluster = Cluster::start(made).map_err(|error| start_error(error, &layout))?;
    let task = reporter.things("catch-up", "reading the ledger: height", 0);
    let began = Instant::now();
    while !cluster.status().caught_up {
        if began.elapsed() > PLAN_MAX {
            return Err(Error::new(Code::TimedOut, "the ledger could not be read in a minute")
                .cure("try another member's address"));
        }
        let status = cluster.status();
        let highest = status.peers.iter().map(|peer| peer.height).max().unwrap_or(0);
        task.set(status.height, highest);
        if !interrupt.sleep(Duration::from_millis(50)) {
            return Err(Error::new(Code::Interrupted, "stopped while reading the ledger"));
        }
    }
    drop(task);
    let summary = {
        let view = cluster.view();
        let mut sizes: Vec<u64> = view.listings(0).map(|l| l.offer.size_bytes).collect();
        sizes.sort_unstable();
        let sources: Vec<Value> = view
            .members()
            .filter(|member| member.is_admitted())
            .map(|member| {
                json!({"name": member.endpoint.name, "holds": member.held_count,
                       "payload_addr": member.endpoint.payload_addr.to_string(),
                       "capacity": member.endpoint.capacity})
            })
            .collect();
        json!({
            "market": view.market(), "genesis": view.genesis_hash().to_string(),
            "height": view.height(), "listings": sizes.len(),
            "total_bytes": sizes.iter().sum::<u64>(),
            "largest_bytes": sizes.last(), "median_bytes": sizes.get(sizes.len() / 2),
            "sources": sources,
        })
    };
    cluster.shutdown();
    let free = free_where(layout.root())?;
    let total = summary["total_bytes"].as_u64().unwrap_or(0);
    let mut summary = summary;
    summary["free_bytes"] = json!(free);
    summary["fits"] = json!(total <= free);
    summary["start"] = json!(format!(
        "ringseed join {} --genesis {} --dir {}",
        args.addr,
        units::hex(&args.genesis),
        args.dir.display()
    ));
    Ok(summary)
}

/// Free bytes where `path` will lie: of its nearest folder that exists.
fn free_where(path: &Path) -> Result<u64> {
    let existing = path.ancestors().find(|folder| folder.is_dir());
    preflight::free_bytes(existing.unwrap_or(Path::new("/")))
}

/// A folder that goes when its owner does.
struct Temporary(std::path::PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("rs-market-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    fn init_at(dir: &Path, port: u16) -> Result<Value> {
        init(&cli::Init {
            dir: dir.to_owned(),
            listen: SocketAddr::new("127.0.0.1".parse().unwrap(), port),
            advertise: None,
            insecure_plain: false,
        })
    }

    #[test]
    fn member_lines_make_a_genesis_in_any_order() {
        let base = scratch("genesis");
        let lines: Vec<String> = (0..4)
            .map(|i| {
                let made = init_at(&base.join(format!("d{i}")), 7400 + 2 * i).unwrap();
                made["member"].as_str().unwrap().to_owned()
            })
            .collect();
        let genesis_of = |lines: Vec<String>| {
            genesis(&cli::Genesis {
                market: "demo".to_owned(),
                members: lines,
                out: base.join("g.toml"),
                local: true,
            })
        };
        let made = genesis_of(lines.clone()).unwrap();
        let again = genesis_of(lines.iter().rev().cloned().collect()).unwrap();
        assert_eq!(made["hash"], again["hash"]);
        assert_eq!(made["hash"].as_str().unwrap().len(), 64);
        let file = std::fs::read_to_string(base.join("g.toml")).unwrap();
        assert_eq!(Genesis::from_text(&file).unwrap().hash().to_string(), made["hash"]);
        let twice = genesis_of(vec![lines[0].clone(), lines[0].clone()]);
        assert_eq!(twice.unwrap_err().code, Code::BadValue);
        assert_eq!(genesis_of(vec!["d1,zz".into()]).unwrap_err().code, Code::BadValue);
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_folder_is_initialised_once_and_on_loopback() {
        let base = scratch("init");
        init_at(&base.join("d"), 7400).unwrap();
        assert_eq!(init_at(&base.join("d"), 7400).unwrap_err().code, Code::AlreadyInitialised);
        Layout::new(&base.join("d")).load_config().unwrap();
        let away = cli::Init {
            dir: base.join("e"),
            listen: "192.0.2.1:7400".parse().unwrap(),
            advertise: None,
            insecure_plain: false,
        };
        assert_eq!(init(&away).unwrap_err().code, Code::NotLoopback);
        assert!(!base.join("e").exists());
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn free_pairs_are_apart() {
        let pairs = free_pairs("127.0.0.1".parse().unwrap(), 20_000, 6).unwrap();
        assert!(pairs.windows(2).all(|two| two[0].port() + 2 <= two[1].port()));
    }
}
