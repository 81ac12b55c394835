//! The two kinds of socket under the listener, behind one face.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::listener::{ListenAddr, ListenError};

/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: i32 = 16;

/// A listening socket.
#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Socket {
    /// Binds `addr`; returns the address with the port that was taken.
    pub(super) fn bind(addr: &ListenAddr) -> Result<(Self, ListenAddr), ListenError> {
        let io = |source: io::Error| ListenError::Io { addr: addr.to_string(), source };
        match addr {
            ListenAddr::Unix(path) => {
                remove_stale(path)?;
                let socket = Self::Unix(bind_private(path).map_err(io)?);
                Ok((socket, addr.clone()))
            }
            ListenAddr::Tcp(at) if !at.ip().is_loopback() => Err(ListenError::NotLoopback(*at)),
            ListenAddr::Tcp(at) => {
                let listener = TcpListener::bind(at).map_err(io)?;
                let at = listener.local_addr().map_err(io)?;
                Ok((Self::Tcp(listener), ListenAddr::Tcp(at)))
            }
        }
    }

    /// Takes a connection whose writes fail when the peer takes nothing for `write_time_max`.
    pub(super) fn accept(&self, write_time_max: Duration) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                let peer = rustix::net::sockopt::socket_peercred(&stream)?.uid;
                if peer != rustix::process::geteuid() && !peer.is_root() {
                    let why = format!("a process of user {} is refused", peer.as_raw());
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
                }
                stream.set_write_timeout(Some(write_time_max))?;
                Ok(Stream::Unix(stream))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                // Replies are written whole: waiting to fill a segment would only wait.
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(write_time_max))?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// Removes a socket that nobody listens on any more, and nothing else.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NoSocket(path.into()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let io = |source| ListenError::Io { addr: path.display().to_string(), source };
            std::fs::remove_file(path).map_err(io)
        }
        _ => Err(ListenError::InUse(path.into())),
    }
}

/// Binds a unix socket with mode 0600 from its first moment: the kernel gives the file the mode that
/// the socket has when it is bound (unix(7) names the permissions, `unix_bind` takes them so).
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => (&mut &*stream).read(into),
            Self::Tcp(stream) => (&mut &*stream).read(into),
        }
    }

    pub(super) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => (&mut &*stream).write_all(bytes),
            Self::Tcp(stream) => (&mut &*stream).write_all(bytes),
        }
    }

    pub(super) fn set_read_timeout(&self, wait: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(wait),
            Self::Tcp(stream) => stream.set_read_timeout(wait),
        }
    }

    /// Ends a waiting read, and every later one once what has come is read.
    pub(super) fn stop_reading(&self) {
        self.shut(Shutdown::Read);
    }

    pub(super) fn close(&self) {
        self.shut(Shutdown::Both);
    }

    fn shut(&self, how: Shutdown) {
        // An error means that the peer was faster.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(how),
            Self::Tcp(stream) => stream.shutdown(how),
        };
    }
}
