//! B15, B16: nobody is dialled, or sent more than was received from its address, because a stranger said so.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use ringseed_tests::attacker::message;

use crate::seed::{Seed, joined};

const PATIENCE: Duration = Duration::from_secs(60);

/// B15, B16: what is sent to a seed by UDP, from whatever address it claims to come, brings that address no
/// more than was sent; nobody is dialled because a stranger said so.
#[test]
fn a_seed_reflects_no_more_than_it_is_sent_and_dials_nobody() {
    let bait = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    bait.set_nonblocking(true).expect("non-blocking");
    let port = bait.local_addr().expect("bound").port();
    let seed = Seed::start(3 << 20, "");
    let mut raw = joined(&seed.target, 1);
    raw.push(&message(20, b"\x00d1:md11:ut_metadatai3e6:ut_pexi9eee"));
    let mut addresses = Vec::new();
    (0..200).for_each(|_| {
        addresses.extend([127, 0, 0, 1]);
        addresses.extend(port.to_be_bytes());
    });
    for id in [1_u8, 2, 3, 9] {
        let mut payload = vec![id];
        write!(payload, "d5:added{}:", addresses.len()).expect("memory");
        payload.extend(&addresses);
        payload.push(b'e');
        raw.push(&message(20, &payload));
    }
    std::thread::sleep(Duration::from_secs(2));
    assert!(bait.accept().is_err(), "a stranger's word made us dial");
    let inodes = sockets_of(seed.pid());
    let mut udp_ports = Vec::new();
    for table in ["udp", "udp6"] {
        let path = format!("/proc/{}/net/{table}", seed.pid());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        udp_ports.extend(text.lines().skip(1).filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_ours = inodes.iter().any(|inode| Some(&inode.as_str()) == fields.get(9));
            let (_, port) = fields.get(1).filter(|_| is_ours)?.rsplit_once(':')?;
            u16::from_str_radix(port, 16).ok()
        }));
    }
    // The one that says that uTP is not spoken here.
    assert_eq!(udp_ports, [seed.target.addr.port()], "UDP sockets that nobody knows of");
    assert_reflects_little(seed.target.addr);
    seed.end();
}

/// What comes back for a packet is not longer than it, and there is an answer to one kind of packet only.
fn assert_reflects_little(addr: SocketAddr) {
    let client = std::net::UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    // BEP 29: type and version, then 19 bytes, then data or extensions.
    let utp = |first: u8, len: usize| [&[first], &vec![0x5a; len - 1][..]].concat();
    let connect = [&0x0417_2710_1980_u64.to_be_bytes()[..], &[0; 4], &[7; 4]].concat(); // BEP 15
    let silent: Vec<Vec<u8>> = vec![
        Vec::new(),
        utp(0x01, 1400),
        utp(0x11, 20),
        utp(0x21, 20),
        utp(0x31, 20),
        utp(0x41, 19),
        utp(0x42, 20),
        connect,
        b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe".to_vec(),
        b"BT-SEARCH * HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 1400],
    ];
    let mut back = [0; 2048];
    for packet in &silent {
        client.send_to(packet, addr).expect("sent");
        let answer = client.recv_from(&mut back).map(|(len_bytes, _)| len_bytes);
        assert!(answer.is_err(), "{answer:?} bytes for {packet:x?}");
    }
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    for len_bytes in [20, 30, 1400] {
        client.send_to(&utp(0x41, len_bytes), addr).expect("sent");
        let (answered, _) = client.recv_from(&mut back).expect("a connection is refused aloud");
        assert!(answered <= len_bytes, "{answered} bytes for {len_bytes}");
        client.set_nonblocking(true).expect("non-blocking");
        assert!(client.recv_from(&mut back).is_err(), "two answers to one packet");
        client.set_nonblocking(false).expect("blocking");
    }
}

/// Inodes of the sockets that a process holds.
fn sockets_of(pid: u32) -> Vec<String> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the seed lives");
    let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let inode = |link: std::path::PathBuf| {
        let text = link.to_string_lossy().into_owned();
        Some(text.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    let found: Vec<String> = links.filter_map(inode).collect();
    assert!(!found.is_empty(), "it listens, so it has a socket");
    found
}
