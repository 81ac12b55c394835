//! uTP is not spoken here, and whoever tries it is told so (BEP 29).
//!
//! Most clients try uTP first and TCP when that fails, and without an answer it fails late: libtorrent 2
//! waits seconds, and after a reset half of one. Transmission 3.00 (seen) waits for ever: its clock for uTP
//! begins to run with the first packet that comes in, so that it never gives up an address which is silent
//! on UDP. After a reset it does, though it takes its time before it dials by TCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Length of a uTP header without extensions, in bytes.
const HEADER_LEN: usize = 20;
/// Type `ST_SYN`, version 1.
const SYN: u8 = 0x41;
/// Type `ST_RESET`, version 1.
const RESET: u8 = 0x31;
/// Answers per second and socket at most. Each is as long as what it answers or shorter, so that nobody
/// is flooded through us with more than he could be without; beyond it the door sleeps, and the kernel
/// drops what does not fit into the socket's buffer.
const ANSWERS_PER_SECOND_MAX: u32 = 1_000;
/// A door looks up so often even if the packet that should wake it at the end is lost.
const WAKE_MAX: Duration = Duration::from_secs(10);

/// Resets every uTP connection that is tried at some addresses, until it is dropped.
#[derive(Debug)]
pub struct UtpRefusal {
    stop: Arc<AtomicBool>,
    doors: Vec<(SocketAddr, JoinHandle<()>)>,
}

impl UtpRefusal {
    /// Answers at the UDP ports of `addrs`, which are those that TCP is taken at. A port that another
    /// program has is left to it: then clients fall back by their own timeouts, as if we were silent.
    pub fn start(addrs: &[SocketAddr]) -> UtpRefusal {
        let stop = Arc::new(AtomicBool::new(false));
        let doors = addrs.iter().filter_map(|&addr| match open(addr, &stop) {
            Ok(door) => Some((addr, door)),
            Err(error) => {
                tracing::debug!(%addr, %error, "uTP is not refused here");
                None
            }
        });
        UtpRefusal { doors: doors.collect(), stop }
    }
}

impl Drop for UtpRefusal {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (addr, door) in self.doors.drain(..) {
            let _ = wake(addr);
            let _ = door.join();
        }
    }
}

fn open(addr: SocketAddr, stop: &Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
    let socket = UdpSocket::bind(addr)?;
    socket.set_read_timeout(Some(WAKE_MAX))?;
    let stop = stop.clone();
    let name = "ringseed-utp".to_owned();
    std::thread::Builder::new().name(name).spawn(move || refuse_all(&socket, &stop))
}

/// Sends an empty packet to a door, so that it looks up.
fn wake(addr: SocketAddr) -> io::Result<usize> {
    let (from, to): (IpAddr, IpAddr) = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (ip.into(), Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => (ip.into(), Ipv6Addr::LOCALHOST.into()),
        ip => (ip, ip),
    };
    UdpSocket::bind((from, 0))?.send_to(&[], (to, addr.port()))
}

fn refuse_all(socket: &UdpSocket, stop: &AtomicBool) {
    // What is longer is cut; only the header is looked at.
    let mut packet = [0; HEADER_LEN];
    let (mut second, mut answers) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        // Errors are of the network (an unreachable host that was answered) or the timeout.
        let Ok((len_bytes, from)) = socket.recv_from(&mut packet) else { continue };
        let Some(answer) = refusal(&packet[..len_bytes]) else { continue };
        let past = second.elapsed();
        if past >= Duration::from_secs(1) {
            (second, answers) = (Instant::now(), 0);
        } else if answers == ANSWERS_PER_SECOND_MAX {
            std::thread::sleep(Duration::from_secs(1) - past);
        }
        answers += 1;
        let _ = socket.send_to(&answer, from);
    }
}

/// The answer to a packet: a reset for a new connection. Nothing for anything else, because two ends that
/// answer resets would do so for ever, and DHT and trackers speak by other words.
fn refusal(packet: &[u8]) -> Option<[u8; HEADER_LEN]> {
    let packet: &[u8; HEADER_LEN] = packet.first_chunk()?;
    let mut answer = [0; HEADER_LEN];
    answer[0] = RESET;
    answer[2..4].copy_from_slice(&packet[2..4]); // the connection, as its maker names it
    answer[18..20].copy_from_slice(&packet[16..18]); // acknowledged is the packet that is answered
    (packet[0] == SYN).then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_millis(200);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn door() -> (UtpRefusal, SocketAddr, UdpSocket) {
        let addr = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let door = UtpRefusal::start(&[addr]);
        assert_eq!(door.doors.len(), 1);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        (door, addr, client)
    }

    fn header(first: u8) -> [u8; HEADER_LEN] {
        let mut packet = [0xaa; HEADER_LEN];
        (packet[0], packet[1]) = (first, 0);
        packet[2..4].copy_from_slice(&[0x12, 0x34]);
        packet[16..18].copy_from_slice(&[0x56, 0x78]);
        packet
    }

    /// Transmission 3.00 got our address from the tracker, sent one uTP packet to it and nothing more.
    #[test]
    fn a_new_connection_is_reset_by_its_own_number() {
        let (_door, addr, client) = door();
        let mut syn = header(SYN).to_vec();
        syn.extend([0; 10]); // extensions follow the header
        client.send_to(&syn, addr).unwrap();
        let mut answer = [0; 64];
        let (len_bytes, from) = client.recv_from(&mut answer).unwrap();
        assert_eq!((len_bytes, from), (HEADER_LEN, addr));
        assert_eq!(answer[0], 0x31, "a reset of version 1");
        assert_eq!(answer[2..4], [0x12, 0x34]);
        assert_eq!(answer[18..20], [0x56, 0x78]);
    }

    #[test]
    fn nothing_else_is_answered() {
        let (_door, addr, client) = door();
        client.set_read_timeout(Some(SILENCE)).unwrap();
        let packets: [&[u8]; 7] = [
            &header(RESET),
            &header(0x01),
            &header(0x11),
            &header(0x21),
            &header(0x40),
            &header(SYN)[..HEADER_LEN - 1],
            b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe",
        ];
        for packet in packets {
            client.send_to(packet, addr).unwrap();
            client.recv_from(&mut [0; 64]).expect_err("silence");
        }
    }

    #[test]
    fn a_flood_is_answered_at_a_bounded_pace() {
        let (_door, addr, client) = door();
        client.set_nonblocking(true).unwrap();
        let (start, mut answers) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(1_500) {
            let _ = client.send_to(&header(SYN), addr);
            while client.recv_from(&mut [0; 64]).is_ok() {
                answers += 1;
            }
        }
        // Two windows begin in that time, a third at its end.
        assert!((1..=3 * ANSWERS_PER_SECOND_MAX).contains(&answers), "{answers} answers");
        assert!(answers >= ANSWERS_PER_SECOND_MAX, "{answers} answers: the flood was none");
    }

    #[test]
    fn a_port_of_another_program_is_left_to_it_and_ours_is_free_at_the_end() {
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(UtpRefusal::start(&[other.local_addr().unwrap()]).doors.is_empty());
        for unspecified in ["0.0.0.0:0", "[::]:0"] {
            let addr = UdpSocket::bind(unspecified).unwrap().local_addr().unwrap();
            let door = UtpRefusal::start(&[addr]);
            let start = Instant::now();
            drop(door);
            assert!(start.elapsed() < WAKE_MAX, "it was not waked");
            UdpSocket::bind(addr).unwrap();
        }
    }
}
