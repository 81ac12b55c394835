//! A network of our own: a test target runs again inside a network namespace that has a loopback device
//! and nothing else. There other programs may keep their defaults (DHT, local discovery, port
//! forwarding: they find nobody), every program has an address of its own, and nothing reaches the
//! machine's networks. Addresses of 127.0.0.0/8 would not do: some clients take no peer from there.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::skip::Need;

/// Set inside.
const INSIDE: &str = "RINGSEED_TEST_NETNS";
/// What makes the whole of 10.77.0.0/16 ours: on a loopback device the prefix is local. Of fd77::/16 a route
/// and a switch have to say so; where the kernel has no IPv6, those who need it fail by themselves.
const SETUP: &str = "ip link set lo up && ip addr add 10.77.0.1/16 dev lo && \
                     { ip -6 route add local fd77::/16 dev lo && \
                     echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind || true; }";

/// Runs this program again inside a namespace; returns there, or when no namespace is to be had. Call it
/// first in `main`, with one thread.
pub fn enter() {
    if is_inside() {
        return;
    }
    let is_root = rustix::process::getuid().is_root();
    let flags: &[&str] = if is_root { &["--net"] } else { &["--map-root-user", "--net"] };
    let probe = Command::new("unshare").args(flags).args(["sh", "-c", SETUP]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let script = format!("{SETUP} && exec \"$0\" \"$@\"");
    let error = Command::new("unshare")
        .args(flags)
        .args(["sh", "-c", &script])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    eprintln!("unshare: {error}");
}

/// Whether this is inside.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// The need for a namespace.
pub fn need() -> Need {
    Need {
        name: "a network namespace",
        install: "the programs unshare and ip, and root or a kernel that lets users make namespaces",
        present: is_inside(),
    }
}

/// Where programs that are bound to no address seem to come from.
pub const UNBOUND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Addresses of one test: 10.77.N.0/24 with an N of its own.
#[derive(Clone, Copy, Debug)]
pub struct Subnet(u8);

impl Subnet {
    /// The next one; after 254 they come again.
    pub fn next() -> Subnet {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        Subnet(NEXT.fetch_add(1, Ordering::Relaxed) % 254 + 1)
    }

    /// Address number `host` of it.
    pub fn ip(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.0, host)
    }

    /// The same of fd77::/16.
    pub fn ip_v6(self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, self.0.into(), host.into())
    }
}
