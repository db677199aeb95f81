//! Connections: plain or TLS, with a token or a certificate.

use std::{error::Error, fmt, io, net::IpAddr, path::PathBuf};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};
use tower::ServiceExt;

use crate::corked::Corked;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is malformed.
    #[error(
        "{0:?} is not an address; one is like http://127.0.0.1:8461 or unix:/run/frostline.sock"
    )]
    Address(String),
    /// The address goes on after the port.
    #[error("{0:?} has a path, which gRPC has not: leave out {1:?}")]
    Path(String, String),
    /// The token has characters that no header can carry.
    #[error("the token is not one: it has characters that no token has")]
    Token,
    /// The token would be readable on its way.
    #[error(
        "{0} is not encrypted and not this machine: the token would be readable on its way; use https://"
    )]
    Readable(String),
    /// A certificate or key cannot be used.
    #[error("the certificates cannot be used")]
    Certificates(#[source] tonic::transport::Error),
    /// Nothing answers there.
    #[error("cannot reach a server at {address}{}", cause(address, source))]
    Unreachable {
        /// The address.
        address: String,
        /// What the transport says.
        source: tonic::transport::Error,
    },
    /// Nothing answers at the admin port.
    #[error("cannot reach a server's admin port at {address}")]
    Silent {
        /// The address.
        address: String,
        /// What the system says.
        source: io::Error,
    },
}

/// What the transport hides: a certificate that is not trusted looks like a server that is not there.
fn cause(address: &str, error: &tonic::transport::Error) -> String {
    let mut last: &dyn Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    let text = last.to_string();
    // A plain port answers a handshake with what is no TLS, or ends the connection.
    let plain = [
        "InvalidContentType",
        "corrupt message",
        "reset by peer",
        "handshake eof",
    ];
    if address.starts_with("https:") && plain.iter().any(|sign| text.contains(sign)) {
        format!(": {text}; perhaps it speaks no TLS there, and is at http://")
    } else if text.contains("certificate") || text.contains("TLS") {
        format!(": {text}")
    } else {
        String::new()
    }
}

/// How a client proves who it is and whom it trusts.
#[derive(Clone, Default)]
pub struct Credentials {
    /// A key or a JSON Web Token, sent with every call.
    pub token: Option<String>,
    /// Authorities that the server's certificate may come from, PEM; the system's if unset.
    pub authorities: Option<Vec<u8>>,
    /// The client's certificate chain and its private key, PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Name that the server's certificate must have; the address's host if unset.
    pub server_name: Option<String>,
}

impl Credentials {
    /// Whether they are of TLS.
    fn secure(&self) -> bool {
        self.authorities.is_some() || self.identity.is_some()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("token", &self.token.is_some())
            .field("authorities", &self.authorities.is_some())
            .field("identity", &self.identity.is_some())
            .field("server_name", &self.server_name)
            .finish()
    }
}

/// A connection that sends the token with every call.
pub type Transport = InterceptedService<Channel, Bearer>;

/// Adds the token, if there is one.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bearer").field(&self.0.is_some()).finish()
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

pub(super) async fn open(
    address: &str,
    credentials: &Credentials,
) -> Result<Transport, ConnectError> {
    // As gRPC has it: `unix:/path` and `unix:///path`.
    let socket = address.strip_prefix("unix:");
    let socket = socket.map(|path| PathBuf::from(path.strip_prefix("//").unwrap_or(path)));
    let url = match (&socket, credentials.secure()) {
        (Some(_), true) => "https://localhost",
        (Some(_), false) => "http://localhost",
        (None, _) => address,
    };
    let mut endpoint = Channel::from_shared(url.to_owned())
        .map_err(|_| ConnectError::Address(address.to_owned()))?;
    let path = endpoint.uri().path_and_query();
    if let Some(path) = path.filter(|path| path.as_str() != "/") {
        return Err(ConnectError::Path(address.to_owned(), path.to_string()));
    }
    let secure = endpoint.uri().scheme_str() == Some("https");
    let host = endpoint.uri().host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let here = host == "localhost" || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if credentials.token.is_some() && !secure && !here {
        return Err(ConnectError::Readable(address.to_owned()));
    }
    if secure {
        let mut tls = match &credentials.authorities {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let Some((chain, key)) = &credentials.identity {
            tls = tls.identity(Identity::from_pem(chain, key));
        }
        if let Some(name) = &credentials.server_name {
            tls = tls.domain_name(name);
        }
        endpoint = endpoint
            .tls_config(tls)
            .map_err(ConnectError::Certificates)?;
    }
    let token = credentials.token.as_ref().map(|token| {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| ConnectError::Token)?;
        value.set_sensitive(true);
        Ok(value)
    });
    let token = token.transpose()?;
    let connecting = match socket {
        Some(path) => {
            let connector = tower::service_fn(move |_| {
                let path = path.clone();
                async {
                    UnixStream::connect(path)
                        .await
                        .map(|s| TokioIo::new(Corked::new(s)))
                }
            });
            endpoint.connect_with_connector(connector).await
        }
        None => {
            let mut tcp = HttpConnector::new();
            tcp.set_nodelay(true);
            // The scheme may be https as well: encryption comes on top.
            tcp.enforce_http(false);
            let connector =
                tcp.map_response(|stream| TokioIo::new(Corked::new(stream.into_inner())));
            endpoint.connect_with_connector(connector).await
        }
    };
    let channel = connecting.map_err(|source| ConnectError::Unreachable {
        address: address.to_owned(),
        source,
    })?;
    Ok(InterceptedService::new(channel, Bearer(token)))
}
