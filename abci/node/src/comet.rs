//! A datatrust beside a CometBFT daemon: its folder (`init --consensus cometbft`) and the process that
//! serves it the ledger (`abci`). All else is as with the built-in consensus.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ringseed_abci::comet::home::Home;
use ringseed_abci::comet::{Comet, CometConfig, CometError, SNAPSHOT_EVERY_HEIGHTS};
use ringseed_abci::shim::{ListenAddr, ListenError};
use serde_json::{Value, json};
use tracing::error;

use crate::config::require_loopback;
use crate::datatrust::{self, start_error};
use crate::error::{Code, Error, Result};
use crate::layout::{Layout, write_private};
use crate::{cli, keys, market};

/// The daemon's RPC is so many ports above the market's, where nothing else was said.
const RPC_PORT_OFFSET: u16 = 1_000;

/// `ringseed init --consensus cometbft`: the datatrust, if it is not there yet, and with a genesis the
/// daemon's folder and the two commands that start the pair. May be called again.
///
/// # Errors
/// As [`market::init`]; [`Code::BadValue`] when the folder belongs to another address.
pub fn init(args: &cli::InitAny) -> Result<Value> {
    let layout = Layout::new(&args.init.dir);
    let mut made = match layout.key().exists() {
        true => market::describe(&layout)?,
        false => market::init(&args.init)?,
    };
    let config = layout.load_config()?;
    if config.market.listen != args.init.listen {
        let what = format!("this datatrust listens on {}", config.market.listen);
        return Err(Error::new(Code::BadValue, what).cure("give that address with --listen"));
    }
    let Some(genesis) = &args.genesis else { return Ok(made) };
    let genesis = datatrust::read_genesis(genesis)?;
    write_private(&layout.genesis(), genesis.to_text().as_bytes())?;
    let rpc = args.rpc.map_or_else(|| rpc_beside(args.init.listen), Ok)?;
    require_loopback(rpc)?;
    let (daemon, socket) = (daemon_dir(&layout), layout.root().join("abci.sock"));
    let home = Home {
        genesis: &genesis,
        seed: &keys::load_seed(&layout.key())?,
        p2p: config.market.listen,
        advertise: config.market.advertise,
        rpc,
        abci: &ListenAddr::Unix(socket.clone()),
    };
    home.write(&daemon).map_err(|error| Error::io("write", &daemon, error))?;
    let dir = layout.root().display();
    made["start"] = json!([
        format!("ringseed abci --listen unix:{} --dir {dir} --rpc {rpc}", socket.display()),
        format!("cometbft node --home {}", daemon.display()),
    ]);
    Ok(made)
}

/// `ringseed abci`: serves the ledger to a daemon and follows it with the engine, until it is asked
/// to stop.
///
/// # Errors
/// Whatever keeps it from starting, or made it stop.
pub fn serve(args: &cli::Abci, as_json: bool) -> Result<()> {
    datatrust::start_with(&args.start, as_json, |layout, config, key, genesis| {
        let made = CometConfig {
            dir: layout.root().to_owned(),
            key: key.public(),
            genesis,
            listen: args.listen.clone(),
            rpc: args.rpc.map_or_else(|| rpc_beside(config.market.listen), Ok)?,
            snapshot_every_heights: args.snapshot_every.unwrap_or(SNAPSHOT_EVERY_HEIGHTS),
            on_fatal: |reason| {
                error!("the ledger stopped: {reason}");
                Error::new(Code::Bug, "the ledger stopped").why(reason).print(false);
            },
        };
        require_loopback(made.rpc)?;
        let comet = Comet::start(made).map_err(|error| comet_error(error, layout))?;
        Ok(Arc::new(comet))
    })
}

fn daemon_dir(layout: &Layout) -> PathBuf {
    layout.root().join("comet")
}

/// The RPC address that goes with a market address.
fn rpc_beside(listen: SocketAddr) -> Result<SocketAddr> {
    let port = listen.port().checked_add(RPC_PORT_OFFSET).ok_or_else(|| {
        Error::new(Code::BadValue, "the market's port leaves no room for the RPC above it")
            .cure("give it with --rpc")
    })?;
    let ip = if listen.is_ipv6() { "::1" } else { "127.0.0.1" };
    let ip = ip.parse().map_err(|_| Error::bug("a loopback address that is none"))?;
    Ok(SocketAddr::new(ip, port))
}

fn comet_error(error: CometError, layout: &Layout) -> Error {
    let error = match error {
        CometError::Start(error) => return start_error(error, layout),
        CometError::Listen(error) => error,
    };
    let code = match &error {
        ListenError::NotLoopback(_) => Code::NotLoopback,
        ListenError::InUse(_) => Code::Locked,
        ListenError::NoSocket(_) => Code::BadValue,
        ListenError::Io { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            Code::PortInUse
        }
        ListenError::Io { .. } => Code::Io,
    };
    Error::new(code, error.to_string()).cure("give another address with --listen")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_in_two_steps_and_the_commands_parse() {
        use clap::Parser;
        let base = std::env::temp_dir().join(format!("rs-comet-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        let mut args = cli::InitAny {
            init: cli::Init {
                dir: base.join("d1"),
                listen: "127.0.0.1:7400".parse().unwrap(),
                advertise: None,
                insecure_plain: false,
            },
            consensus: cli::Consensus::Cometbft,
            genesis: None,
            rpc: None,
        };
        let first = init(&args).unwrap();
        assert!(first["start"].is_null());
        let out = base.join("g.toml");
        let made = market::genesis(&cli::Genesis {
            market: "demo".to_owned(),
            members: vec![first["member"].as_str().unwrap().to_owned()],
            out: out.clone(),
            local: true,
        });
        made.unwrap();
        args.genesis = Some(out);
        let second = init(&args).unwrap();
        assert_eq!(second["member"], first["member"]);
        let ours = second["start"][0].as_str().unwrap();
        assert!(cli::Cli::try_parse_from(ours.split(' ')).is_ok(), "{ours}");
        assert!(base.join("d1/comet/config/genesis.json").exists());
        assert!(base.join("d1/comet/data/priv_validator_state.json").exists());
        args.init.listen = "127.0.0.1:7410".parse().unwrap();
        assert_eq!(init(&args).unwrap_err().code, Code::BadValue);
        std::fs::remove_dir_all(base).unwrap();
    }
}
