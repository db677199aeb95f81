//! What a configuration names, tried before a model is loaded: files are read, ports bound, keys held
//! against certificates, bounds against memory.

use std::{net::SocketAddr, path::Path};

use tokio::net::TcpSocket;

use super::{room, systemd};
use crate::{
    backend::Runtime,
    config::{Config, ConfigError, LogFormat},
    files,
    server::{self, Address, check_admin_tokens, check_unix},
    telemetry,
};

/// Largest file of authorities, bytes.
const MOST_BYTES: u64 = 4 << 20;

/// The settings that cannot be used, and why; what a server would do without counts where `strict` is set.
fn wrong(config: &Config, strict: bool) -> Vec<(&'static str, String)> {
    let mut wrong = server::check_files(&config.server(), strict);
    let mut note = |setting, result: Result<(), String>| {
        wrong.extend(result.err().map(|detail| (setting, detail)));
    };
    if let Some(file) = &config.telemetry.traces_ca {
        note("telemetry.traces_ca", readable(file));
    }
    if let Some(file) = config.telemetry.audit_file() {
        let opened = telemetry::open_audit(file).map(drop);
        let cannot = |error| format!("{}: cannot be written: {error}", file.display());
        note("telemetry.audit", opened.map_err(cannot));
    }
    if let Some(file) = &config.telemetry.admin_tokens {
        let tokens = check_admin_tokens(file);
        let wrong = |error| format!("{}: {error:#}", file.display());
        note("telemetry.admin_tokens", tokens.map_err(wrong));
    }
    if !systemd::opened() {
        match config.server.listen.addresses() {
            Ok(addresses) => {
                for address in addresses {
                    note("server.listen", free(&address));
                }
            }
            Err(error) => note("server.listen", Err(error.to_string())),
        }
    }
    if let Some(admin) = config.telemetry.admin {
        note("telemetry.admin", free(&Address::Ip(admin)));
    }
    note("limits", room::check(config));
    wrong
}

/// Ends a start whose files or ports cannot be used.
///
/// # Errors
/// All settings that are at fault.
pub(super) fn refuse(config: &Config) -> anyhow::Result<()> {
    let wrong = wrong(config, false);
    if wrong.is_empty() {
        return Ok(());
    }
    Err(ConfigError::settings(&wrong).into())
}

/// `frostline config --check`: also what a start finds out a moment later.
///
/// # Errors
/// As [`refuse`].
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    let mut wrong = wrong(config, true);
    if let Some(path) = &config.repository.path {
        let backbone = readable(&path.join("backbone.toml"));
        wrong.extend(backbone.err().map(|detail| ("repository.path", detail)));
    }
    let library = match &config.device.library {
        Some(path) => Ok(path.clone()),
        None => Runtime::locate().map_err(|error| error.to_string()),
    };
    let library = library.and_then(|path| match path.is_file() {
        true => Ok(()),
        false => Err(format!("{}: there is no such file", path.display())),
    });
    wrong.extend(library.err().map(|detail| ("device.library", detail)));
    if wrong.is_empty() {
        say!("every file can be used and every port is free");
        return Ok(());
    }
    if config.telemetry.format == LogFormat::Json {
        for (setting, error) in &wrong {
            tracing::error!(setting, error, "cannot be used");
        }
    }
    Err(ConfigError::settings(&wrong).into())
}

fn readable(file: &Path) -> Result<(), String> {
    let read = files::read(file, MOST_BYTES).map(drop);
    read.map_err(|error| format!("{}: cannot be read: {error}", file.display()))
}

/// Whether a server could listen on `address`. Nobody is let in meanwhile: it is bound and not listened on.
fn free(address: &Address) -> Result<(), String> {
    let bound = match address {
        Address::Unix(path) => check_unix(path),
        Address::Ip(address) => bind(*address),
    };
    bound.map_err(|error| format!("cannot listen on {address}: {error}"))
}

fn bind(address: SocketAddr) -> std::io::Result<()> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}
