//! The few calls of a CometBFT daemon's RPC that we need: JSON over HTTP/1.0, a connection for each.
//!
//! HTTP/1.0, because an answer then ends where the connection does, without chunks to put together.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

/// A daemon that is busy with a block answers late, but a dead one should be told soon.
const CALL_TIME_MAX: Duration = Duration::from_secs(10);
/// A block of ours in JSON, twice.
const ANSWER_LEN_BYTES_MAX: u64 = 8 << 20;

/// Why a call has no result.
#[derive(Debug, Error)]
pub enum RpcError {
    /// Nobody listens, or the connection broke.
    #[error("the daemon at {addr}: {source}")]
    Io {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The daemon says no.
    #[error("the daemon refuses: {0}")]
    Refused(String),
    /// The answer is none that we know.
    #[error("the daemon's answer has no {0}")]
    Answer(&'static str),
}

/// A daemon's RPC address.
#[derive(Clone, Copy, Debug)]
pub struct Rpc {
    addr: SocketAddr,
}

/// What the mempool said about a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The ledger's code.
    pub code: u32,
    /// The ledger's words.
    pub log: String,
}

/// How the daemon stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DaemonStatus {
    /// Its last block.
    pub height: u64,
    /// Whether it fetches old blocks instead of making new ones.
    pub is_catching_up: bool,
}

/// A peer of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Hexadecimal address of its key.
    pub id: String,
    /// Where it is.
    pub addr: SocketAddr,
    /// The last height that the daemon knows it to work on; 0 when it does not say.
    pub height: u64,
    /// Whether the daemon dialled it.
    pub is_outbound: bool,
}

