//! Calls over a socket: latency, big frames, pipelined checks.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use ringseed_abci::app::LedgerApp;
use ringseed_abci::cluster::certificate::BlockId;
use ringseed_abci::driver::{
    Application, ApplicationError, FinalizedBlock, Info, InitChain, Proposal, SnapshotOffer,
    SnapshotVerdict, TxResult, Verdict,
};
use ringseed_abci::shim::codec::{FrameBuffer, put_frame, request_len_bytes_max};
use ringseed_abci::shim::{Limits, ListenAddr, Listener, Shim};
use ringseed_ledger::{
    Addr, DataHash, Genesis, GenesisMember, InfoHashV1, Offer, Params, SigningKey, Tx, TxBody,
    TxCode,
};
use tendermint_proto::v0_38::abci::{
    Request, RequestCheckTx, RequestEcho, RequestFinalizeBlock, RequestFlush, Response, request,
    response,
};

const WINDOW: usize = 256;
const TX_LEN_BYTES: usize = 300;
const BLOCK_TXS: usize = 70_000;
/// Signers of the checks with signatures: each signs once, so that none has too many waiting.
const SIGNERS: usize = 2_048;

/// An application that answers and does nothing: what is left is the transport.
struct Nothing;

impl Application for Nothing {
    fn info(&self) -> Info {
        Info { height: 0, app_hash: [0; 32] }
    }
    fn init_chain(&self) -> Result<InitChain, ApplicationError> {
        Ok(InitChain { validators: Vec::new(), app_hash: [0; 32] })
    }
    fn check_tx(&self, _tx: &[u8]) -> TxResult {
        TxResult { code: TxCode::Ok, info: String::new(), events: Vec::new() }
    }
    fn prepare_proposal(&self, proposal: &Proposal<'_>) -> Vec<Vec<u8>> {
        proposal.txs.to_vec()
    }
    fn process_proposal(&self, _proposal: &Proposal<'_>) -> Verdict {
        Verdict::Accept
    }
    fn finalize_block(
        &self,
        _block_id: BlockId,
        block: &Proposal<'_>,
    ) -> Result<FinalizedBlock, ApplicationError> {
        assert_eq!(block.txs.len(), BLOCK_TXS);
        Ok(FinalizedBlock {
            tx_results: Vec::new(),
            events: Vec::new(),
            validator_updates: Vec::new(),
            app_hash: [0; 32],
        })
    }
    fn commit(&self) -> Result<Info, ApplicationError> {
        Ok(self.info())
    }
    fn abandon(&self) {}
    fn query(&self, _path: &str, _data: &[u8]) -> Result<Vec<u8>, String> {
        Ok(Vec::new())
    }
    fn list_snapshots(&self) -> Vec<SnapshotOffer> {
        Vec::new()
    }
    fn load_snapshot_chunk(&self, _height: u64, _format: u32, _chunk: u32) -> Option<Vec<u8>> {
        None
    }
    fn offer_snapshot(&self, _offer: &SnapshotOffer, _app_hash: [u8; 32]) -> SnapshotVerdict {
        SnapshotVerdict::Reject
    }
    fn apply_snapshot_chunk(&self, _chunk_index: u32, _chunk: &[u8]) -> SnapshotVerdict {
        SnapshotVerdict::Reject
    }
}

