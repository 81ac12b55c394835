//! The shim over real sockets: against the stock client, against hostile bytes, and against the other
//! drivers.

mod defects;
mod hostile;
mod same;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use ringseed_ledger::{
    Addr, DataHash, Genesis, GenesisMember, InfoHashV1, Offer, Params, SigningKey, Tx, TxBody,
};
use tendermint_proto::v0_38::abci::*;

use super::app::{address_of, app_state};
use super::codec::{FrameBuffer, put_frame};
use super::{Limits, ListenAddr, Listener, Shim};
use crate::app::LedgerApp;
use crate::grammar::Checked;
use crate::testing::TempDir;

fn key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn genesis() -> Genesis {
    let addr = |port: u16| Addr::new(([127, 0, 0, 1], port).into()).unwrap();
    let member = GenesisMember {
        name: "founder".into(),
        key: key().public(),
        consensus_addr: addr(1),
        payload_addr: addr(2),
        power: 1,
    };
    Genesis::new("shim", Params::local(), vec![member]).unwrap()
}

/// A signed offer of data number `seed`.
fn offer(nonce: u64, seed: u64) -> Vec<u8> {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&seed.to_le_bytes());
    let body = TxBody::Candidate(Offer {
        infohash_v2: DataHash(id),
        infohash_v1: InfoHashV1([seed as u8; 20]),
        size_bytes: 1_000,
        file_count: 1,
        piece_len_log2: 14,
        name: format!("data {seed}"),
    });
    Tx::sign(&key(), &genesis().hash(), nonce, 5_000, body).unwrap().to_bytes()
}

/// A ledger behind a listener. Every call goes through the recogniser of the grammar.
struct Served {
    listener: Listener,
    ledger: Arc<LedgerApp>,
    /// What `on_fatal` was told.
    fatal: Arc<Mutex<Vec<String>>>,
    _dir: TempDir,
}

fn serve(name: &str, addr: &str, limits: Limits) -> Served {
    let dir = TempDir::new(name);
    let ledger = LedgerApp::open(dir.path(), &genesis()).unwrap();
    let ledger = Arc::new(ledger.keep_snapshots(dir.path(), 2).unwrap());
    let shim = Shim::new(ledger.clone(), Arc::new(Checked::new(ledger.clone())));
    let fatal = Arc::new(Mutex::new(Vec::new()));
    let told = fatal.clone();
    let on_fatal = move |why: &str| told.lock().unwrap().push(why.to_owned());
    let addr = addr.replace("DIR", dir.path().to_str().unwrap()).parse().unwrap();
    let listener = Listener::start(&addr, shim, limits, on_fatal).unwrap();
    Served { listener, ledger, fatal, _dir: dir }
}

fn serve_tcp(name: &str) -> Served {
    serve(name, "tcp:127.0.0.1:0", Limits::default())
}

impl Served {
    fn tcp_addr(&self) -> std::net::SocketAddr {
        let ListenAddr::Tcp(addr) = self.listener.addr() else { panic!("not on TCP") };
        *addr
    }

    fn connect(&self) -> Raw {
        let stream = TcpStream::connect(self.tcp_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        Raw { stream, received: FrameBuffer::new(|_| usize::MAX) }
    }
}

/// A client that may say anything.
struct Raw {
    stream: TcpStream,
    received: FrameBuffer,
}

impl Raw {
    fn send(&mut self, requests: &[request::Value]) {
        let mut bytes = Vec::new();
        for value in requests {
            put_frame(&Request { value: Some(value.clone()) }, &mut bytes);
        }
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next reply; `None` when the connection was closed.
    fn reply(&mut self) -> Option<response::Value> {
        loop {
            if let Some(response) = self.received.poll_message::<Response>().unwrap() {
                return response.value;
            }
            match self.stream.read(self.received.space()) {
                Ok(0) | Err(_) => return None,
                Ok(len) => self.received.handle_received(len),
            }
        }
    }

    fn call(&mut self, value: request::Value) -> response::Value {
        self.send(&[value]);
        self.reply().expect("an answer")
    }

    fn exception(&mut self, value: request::Value) -> String {
        match self.call(value) {
            response::Value::Exception(exception) => exception.error,
            other => panic!("{other:?}"),
        }
    }

    fn handshake(&mut self) {
        let response::Value::Info(answer) = self.call(request::Value::Info(info())) else {
            panic!("no info")
        };
        if answer.last_block_height == 0 {
            let answer = self.call(request::Value::InitChain(init_chain()));
            assert!(matches!(answer, response::Value::InitChain(_)), "{answer:?}");
        }
    }

    fn finalize(&mut self, height: i64, txs: &[Vec<u8>]) -> ResponseFinalizeBlock {
        match self.call(request::Value::FinalizeBlock(finalize(height, txs))) {
            response::Value::FinalizeBlock(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn commit(&mut self) {
        let answer = self.call(request::Value::Commit(RequestCommit {}));
        assert!(matches!(answer, response::Value::Commit(_)), "{answer:?}");
    }
}

fn info() -> RequestInfo {
    RequestInfo { version: "0.38.25".into(), abci_version: "2.0.0".into(), ..Default::default() }
}

fn init_chain() -> RequestInitChain {
    RequestInitChain {
        chain_id: genesis().chain_id(),
        app_state_bytes: app_state(&genesis()).to_string().into(),
        initial_height: 1,
        ..Default::default()
    }
}

fn finalize(height: i64, txs: &[Vec<u8>]) -> RequestFinalizeBlock {
    RequestFinalizeBlock {
        height,
        txs: txs.iter().cloned().map(Into::into).collect(),
        hash: vec![height as u8; 32].into(),
        proposer_address: address_of(&key().public().0).to_vec().into(),
        ..Default::default()
    }
}

fn check_tx(tx: Vec<u8>) -> request::Value {
    request::Value::CheckTx(RequestCheckTx { tx: tx.into(), r#type: 0 })
}

fn flush() -> request::Value {
    request::Value::Flush(RequestFlush {})
}

fn bytes_of(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}
