//! What is wrong with the stock server, as tests of ours: each opens with its story. Where the stock
//! client can speak, it is the client.

use std::time::Instant;

use tendermint_abci::{Client, ClientBuilder, ServerBuilder};

use super::*;

fn stock_client(served: &Served) -> Client {
    ClientBuilder::default().connect(served.tcp_addr()).unwrap()
}

/// The stock server writes each reply alone without NODELAY, so that the reply to the flush behind
/// every request waits 44 ms for a delayed ACK.
#[test]
fn a_request_and_its_flush_do_not_wait_for_each_other() {
    let served = serve_tcp("shim-d1");
    let mut client = served.connect();
    let mut times: Vec<_> = (0..40)
        .map(|_| {
            let start = Instant::now();
            client.send(&[request::Value::Echo(RequestEcho { message: "x".into() }), flush()]);
            assert!(matches!(client.reply(), Some(response::Value::Echo(_))));
            assert!(matches!(client.reply(), Some(response::Value::Flush(_))));
            start.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[20] < Duration::from_millis(10), "median {:?}", times[20]);
}

/// The stock decoder copies everything unread for every read: 21 MB took up to 184 ms, 53 MB 4.5 s.
#[test]
fn a_block_of_21_mb_is_decoded_in_linear_time() {
    let served = serve_tcp("shim-d2");
    let mut client = stock_client(&served);
    client.info(info()).unwrap();
    client.init_chain(init_chain()).unwrap();
    let txs = vec![vec![7; 300]; 70_000];
    let start = Instant::now();
    let answer = client.finalize_block(finalize(1, &txs)).unwrap();
    assert_eq!(answer.tx_results.len(), txs.len());
    assert!(answer.tx_results.iter().all(|result| result.code != 0));
    // Mostly the stock client: its encoder copies thrice, its decoder reads 1 KiB at a time.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

/// For both reasons a window of 256 checks ran at 5,814/s on the stock server.
#[test]
fn pipelined_checks_are_answered_in_order_and_together() {
    let served = serve_tcp("shim-d3");
    let mut client = served.connect();
    let start = Instant::now();
    for round in 0..20 {
        let window: Vec<_> = (0..256).map(|i| check_tx(vec![round; 300 + i])).collect();
        client.send(&window);
        client.send(&[flush()]);
        for _ in 0..256 {
            let Some(response::Value::CheckTx(answer)) = client.reply() else { panic!("no check") };
            assert_eq!(answer.code, ringseed_ledger::TxCode::Malformed.number());
        }
        assert!(matches!(client.reply(), Some(response::Value::Flush(_))));
    }
    // 20 delayed ACKs alone would be 0.9 s.
    assert!(start.elapsed() < Duration::from_millis(800), "{:?}", start.elapsed());
}

/// The stock dispatcher unwraps: an empty request, or one of a kind that ABCI 2.0 has not (`InsertTx`
/// of 0.39, field 21), kills its thread, and the daemon kills itself.
#[test]
fn an_empty_and_an_unknown_request_are_told_and_others_go_on() {
    let served = serve_tcp("shim-d4");
    let mut client = served.connect();
    client.stream.write_all(&[0]).unwrap();
    let Some(response::Value::Exception(told)) = client.reply() else { panic!("no exception") };
    assert!(told.error.contains("empty"), "{}", told.error);
    // Length 5: tag of field 21 (two bytes), length 2, two bytes.
    client.stream.write_all(&[5, 0xaa, 0x01, 2, 8, 1]).unwrap();
    assert!(matches!(client.reply(), Some(response::Value::Exception(_))));
    let echo = RequestEcho { message: "still here".into() };
    let Some(response::Value::Echo(answer)) = Some(client.call(request::Value::Echo(echo))) else {
        panic!("no echo")
    };
    assert_eq!(answer.message, "still here");
    assert!(served.fatal.lock().unwrap().is_empty());
}

/// The stock server believes any length: a declared 1 TiB frame took 200 MiB and 10 s of copying.
#[test]
fn a_declared_length_is_not_believed() {
    let served = serve_tcp("shim-d5");
    let mut client = served.connect();
    let mut prefix = Vec::new();
    prost::encoding::encode_varint(1 << 40, &mut prefix);
    client.stream.write_all(&prefix).unwrap();
    let Some(response::Value::Exception(told)) = client.reply() else { panic!("no exception") };
    assert!(told.error.contains("1099511627776 bytes"), "{}", told.error);
    assert!(client.reply().is_none(), "the connection is closed");
}

/// The stock example answers a block with no result and no hash; a daemon of 0.38 refuses that.
#[test]
fn a_block_has_a_result_for_every_transaction_and_a_hash() {
    let served = serve_tcp("shim-d6");
    let mut client = stock_client(&served);
    let start = client.info(info()).unwrap();
    assert_eq!((start.last_block_height, start.last_block_app_hash.len()), (0, 0));
    let init = client.init_chain(init_chain()).unwrap();
    assert_eq!((init.validators.len(), init.app_hash.len()), (1, 32));
    let txs = [offer(1, 1), b"junk".to_vec(), offer(2, 2)];
    let answer = client.finalize_block(finalize(1, &txs)).unwrap();
    let codes: Vec<_> = answer.tx_results.iter().map(|result| result.code).collect();
    assert_eq!(codes, [0, ringseed_ledger::TxCode::Malformed.number(), 0]);
    assert_ne!(answer.app_hash, init.app_hash);
    let offered = &answer.tx_results[0].events[0];
    assert_eq!(offered.r#type, "candidate.offered");
    // One founder has all the power: its own offer is promoted by the block.
    assert!(answer.events.iter().any(|event| event.r#type == "listing.added"));
    client.commit().unwrap();
    let end = client.info(info()).unwrap();
    assert_eq!((end.last_block_height, &end.last_block_app_hash), (1, &answer.app_hash));
    assert_eq!(served.ledger.view().app_hash().0, answer.app_hash[..]);
    // An empty block keeps the hash, or the daemon would make blocks for ever.
    let empty = client.finalize_block(finalize(2, &[])).unwrap();
    assert_eq!(empty.app_hash, answer.app_hash);
}

/// The trait's default answers to snapshots are "unknown", which a daemon takes for a broken app.
#[test]
fn a_newcomer_restores_a_snapshot_through_the_stock_client() {
    use response_apply_snapshot_chunk::Result as Applied;
    use response_offer_snapshot::Result as Offered;
    let served = serve_tcp("shim-d7");
    let mut client = stock_client(&served);
    client.info(info()).unwrap();
    client.init_chain(init_chain()).unwrap();
    for height in 1..=2 {
        client.finalize_block(finalize(height, &[offer(height as u64, height as u64)])).unwrap();
        client.commit().unwrap();
    }
    let known = client.info(info()).unwrap();
    let listed = client.list_snapshots().unwrap().snapshots;
    let [snapshot] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((snapshot.height, snapshot.chunks), (2, 1));
    let load = |chunk| RequestLoadSnapshotChunk { height: 2, format: snapshot.format, chunk };
    let chunk = client.load_snapshot_chunk(load(0)).unwrap().chunk;
    assert!(client.load_snapshot_chunk(load(1)).unwrap().chunk.is_empty());

    let fresh = serve_tcp("shim-d7-fresh");
    let mut newcomer = stock_client(&fresh);
    newcomer.info(info()).unwrap();
    let mut offer_of = |snapshot: Snapshot| {
        let app_hash = known.last_block_app_hash.clone();
        let request = RequestOfferSnapshot { snapshot: Some(snapshot), app_hash };
        newcomer.offer_snapshot(request).unwrap().result()
    };
    let other_format = Snapshot { format: 9, ..snapshot.clone() };
    assert_eq!(offer_of(other_format), Offered::Reject);
    let no_hashes = Snapshot { metadata: Vec::new().into(), ..snapshot.clone() };
    assert_eq!(offer_of(no_hashes), Offered::RejectSender);
    let absurd = Snapshot { chunks: u32::MAX, ..snapshot.clone() };
    assert_eq!(offer_of(absurd), Offered::RejectSender);
    assert_eq!(offer_of(snapshot.clone()), Offered::Accept);
    let mut apply = |chunk: Vec<u8>| {
        let sender = "peer".to_owned();
        let request = RequestApplySnapshotChunk { index: 0, chunk: chunk.into(), sender };
        newcomer.apply_snapshot_chunk(request).unwrap()
    };
    let mut bad = chunk.to_vec();
    bad[40] ^= 1;
    let told = apply(bad);
    assert_eq!(
        (told.result(), &told.reject_senders[..]),
        (Applied::Retry, &["peer".to_owned()][..])
    );
    assert_eq!(apply(chunk.to_vec()).result(), Applied::Accept);
    let restored = newcomer.info(info()).unwrap();
    assert_eq!(restored, known);
    newcomer.finalize_block(finalize(3, &[offer(3, 3)])).unwrap();
    newcomer.commit().unwrap();
}

/// Our application behind the stock server gives the same answers: it is a second implementation of
/// the transport, not of the rules.
#[test]
fn the_stock_server_serves_the_same_ledger() {
    let dir = TempDir::new("shim-stock-server");
    let ledger = Arc::new(LedgerApp::open(dir.path(), &genesis()).unwrap());
    let shim = Shim::new(ledger.clone(), ledger.clone());
    let server = ServerBuilder::default().bind("127.0.0.1:0", shim).unwrap();
    let addr = server.local_addr();
    // The stock server cannot be stopped: its thread ends with the process.
    std::thread::spawn(move || drop(server.listen()));
    let mut theirs = ClientBuilder::default().connect(addr).unwrap();
    let served = serve_tcp("shim-stock-ours");
    let mut ours = stock_client(&served);
    let txs = [offer(1, 1), b"junk".to_vec()];
    assert_eq!(theirs.info(info()).unwrap(), ours.info(info()).unwrap());
    assert_eq!(theirs.init_chain(init_chain()).unwrap(), ours.init_chain(init_chain()).unwrap());
    let checks = txs.clone().map(|tx| RequestCheckTx { tx: tx.into(), r#type: 0 });
    for check in checks {
        assert_eq!(theirs.check_tx(check.clone()).unwrap(), ours.check_tx(check).unwrap());
    }
    let block = finalize(1, &txs);
    let (a, b) =
        (theirs.finalize_block(block.clone()).unwrap(), ours.finalize_block(block).unwrap());
    assert_eq!(bytes_of(&a), bytes_of(&b));
    assert_eq!(theirs.commit().unwrap(), ours.commit().unwrap());
}