/// A folder that goes with its owner.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path =
            std::env::temp_dir().join(format!("ringseed-bench-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the temporary folder is writable");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A genesis with one founder.
pub fn genesis() -> Genesis {
    let addr = |port: u16| Addr::new(([127, 0, 0, 1], port).into()).expect("loopback");
    let member = GenesisMember {
        name: "founder".into(),
        key: SigningKey::from_seed(&[1; 32]).public(),
        consensus_addr: addr(1),
        payload_addr: addr(2),
        power: 1,
    };
    Genesis::new("bench", Params::local(), vec![member]).expect("a market")
}

/// A server of either kind.
pub struct Server {
    connect: Box<dyn Fn() -> Client>,
    /// Ours stops with it; the stock one cannot be stopped and ends with the process.
    _listener: Option<Listener>,
    _folder: Folder,
}

impl Server {
    /// Ours, on a unix socket, before an application that does nothing.
    pub fn ours() -> Server {
        Server::ours_before(|_| Arc::new(Nothing))
    }

    fn ours_before(app: impl FnOnce(Arc<LedgerApp>) -> Arc<dyn Application>) -> Server {
        let folder = Folder::new("abci");
        let ledger = Arc::new(LedgerApp::open(&folder.0, &genesis()).expect("a ledger"));
        let shim = Shim::new(Arc::clone(&ledger), app(ledger));
        let path = folder.0.join("abci.sock");
        let addr = ListenAddr::Unix(path.clone());
        let listener = Listener::start(&addr, shim, Limits::default(), |why| panic!("{why}"));
        let connect =
            move || Client::new(Box::new(UnixStream::connect(&path).expect("it listens")));
        let _listener = Some(listener.expect("it listens"));
        Server { connect: Box::new(connect), _listener, _folder: folder }
    }

    /// That of `tendermint-abci`, which knows TCP only.
    pub fn stock() -> Server {
        let folder = Folder::new("abci-stock");
        let ledger = Arc::new(LedgerApp::open(&folder.0, &genesis()).expect("a ledger"));
        let shim = Shim::new(ledger, Arc::new(Nothing));
        let server = tendermint_abci::ServerBuilder::default().bind("127.0.0.1:0", shim);
        let server = server.expect("it listens");
        let addr = server.local_addr();
        std::thread::spawn(move || drop(server.listen()));
        let connect = move || {
            let stream = TcpStream::connect(&addr).expect("it listens");
            stream.set_nodelay(true).expect("a TCP socket");
            Client::new(Box::new(stream))
        };
        Server { connect: Box::new(connect), _listener: None, _folder: folder }
    }
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

struct Client {
    stream: Box<dyn Stream>,
    received: FrameBuffer,
}

impl Client {
    fn new(stream: Box<dyn Stream>) -> Client {
        Client { stream, received: FrameBuffer::new(|_| usize::MAX) }
    }

    fn reply(&mut self) -> response::Value {
        loop {
            if let Some(response) = self.received.poll_message::<Response>().expect("a response") {
                return response.value.expect("a value");
            }
            let len = self.stream.read(self.received.space()).expect("a reply");
            assert!(len > 0, "the server closed the connection");
            self.received.handle_received(len);
        }
    }
}

fn frame(value: request::Value, out: &mut Vec<u8>) {
    put_frame(&Request { value: Some(value) }, out);
}

/// Median time of one request with its flush, as a daemon sends them.
pub fn call_us(server: &Server, calls: usize) -> f64 {
    let mut client = (server.connect)();
    let mut pair = Vec::new();
    frame(request::Value::Echo(RequestEcho { message: "x".repeat(300) }), &mut pair);
    frame(request::Value::Flush(RequestFlush {}), &mut pair);
    let mut times: Vec<f64> = (0..calls)
        .map(|_| {
            let start = Instant::now();
            client.stream.write_all(&pair).expect("it reads");
            assert!(matches!(client.reply(), response::Value::Echo(_)));
            assert!(matches!(client.reply(), response::Value::Flush(_)));
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[calls / 2]
}

/// A block of 21 MB as it goes over the socket.
fn big_block() -> Vec<u8> {
    let block = RequestFinalizeBlock {
        height: 1,
        txs: vec![vec![7; TX_LEN_BYTES].into(); BLOCK_TXS],
        hash: vec![1; 32].into(),
        ..Default::default()
    };
    let mut bytes = Vec::new();
    frame(request::Value::FinalizeBlock(block), &mut bytes);
    bytes
}

/// Processor time of decoding that block as it comes from a socket, in pieces of at most 128 KiB,
/// growing memory and giving it back included.
pub fn decode_ms() -> f64 {
    let bytes = big_block();
    let before = processor_seconds();
    let mut received = FrameBuffer::new(request_len_bytes_max);
    let mut left = &bytes[..];
    let mut decoded = None;
    while !left.is_empty() {
        let space = received.space();
        let len = left.len().min(space.len()).min(128 << 10);
        space[..len].copy_from_slice(&left[..len]);
        left = &left[len..];
        received.handle_received(len);
        decoded = received.poll_message::<Request>().expect("a request");
    }
    let Some(Request { value: Some(request::Value::FinalizeBlock(block)) }) = decoded else {
        panic!("no block was decoded")
    };
    assert_eq!(block.txs.len(), BLOCK_TXS);
    drop(block);
    (processor_seconds() - before) * 1e3
}

/// From the first byte sent of a block of 21 MB to its answer.
pub fn finalize_ms(server: &Server) -> f64 {
    let mut client = (server.connect)();
    let bytes = big_block();
    let start = Instant::now();
    client.stream.write_all(&bytes).expect("it reads");
    assert!(matches!(client.reply(), response::Value::FinalizeBlock(_)));
    start.elapsed().as_secs_f64() * 1e3
}

/// Checks in windows of 256, as many as a daemon keeps in flight.
pub fn checks_per_second(server: &Server, windows: usize) -> f64 {
    let mut client = (server.connect)();
    let mut window = Vec::new();
    for i in 0..WINDOW {
        let tx = vec![i as u8; TX_LEN_BYTES].into();
        frame(request::Value::CheckTx(RequestCheckTx { tx, r#type: 0 }), &mut window);
    }
    client.stream.write_all(&window).expect("it reads");
    let mut reply_len_bytes = 0;
    for _ in 0..WINDOW {
        let value = client.reply();
        assert!(matches!(&value, response::Value::CheckTx(answer) if answer.code == 0));
        let mut bytes = Vec::new();
        put_frame(&Response { value: Some(value) }, &mut bytes);
        reply_len_bytes += bytes.len();
    }
    // All replies are alike: from here on their bytes are counted, so that our own decoding of them
    // is not measured.
    let mut replies = vec![0; reply_len_bytes];
    let start = Instant::now();
    for _ in 0..windows {
        client.stream.write_all(&window).expect("it reads");
        client.stream.read_exact(&mut replies).expect("the replies");
    }
    (windows * WINDOW) as f64 / start.elapsed().as_secs_f64()
}

/// Checks by the ledger itself, every signature verified: per second of processor time of the whole
/// process, client included, so that others on the machine are not measured.
pub fn signed_checks_per_second() -> f64 {
    let server = Server::ours_before(|ledger| ledger);
    let mut client = (server.connect)();
    let genesis = genesis().hash();
    let signed: Vec<Vec<u8>> = (0..SIGNERS)
        .map(|index| {
            let mut seed = [9; 32];
            seed[..8].copy_from_slice(&(index as u64).to_le_bytes());
            let body = TxBody::Candidate(Offer {
                infohash_v2: DataHash(seed),
                infohash_v1: InfoHashV1([1; 20]),
                size_bytes: 1,
                file_count: 1,
                piece_len_log2: 14,
                name: "data".into(),
            });
            let tx = Tx::sign(&SigningKey::from_seed(&seed), &genesis, 1, 100, body);
            let mut bytes = Vec::new();
            let tx = tx.expect("a transaction").to_bytes().into();
            frame(request::Value::CheckTx(RequestCheckTx { tx, r#type: 0 }), &mut bytes);
            bytes
        })
        .collect();
    let before = processor_seconds();
    for window in signed.chunks(WINDOW) {
        client.stream.write_all(&window.concat()).expect("it reads");
        for _ in window {
            let response::Value::CheckTx(answer) = client.reply() else { panic!("no check") };
            // The rule behind the signature: these signers are no members.
            assert_eq!(answer.code, TxCode::NotMember.number(), "{}", answer.log);
        }
    }
    SIGNERS as f64 / (processor_seconds() - before)
}

fn processor_seconds() -> f64 {
    let usage = ringseed_sys::process::usage();
    (usage.user + usage.system).as_secs_f64()
}
