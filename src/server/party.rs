//! Whom a call is counted for: the one who has said who it is, else the address that it comes from.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use super::{identity::Identity, peer::Peer};

/// Bits of an IPv6 address that a network gives to one of its customers, who makes up the rest.
const NETWORK: u128 = u128::MAX << 64;

/// Whom a call is counted for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Party {
    /// One who has said who it is.
    Identity(Arc<str>),
    /// Anybody from this address; of an IPv6 address, from its /64 network.
    Address(IpAddr),
    /// Callers on this machine who have no address: in the same process, or through a socket of the file system.
    Local,
}

impl Party {
    /// The party of a call of `identity` on a connection from `peer`.
    pub(super) fn of(identity: &Identity, peer: Option<&Arc<Peer>>) -> Self {
        let name = identity.name();
        if !name.is_empty() {
            return Self::Identity(name);
        }
        match peer {
            Some(peer) => peer.origin.ip().map_or(Self::Local, Self::from),
            None => Self::Local,
        }
    }
}

impl From<IpAddr> for Party {
    fn from(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
            address @ IpAddr::V4(_) => address,
        })
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(name) => write!(f, "{name:?}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Local => f.write_str("this process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_are_one_party() {
        let party = |text: &str| Party::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(party("2001:db8::1"), party("2001:db8::ffff:1"));
        assert_ne!(party("2001:db8::1"), party("2001:db8:0:1::1"));
        assert_eq!(party("::ffff:10.0.0.1"), party("10.0.0.1"));
        assert_ne!(party("10.0.0.2"), party("10.0.0.1"));
    }
}
