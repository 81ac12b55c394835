//! Sockets made the way the drivers need them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Connections that the kernel holds for us before they are accepted; `net.core.somaxconn` may cut it.
pub const BACKLOG: i32 = 4096;

/// Whether calls on a socket wait. A ring wants sockets that wait (it arms a poll itself, and reports
/// `EAGAIN` for those that do not), epoll wants sockets that never do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// For a ring.
    Yes,
    /// For epoll.
    No,
}

impl Blocking {
    fn flags(self) -> SocketFlags {
        match self {
            Blocking::Yes => SocketFlags::CLOEXEC,
            Blocking::No => SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        }
    }
}

/// What a listener on `[::]` takes besides IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DualStack {
    /// IPv4 as well, by addresses mapped into IPv6. Whatever `net.ipv6.bindv6only` says.
    Yes,
    /// Nothing: another listener has IPv4 on the same port.
    No,
}

/// Opens a listener on `addr`; port 0 takes a free one. The address can be taken again at once after
/// a restart (`SO_REUSEADDR`), but never by two listeners.
///
/// # Errors
/// `EADDRINUSE`, `EADDRNOTAVAIL`, `EACCES` and what else `bind(2)` and `listen(2)` say.
pub fn listen(addr: SocketAddr, blocking: Blocking, dual: DualStack) -> io::Result<OwnedFd> {
    let fd = socket(addr, blocking)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, dual == DualStack::No)?;
    }
    rustix::net::bind(&fd, &addr)?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// Makes a stream socket of the family of `addr`, ready for data without delay.
///
/// # Errors
/// What `socket(2)` says: `EMFILE` when no descriptor is left, `EAFNOSUPPORT` without IPv6.
pub fn socket(addr: SocketAddr, blocking: Blocking) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = rustix::net::socket_with(family, SocketType::STREAM, blocking.flags(), None)?;
    prepare(fd.as_fd());
    Ok(fd)
}

/// Sets what every data socket wants: no delay, because we gather our sends ourselves. A socket that
/// refuses it (a unix socket in a test) works without.
pub fn prepare(socket: BorrowedFd<'_>) {
    let _ = sockopt::set_tcp_nodelay(socket, true);
}

/// Starts a connection of a socket that does not wait; `false` when it is under way: writable then
/// means decided, see [`connect_result`].
///
/// # Errors
/// What `connect(2)` says.
pub fn connect(socket: BorrowedFd<'_>, addr: SocketAddr) -> io::Result<bool> {
    match rustix::net::connect(socket, &addr) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::INPROGRESS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// How a connection that was under way ended (`SO_ERROR`).
///
/// # Errors
/// Why it failed.
pub fn connect_result(socket: BorrowedFd<'_>) -> io::Result<()> {
    sockopt::socket_error(socket)?.map_err(io::Error::from)
}

/// Takes one connection from a listener that does not wait; `None` when there is none now.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`: the caller pauses, see [`is_out_of_resources`].
pub fn accept(listener: BorrowedFd<'_>, blocking: Blocking) -> io::Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    loop {
        match rustix::net::accept_with(listener, blocking.flags()) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::AGAIN) => return Ok(None),
            // Errors of the one connection that was waiting, accept(2): take the next.
            Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO | Errno::NETDOWN) => {}
            Err(Errno::HOSTDOWN | Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// True for errors of `accept(2)` that stay until something is freed. The connection stays in the
/// backlog, so asking again at once would spin.
pub fn is_out_of_resources(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// The other end of a connection. IPv4 that came to an IPv6 listener is shown as IPv4: one peer has one
/// address, whichever listener it came to.
///
/// # Errors
/// `ENOTCONN` when it is gone already; `InvalidData` when it is no IP socket.
pub fn peer_addr(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    match rustix::net::getpeername(socket)? {
        Some(addr) => {
            let addr = SocketAddr::try_from(addr).map_err(|_| not_ip())?;
            Ok(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
        }
        None => Err(rustix::io::Errno::NOTCONN.into()),
    }
}

/// The address a socket is bound to.
///
/// # Errors
/// `InvalidData` when it is no IP socket.
pub fn local_addr(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    rustix::net::getsockname(socket)?.try_into().map_err(|_| not_ip())
}

/// Ends both directions at once, so that calls waiting on the socket return.
pub fn shutdown(socket: BorrowedFd<'_>) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

fn not_ip() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not an internet socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_listen_connect_and_accept() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = listen(addr.parse().unwrap(), Blocking::No, DualStack::No) else {
                assert!(addr.starts_with('['), "no IPv4 loopback");
                continue; // a machine without IPv6
            };
            let bound = local_addr(listener.as_fd()).unwrap();
            assert_ne!(bound.port(), 0);
            assert!(accept(listener.as_fd(), Blocking::No).unwrap().is_none());
            let out = socket(bound, Blocking::Yes).unwrap();
            assert!(connect(out.as_fd(), bound).unwrap());
            let taken = accept(listener.as_fd(), Blocking::No).unwrap().unwrap();
            assert_eq!(peer_addr(taken.as_fd()).unwrap(), local_addr(out.as_fd()).unwrap());
            assert!(
                listen(bound, Blocking::No, DualStack::No).is_err(),
                "two listeners on one address"
            );
        }
    }

    /// The address of a peer was `::ffff:127.0.0.1` or `127.0.0.1`, as the listener was: bans and
    /// duplicates are told apart by it.
    #[test]
    fn one_listener_takes_both_families_and_shows_each_as_what_it_is() {
        let Ok(listener) = listen("[::]:0".parse().unwrap(), Blocking::No, DualStack::Yes) else {
            return; // a machine without IPv6
        };
        let port = local_addr(listener.as_fd()).unwrap().port();
        for ip in ["127.0.0.1", "::1"] {
            let to = SocketAddr::new(ip.parse().unwrap(), port);
            let out = socket(to, Blocking::Yes).unwrap();
            assert!(connect(out.as_fd(), to).unwrap());
            let taken = accept(listener.as_fd(), Blocking::No).unwrap().unwrap();
            assert_eq!(peer_addr(taken.as_fd()).unwrap(), local_addr(out.as_fd()).unwrap());
        }
        let v4 = SocketAddr::new("0.0.0.0".parse().unwrap(), port);
        assert!(listen(v4, Blocking::No, DualStack::No).is_err(), "IPv4 is taken");
        drop(listener);
        let alone = listen("[::]:0".parse().unwrap(), Blocking::No, DualStack::No).unwrap();
        let v4 =
            SocketAddr::new("0.0.0.0".parse().unwrap(), local_addr(alone.as_fd()).unwrap().port());
        assert!(listen(v4, Blocking::No, DualStack::No).is_ok(), "IPv4 is free");
    }

    #[test]
    fn a_refused_connection_tells_so() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), Blocking::No, DualStack::No).unwrap();
        let bound = local_addr(listener.as_fd()).unwrap();
        drop(listener);
        let out = socket(bound, Blocking::Yes).unwrap();
        let error = connect(out.as_fd(), bound).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
