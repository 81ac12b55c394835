//! What may come over the socket besides a daemon, and a daemon that dies.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;
use crate::shim::ListenError;

fn limits() -> Limits {
    let brief = Duration::from_millis(300);
    Limits { frame_time_max: brief, seat_wait_max: brief, ..Limits::default() }
}

fn echo(client: &mut Raw) {
    let request = request::Value::Echo(RequestEcho { message: "x".into() });
    assert!(matches!(client.call(request), response::Value::Echo(_)));
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_thousand_connections_take_no_memory_and_harm_nobody() {
    let served = serve("shim-many", "tcp:127.0.0.1:0", limits());
    let mut daemon: Vec<_> = (0..4).map(|_| served.connect()).collect();
    daemon.iter_mut().for_each(echo);
    let before = resident_bytes();
    for _ in 0..20 {
        let crowd: Vec<_> = (0..50).map(|_| TcpStream::connect(served.tcp_addr())).collect();
        echo(&mut daemon[3]);
        drop(crowd);
    }
    daemon.iter_mut().for_each(echo);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes");
}

#[test]
fn a_drip_and_a_silence_end_at_the_deadline_and_others_are_served() {
    let served = serve("shim-drip", "tcp:127.0.0.1:0", limits());
    let mut other = served.connect();
    let (mut drip, mut silent) = (served.connect(), served.connect());
    let mut frame = Vec::new();
    put_frame(&Request { value: Some(check_tx(vec![7; 100_000])) }, &mut frame);
    silent.stream.write_all(&frame[..10]).unwrap();
    let start = Instant::now();
    for byte in &frame {
        if drip.stream.write_all(std::slice::from_ref(byte)).is_err() {
            break;
        }
        if byte % 2 == 0 || start.elapsed() < Duration::from_millis(50) {
            echo(&mut other);
        }
        std::thread::sleep(Duration::from_millis(5));
        if start.elapsed() > Duration::from_secs(5) {
            panic!("the drip was not cut off");
        }
    }
    assert!(silent.reply().is_none() && drip.reply().is_none());
    echo(&mut other);
    // Silence between frames is a daemon's right.
    std::thread::sleep(Duration::from_millis(600));
    echo(&mut other);
}

#[test]
fn junk_is_told_and_closed() {
    let served = serve("shim-junk", "tcp:127.0.0.1:0", limits());
    for junk in [&[0xff; 32][..], &[3, 0x12, 0x7f, 0x7f], b"GET / HTTP/1.1\r\n\r\n", &[1, 0xff]] {
        let mut client = served.connect();
        client.stream.write_all(junk).unwrap();
        match client.reply() {
            Some(response::Value::Exception(_)) => assert!(client.reply().is_none()),
            None => {}
            other => panic!("{other:?}"),
        }
    }
    echo(&mut served.connect());
}

#[test]
fn a_daemon_of_another_protocol_or_market_is_refused_with_the_reason() {
    let served = serve_tcp("shim-refuse");
    let mut client = served.connect();
    for version in ["", "1.0.0", "2.1.0", "0.17.0"] {
        let request = RequestInfo { abci_version: version.into(), ..info() };
        let told = client.exception(request::Value::Info(request));
        assert!(told.contains("speaks 2.0"), "{told}");
    }
    client.call(request::Value::Info(info()));
    let wrong: [(&str, RequestInitChain); 4] = [
        ("chain is", RequestInitChain { chain_id: "other".into(), ..init_chain() }),
        ("app_state", RequestInitChain { app_state_bytes: b"{}"[..].into(), ..init_chain() }),
        ("height 1", RequestInitChain { initial_height: 7, ..init_chain() }),
        ("vote extensions", {
            use tendermint_proto::v0_38::types::{AbciParams, ConsensusParams};
            let abci = Some(AbciParams { vote_extensions_enable_height: 1 });
            let consensus_params = Some(ConsensusParams { abci, ..Default::default() });
            RequestInitChain { consensus_params, ..init_chain() }
        }),
    ];
    for (reason, request) in wrong {
        let told = client.exception(request::Value::InitChain(request));
        assert!(told.contains(reason), "{told}");
    }
    let extension = request::Value::ExtendVote(RequestExtendVote::default());
    assert!(client.exception(extension).contains("vote extensions"));
    client.handshake();
}

#[test]
fn an_unfinished_block_goes_with_its_connection() {
    let served = serve("shim-drop", "tcp:127.0.0.1:0", limits());
    let mut daemon = served.connect();
    daemon.handshake();
    let first = daemon.finalize(1, &[offer(1, 1)]);
    // Nobody else may make blocks meanwhile.
    let mut second = served.connect();
    let told = second.exception(request::Value::Commit(RequestCommit {}));
    assert!(told.contains("another connection"), "{told}");
    drop((daemon, second));

    let mut daemon = served.connect();
    daemon.handshake();
    assert_eq!(served.ledger.view().height(), 0);
    // Another block than before: had the old one stayed, the recogniser would stop us.
    let replayed = daemon.finalize(1, &[offer(1, 1)]);
    assert_eq!(bytes_of(&replayed), bytes_of(&first));
    drop(daemon);
    let mut daemon = served.connect();
    daemon.handshake();
    let mut other = finalize(1, &[offer(1, 2)]);
    other.hash = vec![99; 32].into();
    let answer = daemon.call(request::Value::FinalizeBlock(other));
    assert!(matches!(answer, response::Value::FinalizeBlock(_)), "{answer:?}");
    daemon.commit();
    assert_eq!(served.ledger.view().height(), 1);
    assert!(served.fatal.lock().unwrap().is_empty());
}

#[test]
fn calls_out_of_order_stop_the_application_and_are_told() {
    let dir = TempDir::new("shim-order");
    let ledger = Arc::new(LedgerApp::open(dir.path(), &genesis()).unwrap());
    let fatal = Arc::new(Mutex::new(Vec::new()));
    let told = fatal.clone();
    let addr = "tcp:127.0.0.1:0".parse().unwrap();
    let shim = Shim::new(ledger.clone(), ledger.clone());
    let listener = Listener::start(&addr, shim, limits(), move |why| {
        told.lock().unwrap().push(why.to_owned());
    })
    .unwrap();
    let served = Served { listener, ledger, fatal, _dir: dir };
    let mut client = served.connect();
    client.handshake();
    let told = client.exception(request::Value::Commit(RequestCommit {}));
    assert!(told.contains("commit is not due"), "{told}");
    assert!(client.reply().is_none());
    assert_eq!(served.fatal.lock().unwrap().len(), 1);
}

#[test]
fn proposals_hold_what_fits_and_are_accepted_by_ourselves() {
    let served = serve_tcp("shim-propose");
    let mut client = served.connect();
    client.handshake();
    let txs: Vec<_> = (1..=4).map(|n| offer(n, n)).collect();
    let tx_len = prost::encoding::bytes::encoded_len(1, &txs[0]) as i64;
    let mut waiting = txs.clone();
    waiting.insert(1, b"junk".to_vec());
    let request = RequestPrepareProposal {
        max_tx_bytes: 3 * tx_len,
        txs: waiting.into_iter().map(Into::into).collect(),
        height: 1,
        proposer_address: address_of(&key().public().0).to_vec().into(),
        ..Default::default()
    };
    let answer = client.call(request::Value::PrepareProposal(request));
    let response::Value::PrepareProposal(prepared) = answer else { panic!("{answer:?}") };
    assert_eq!(prepared.txs, txs[..3]);
    let mut verdict = |txs: Vec<bytes::Bytes>| {
        let request = RequestProcessProposal { txs, height: 1, ..Default::default() };
        let answer = client.call(request::Value::ProcessProposal(request));
        let response::Value::ProcessProposal(answer) = answer else { panic!("{answer:?}") };
        answer.status()
    };
    use response_process_proposal::ProposalStatus;
    assert_eq!(verdict(prepared.txs), ProposalStatus::Accept);
    assert_eq!(verdict(vec![b"junk"[..].into()]), ProposalStatus::Reject);
}

#[test]
fn pending_nonces_are_counted_until_the_commit() {
    let served = serve_tcp("shim-check");
    let mut client = served.connect();
    client.handshake();
    let mut code = |tx: Vec<u8>| match client.call(check_tx(tx)) {
        response::Value::CheckTx(answer) => answer.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(offer(1, 1)), 0);
    assert_eq!(code(offer(2, 2)), 0);
    assert_eq!(code(offer(2, 2)), ringseed_ledger::TxCode::NonceUsed.number());
    assert_eq!(code(offer(9, 3)), ringseed_ledger::TxCode::NonceAhead.number());
    client.finalize(1, &[offer(1, 1)]);
    client.commit();
    let response::Value::CheckTx(answer) = client.call(check_tx(offer(2, 2))) else { panic!() };
    assert_eq!(answer.code, 0, "the mempool checks again after a commit");
}

#[test]
fn stopping_answers_what_came_and_ends_every_connection() {
    let mut served = serve_tcp("shim-stop");
    let mut idle = served.connect();
    echo(&mut idle);
    let mut busy = served.connect();
    busy.handshake();
    busy.finalize(1, &[offer(1, 1)]);
    let start = Instant::now();
    served.listener.stop();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(idle.reply().is_none() && busy.reply().is_none());
    assert!(TcpStream::connect(served.tcp_addr()).is_err());
    served.listener.stop();
}

#[test]
fn the_unix_socket_is_ours_alone() {
    let served = serve("shim-unix", "unix:DIR/abci.sock", Limits::default());
    let ListenAddr::Unix(path) = served.listener.addr().clone() else { panic!("not unix") };
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(&[0]).unwrap();
    assert!(stream.read(&mut [0; 64]).unwrap() > 1);
    let shim = || Shim::new(served.ledger.clone(), served.ledger.clone());
    let start = |addr: ListenAddr| Listener::start(&addr, shim(), Limits::default(), |_| {}).err();
    assert!(matches!(start(ListenAddr::Unix(path.clone())), Some(ListenError::InUse(_))));
    let file = path.with_extension("file");
    std::fs::write(&file, b"precious").unwrap();
    assert!(matches!(start(ListenAddr::Unix(file.clone())), Some(ListenError::NoSocket(_))));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    // Left behind by a process that was killed.
    let stale = path.with_extension("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(start(ListenAddr::Unix(stale)).is_none());
    let wide = ListenAddr::Tcp(([192, 0, 2, 1], 1).into());
    assert!(matches!(start(wide), Some(ListenError::NotLoopback(_))));
    drop(served);
    assert!(!path.exists(), "removed at the stop");
}
