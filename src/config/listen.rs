//! Addresses to listen on.

use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::server::Address;

/// What a path is preceded by.
const UNIX: &str = "unix:";

/// One address and port or several; a host's name stands for all addresses that it has. `unix:/PATH` is a socket in the file
/// system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Listen {
    /// Such as `127.0.0.1:8461` or `unix:/run/frostline/frostline.sock`.
    One(String),
    /// Such as `["10.0.0.7:8461", "[::1]:8461"]`.
    Many(Vec<String>),
}

impl Default for Listen {
    fn default() -> Self {
        Self::One("127.0.0.1:8461".to_owned())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.entries().join(", "))
    }
}

impl Listen {
    fn entries(&self) -> &[String] {
        match self {
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }

    /// What it stands for, each once.
    ///
    /// # Errors
    /// An entry without a port, or a name that no address is known of, named.
    pub fn addresses(&self) -> io::Result<Vec<Address>> {
        let mut all = Vec::new();
        let mut add = |address: Address| {
            if !all.contains(&address) {
                all.push(address);
            }
        };
        for entry in self.entries() {
            if let Some(path) = path(entry) {
                add(Address::Unix(path));
                continue;
            }
            let found = entry.to_socket_addrs();
            let found = found.map_err(|e| io::Error::new(e.kind(), format!("{entry}: {e}")))?;
            found.for_each(|address| add(Address::Ip(address)));
        }
        Ok(all)
    }

    /// What is wrong with its form.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.entries().is_empty() {
            return Err("is empty, but must be an address and port".to_owned());
        }
        let relative = |entry: &&String| path(entry).is_some_and(|path| !path.is_absolute());
        if let Some(entry) = self.entries().iter().find(relative) {
            return Err(format!(
                "is {entry:?}, but a socket's path must be absolute"
            ));
        }
        let wrong = |entry: &&String| {
            if path(entry).is_some() {
                return false;
            }
            let port = entry
                .rsplit_once(':')
                .map(|(host, port)| (host, port.parse::<u16>()));
            !matches!(port, Some((host, Ok(_))) if !host.is_empty())
        };
        match self.entries().iter().find(wrong) {
            Some(entry) => Err(format!("is {entry:?}, but must be HOST:PORT or unix:/PATH")),
            None => Ok(()),
        }
    }

    /// Whether others than this machine may reach it: of a name that is not this machine's own they may.
    #[must_use]
    pub fn exposed(&self) -> bool {
        !self.entries().iter().all(|entry| {
            let host = entry
                .rsplit_once(':')
                .map_or(entry.as_str(), |(host, _)| host);
            let own = host.eq_ignore_ascii_case("localhost") || path(entry).is_some();
            let address = entry.parse::<SocketAddr>();
            own || address.is_ok_and(|address| address.ip().to_canonical().is_loopback())
        })
    }
}

/// The path of a socket in the file system.
fn path(entry: &str) -> Option<PathBuf> {
    let path = entry.strip_prefix(UNIX)?;
    // As gRPC has it: `unix:/path` and `unix:///path`.
    Some(Path::new(path.strip_prefix("//").unwrap_or(path)).to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_lists_stand_for_addresses() {
        let listen: Listen = Listen::Many(vec![
            "localhost:1".to_owned(),
            "127.0.0.1:1".to_owned(),
            "[::1]:2".to_owned(),
        ]);
        assert!(listen.check().is_ok() && !listen.exposed());
        let all = listen.addresses().unwrap();
        let once = |text: &str| all.iter().filter(|a| a.to_string() == text).count() == 1;
        assert!(once("127.0.0.1:1") && once("[::1]:2"), "{all:?}");
        for wrong in ["", "localhost", ":1", "127.0.0.1", "a:b", "a:70000"] {
            assert!(Listen::One(wrong.to_owned()).check().is_err(), "{wrong}");
        }
        assert!(Listen::Many(Vec::new()).check().is_err());
        for reached in [
            "0.0.0.0:1",
            "[::]:1",
            "server.example:1",
            "localhost.example:1",
        ] {
            assert!(Listen::One(reached.to_owned()).exposed(), "{reached}");
        }
        for socket in ["unix:/run/a.sock", "unix:///run/a.sock"] {
            let listen = Listen::One(socket.to_owned());
            assert!(listen.check().is_ok() && !listen.exposed(), "{socket}");
            let address = Address::Unix("/run/a.sock".into());
            assert_eq!(listen.addresses().unwrap(), [address], "{socket}");
        }
        assert!(Listen::One("unix:run/a.sock".to_owned()).check().is_err());
        let both = vec!["127.0.0.1:1".to_owned(), "10.0.0.1:1".to_owned()];
        assert!(Listen::Many(both).exposed());
    }
}
