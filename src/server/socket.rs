//! What connections come on: TCP, or a socket of this machine's file system.

use std::{
    fmt, fs,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};

/// Where connections are taken from.
#[derive(Debug)]
pub enum Listener {
    /// An address and port.
    Tcp(TcpListener),
    /// A path.
    Unix(UnixSocket),
}

/// A socket in the file system, removed when dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl Listener {
    /// Listens at `path`. A socket that a process left behind there is replaced.
    ///
    /// # Errors
    /// Something else is there, or another process listens on it; a path that is too long or cannot be written.
    pub fn bind_unix(path: &Path) -> io::Result<Self> {
        check_unix(path)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(Self::Unix(UnixSocket {
            listener: UnixListener::bind(path)?,
            path: path.to_owned(),
        }))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Ip),
            Self::Unix(socket) => Ok(Address::Unix(socket.path.clone())),
        }
    }

    /// The next connection, and where it comes from.
    pub(super) async fn accept(&self) -> io::Result<(Bare, Origin)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((Bare::Tcp(stream), Origin::Ip(address)))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                Ok((Bare::Unix(stream), Origin::Unix))
            }
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Whoever comes next must not find a socket that nobody listens on. Gone already is as good.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a socket could be opened at `path`.
///
/// # Errors
/// As [`Listener::bind_unix`].
pub fn check_unix(path: &Path) -> io::Result<()> {
    // The kernel's bound on a socket's path, with its closing zero.
    const MOST: usize = 107;
    if path.as_os_str().len() > MOST {
        let message = format!("the path has more than {MOST} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !there.file_type().is_socket() {
        let message = "there is something that is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        // Left behind.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An address and port.
    Ip(SocketAddr),
    /// A path.
    Unix(PathBuf),
}

impl Address {
    /// Whether others than this machine reach it.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        match self {
            Self::Ip(address) => !address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// An address and port.
    Ip(SocketAddr),
    /// This machine, through a socket in its file system.
    Unix,
}

impl Origin {
    /// Its address, if it has one.
    pub(super) fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip().to_canonical()),
            Self::Unix => None,
        }
    }

    /// Who it is as far as the network knows, without the port, for people.
    pub(super) fn host(self) -> String {
        self.ip()
            .map_or_else(|| "unix".to_owned(), |ip| ip.to_string())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// A connection's bytes as the kernel gives them.
#[derive(Debug)]
pub(super) enum Bare {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Bare {
    /// Has small writes leave at once: a small answer would else wait 40 ms for the client's delayed acknowledgement.
    pub(super) fn hasten(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }
}

/// Does the same on whichever it is.
macro_rules! either {
    ($self:expr, $stream:ident => $does:expr) => {
        match $self.get_mut() {
            Bare::Tcp(stream) => {
                let $stream = Pin::new(stream);
                $does
            }
            Bare::Unix(stream) => {
                let $stream = Pin::new(stream);
                $does
            }
        }
    };
}

impl AsyncRead for Bare {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Bare {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(context, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(context))
    }
}