impl Rpc {
    /// Speaks to the daemon at `addr`.
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr }
    }

    /// Offers `tx` to the mempool and waits for its check.
    ///
    /// # Errors
    /// [`RpcError`].
    pub fn broadcast(&self, tx: &[u8]) -> Result<Check, RpcError> {
        let result = self.call("broadcast_tx_sync", json!({ "tx": base64(tx) }))?;
        let code = result["code"].as_u64().and_then(|code| u32::try_from(code).ok());
        let log = result["log"].as_str().unwrap_or_default().to_owned();
        Ok(Check { code: code.ok_or(RpcError::Answer("code"))?, log })
    }

    /// Asks for the daemon's own state.
    ///
    /// # Errors
    /// [`RpcError`].
    pub fn status(&self) -> Result<DaemonStatus, RpcError> {
        let result = self.call("status", json!({}))?;
        let sync = &result["sync_info"];
        Ok(DaemonStatus {
            height: number(&sync["latest_block_height"]).ok_or(RpcError::Answer("height"))?,
            is_catching_up: sync["catching_up"].as_bool().ok_or(RpcError::Answer("catching_up"))?,
        })
    }

    /// How many transactions wait.
    ///
    /// # Errors
    /// [`RpcError`].
    pub fn mempool_txs(&self) -> Result<usize, RpcError> {
        let result = self.call("num_unconfirmed_txs", json!({}))?;
        let count = number(&result["total"]).and_then(|count| usize::try_from(count).ok());
        count.ok_or(RpcError::Answer("total"))
    }

    /// The daemon's peers, with the heights that they work on.
    ///
    /// # Errors
    /// [`RpcError`].
    pub fn peers(&self) -> Result<Vec<Peer>, RpcError> {
        let result = self.call("net_info", json!({}))?;
        let rounds = self.call("dump_consensus_state", json!({}))?;
        let height_of = |id: &str| {
            let mut known = rounds["peers"].as_array().into_iter().flatten();
            let state = known.find(|it| {
                it["node_address"].as_str().is_some_and(|address| address.starts_with(id))
            })?;
            number(&state["peer_state"]["round_state"]["height"])
        };
        let peers = result["peers"].as_array().ok_or(RpcError::Answer("peers"))?;
        let peer = |peer: &Value| {
            let id = peer["node_info"]["id"].as_str()?.to_lowercase();
            let listen = peer["node_info"]["listen_addr"].as_str().unwrap_or_default();
            let port = listen.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
            let ip = peer["remote_ip"].as_str().and_then(|ip| ip.parse().ok());
            let addr = SocketAddr::new(ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
            // It works on the block after the last.
            let height = height_of(&id).unwrap_or(0).saturating_sub(1);
            Some(Peer { id, addr, height, is_outbound: peer["is_outbound"] == true })
        };
        Ok(peers.iter().filter_map(peer).collect())
    }

    /// The app hash that the header of block `height` carries: that of the state before it.
    ///
    /// # Errors
    /// [`RpcError`].
    pub fn app_hash_in_header(&self, height: u64) -> Result<[u8; 32], RpcError> {
        let result = self.call("block", json!({ "height": height.to_string() }))?;
        let text = result["block"]["header"]["app_hash"].as_str();
        text.and_then(parse_hex).ok_or(RpcError::Answer("app_hash"))
    }

    /// One call.
    ///
    /// # Errors
    /// [`RpcError`].
    pub fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = self
            .post(request.to_string().as_bytes())
            .map_err(|source| RpcError::Io { addr: self.addr, source })?;
        let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map(|at| &answer[at + 4..]);
        let mut answer: Value = body
            .and_then(|body| serde_json::from_slice(body).ok())
            .ok_or(RpcError::Answer("JSON in it"))?;
        let error = &answer["error"];
        if !error.is_null() {
            let part = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            return Err(RpcError::Refused(format!("{}: {}", part("message"), part("data"))));
        }
        Ok(answer["result"].take())
    }

    fn post(&self, body: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&self.addr, CALL_TIME_MAX)?;
        stream.set_read_timeout(Some(CALL_TIME_MAX))?;
        stream.set_write_timeout(Some(CALL_TIME_MAX))?;
        stream.set_nodelay(true)?;
        let mut request = format!(
            "POST / HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.addr,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        stream.write_all(&request)?;
        let mut answer = Vec::new();
        stream.take(ANSWER_LEN_BYTES_MAX).read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// 64-bit numbers are text in the daemon's JSON.
fn number(value: &Value) -> Option<u64> {
    value.as_str().map_or_else(|| value.as_u64(), |text| text.parse().ok())
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let is_hex = text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    for (at, byte) in bytes.iter_mut().enumerate().filter(|_| is_hex) {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    is_hex.then_some(bytes)
}

/// Base64 with padding (RFC 4648, section 4): how the daemon's JSON carries bytes.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// The vectors of RFC 4648, section 10.
    #[test]
    fn base64_is_that_of_the_rfc() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, text) in pairs {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }

    /// Answers one call with `body`.
    fn answering(body: &'static str) -> Rpc {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let rpc = Rpc::new(listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}");
        });
        rpc
    }

    #[test]
    fn answers_and_refusals_are_told_apart() {
        let ok = answering(r#"{"jsonrpc":"2.0","id":1,"result":{"code":7,"log":"why"}}"#);
        assert_eq!(ok.broadcast(b"x").unwrap(), Check { code: 7, log: "why".into() });
        let no =
            answering(r#"{"id":1,"error":{"message":"Internal error","data":"mempool is full"}}"#);
        assert!(
            matches!(no.status(), Err(RpcError::Refused(why)) if why.contains("mempool is full"))
        );
        assert!(matches!(answering("<html>").status(), Err(RpcError::Answer(_))));
        assert!(matches!(answering(r#"{"result":{}}"#).status(), Err(RpcError::Answer("height"))));
        let status = r#"{"result":{"sync_info":{"latest_block_height":"9","catching_up":false}}}"#;
        let expected = DaemonStatus { height: 9, is_catching_up: false };
        assert_eq!(answering(status).status().unwrap(), expected);
    }
}
