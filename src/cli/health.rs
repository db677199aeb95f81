//! `frostline health`: whether a server serves, for people, scripts and a container's health check.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::ensure;
use clap::Args;

use super::call::{Target, with_client};
use crate::{client::ConnectError, config::Config, server::Address};

/// Longest that the admin port may take for each step of its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest answer that is read of it, bytes.
const MOST_ANSWER: u64 = 4096;

/// The health of a server, or of a part of it.
#[derive(Debug, Args)]
pub(super) struct Health {
    /// A running server; unset: the one that this configuration would start, by its admin port where it speaks TLS and
    /// no --ca is given.
    #[arg(long, value_name = "URL")]
    addr: Option<String>,
    /// An admin port to ask, which speaks plain HTTP whatever the server speaks.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["addr", "service"])]
    admin: Option<String>,
    #[command(flatten)]
    credentials: super::credentials::Flags,
    /// A service by its full name, or a head as frostline.head.NAME; unset: the whole server.
    #[arg(default_value = "")]
    service: String,
}

/// Asks.
///
/// # Errors
/// A server that cannot be reached or does not serve.
pub(super) fn health(config: &Config, command: &Health) -> anyhow::Result<()> {
    if let Some(admin) = &command.admin {
        return probe(admin, named(admin)?);
    }
    let own = command.addr.is_none() && command.service.is_empty();
    // Its certificate is for the name that callers know, by an authority that need not be known here, and it may ask for a
    // client's: a health check on the same machine has none of these.
    if let (true, true, Some(admin)) = (
        own && !command.credentials.trust(),
        config.tls.cert.is_some(),
        config.telemetry.admin,
    ) {
        let admin = reachable(admin);
        return probe(&admin.to_string(), vec![admin]);
    }
    let target = Target {
        addr: Some(match &command.addr {
            Some(address) => address.clone(),
            None => own_address(config)?,
        }),
        credentials: command.credentials.clone(),
    };
    with_client(config, &target, async |mut client| {
        let name = match command.service.as_str() {
            "" => "the server",
            service => service,
        };
        ensure!(
            client.serving(&command.service).await?,
            "{name} does not serve"
        );
        say!("{name} serves");
        Ok(())
    })
}

/// Where the server of this configuration is reached, which is on this machine.
fn own_address(config: &Config) -> anyhow::Result<String> {
    let listen = &config.server.listen;
    let addresses = listen.addresses();
    let addresses = addresses.map_err(|error| silent(&listen.to_string(), error))?;
    let nowhere = || silent(&listen.to_string(), io::ErrorKind::NotFound.into());
    let scheme = match config.tls.cert {
        Some(_) => "https",
        None => "http",
    };
    Ok(match addresses.first().ok_or_else(nowhere)? {
        Address::Ip(address) => format!("{scheme}://{}", reachable(*address)),
        unix @ Address::Unix(_) => unix.to_string(),
    })
}

/// Where a server that listens on `address` is reached on this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other.ip(),
    };
    SocketAddr::new(ip, address.port())
}

/// The addresses of `HOST:PORT`.
fn named(admin: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let found = admin.to_socket_addrs();
    let addresses: Vec<_> = found.map_err(|source| silent(admin, source))?.collect();
    Ok(addresses)
}

fn silent(address: &str, source: io::Error) -> ConnectError {
    ConnectError::Silent {
        address: address.to_owned(),
        source,
    }
}

/// Asks the admin port called `name`, at the first of its addresses that answers, whether the server takes requests.
fn probe(name: &str, addresses: Vec<SocketAddr>) -> anyhow::Result<()> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    for address in addresses {
        match ready(address) {
            Ok((code, phase)) => {
                ensure!(code == "200", "the server does not serve: {phase}");
                say!("the server serves");
                return Ok(());
            }
            Err(error) => last = error,
        }
    }
    Err(silent(name, last).into())
}

/// The code and the text that `/readyz` answers.
fn ready(admin: SocketAddr) -> io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET /readyz HTTP/1.0\r\nhost: {admin}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(MOST_ANSWER).read_to_string(&mut answer)?;
    let parts = answer.split_once("\r\n\r\n");
    let code = answer.split(' ').nth(1);
    match (code, parts) {
        (Some(code), Some((head, body))) if head.starts_with("HTTP/") => {
            Ok((code.to_owned(), body.trim().to_owned()))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer")),
    }
}
