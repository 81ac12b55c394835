//! Network addresses with one spelling each.

use core::fmt;
use core::str::FromStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use crate::codec::{DecodeError, Reader, Writer, field_error};

/// An IP address and a port that others can dial. Only [`Addr::new`] makes one, so each has one
/// encoding and none is a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(SocketAddr);

/// Why an address cannot stand on the ledger.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AddrError {
    /// Not `IPv4:port` or `[IPv6]:port`. Host names are not agreed on by everybody, so none here.
    #[error("expected IPv4:port or [IPv6]:port")]
    Syntax,
    /// Port 0 cannot be dialled.
    #[error("port 0 cannot be dialled")]
    PortZero,
    /// Wildcard, broadcast or multicast.
    #[error("{0} is no address of one host")]
    NotAHost(IpAddr),
    /// An IPv4 address written as IPv6, or an IPv6 address with a scope or a flow label.
    #[error("{0} has a shorter spelling or means something on one machine only")]
    NotCanonical(SocketAddr),
}

impl Addr {
    /// Checks that `addr` can be dialled by others and has no second spelling.
    ///
    /// # Errors
    /// [`AddrError`]; never `Syntax`.
    pub fn new(addr: SocketAddr) -> Result<Self, AddrError> {
        if addr.port() == 0 {
            return Err(AddrError::PortZero);
        }
        let ip = addr.ip();
        if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(AddrError::NotAHost(ip));
        }
        if let SocketAddr::V6(v6) = addr
            && (v6.scope_id() != 0 || v6.flowinfo() != 0 || v6.ip().to_ipv4_mapped().is_some())
        {
            return Err(AddrError::NotCanonical(addr));
        }
        Ok(Self(addr))
    }

    /// The address for the socket API.
    pub fn get(&self) -> SocketAddr {
        self.0
    }

    /// `4` or `6`, the octets, the port.
    pub(crate) fn write(&self, writer: &mut Writer) {
        match self.0.ip() {
            IpAddr::V4(ip) => writer.u8(4).bytes(&ip.octets()),
            IpAddr::V6(ip) => writer.u8(6).bytes(&ip.octets()),
        };
        writer.u16(self.0.port());
    }

    pub(crate) fn read(reader: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let ip = match reader.u8(field)? {
            4 => IpAddr::V4(Ipv4Addr::from(reader.array::<4>(field)?)),
            6 => IpAddr::V6(Ipv6Addr::from(reader.array::<16>(field)?)),
            _ => return Err(field_error(field, "is neither IPv4 nor IPv6")),
        };
        let port = reader.u16(field)?;
        Self::new(SocketAddr::new(ip, port))
            .map_err(|_| field_error(field, "is no canonical address of one host"))
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Addr {
    type Err = AddrError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text.parse().map_err(|_| AddrError::Syntax)?)
    }
}

impl TryFrom<SocketAddr> for Addr {
    type Error = AddrError;
    fn try_from(addr: SocketAddr) -> Result<Self, Self::Error> {
        Self::new(addr)
    }
}

impl From<Addr> for SocketAddr {
    fn from(addr: Addr) -> Self {
        addr.0
    }
}
