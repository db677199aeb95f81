//! What systemd wants to know, and the sockets that it may have opened (sd_notify(3), sd_listen_fds(3)).

use std::{
    env, io,
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use listenfd::ListenFd;

/// Tells the service manager, if there is one that asked, how the process is: lines such as `READY=1`.
pub(super) fn notify(state: &str) {
    if let Err(error) = try_notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

fn try_notify(state: &str) -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

/// Whether the service manager has opened sockets for this process.
pub(super) fn opened() -> bool {
    // Looked at and left for `sockets`, which can take them but once.
    let number = |name: &str| env::var(name).ok()?.parse::<u32>().ok();
    number("LISTEN_PID") == Some(std::process::id()) && number("LISTEN_FDS").is_some_and(|n| n > 0)
}

/// The sockets that it has opened; none if it has not. Asked for once: they are the caller's then.
///
/// # Errors
/// One that is no TCP socket that listens.
pub(super) fn sockets() -> io::Result<Vec<TcpListener>> {
    let mut given = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..given.len() {
        sockets.extend(given.take_tcp_listener(index)?);
    }
    for socket in &sockets {
        socket.set_nonblocking(true)?;
    }
    Ok(sockets)
}
