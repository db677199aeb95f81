//! How the server listens, whom it trusts and what bounds it.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::life::Life;

/// How the server listens.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Largest request, bytes.
    pub max_request_bytes: usize,
    /// Largest response, bytes.
    pub max_response_bytes: usize,
    /// Longest time that calls under way get to finish after a signal.
    pub drain_timeout: Duration,
    /// Time between telling the health check and refusing new calls: for balancers to notice.
    pub lame_duck: Duration,
    /// Deadline of calls that bring none.
    pub default_deadline: Option<Duration>,
    /// Most calls at once on one connection.
    pub max_streams: u32,
    /// Whether messages may come packed with gzip or zstd, and answers leave so where that is asked for.
    pub compression: bool,
    /// Bounds on connections and on calls as such.
    pub transport: TransportLimits,
    /// Certificates; plain text if unset.
    pub tls: Option<TlsConfig>,
    /// Who may call; anybody if unset.
    pub auth: Option<AuthConfig>,
    /// Bounds on streams of frames.
    pub stream: StreamLimits,
    /// Told in which phase the server is.
    pub life: Life,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_request_bytes: 64 << 20,
            max_response_bytes: 128 << 20,
            drain_timeout: Duration::from_secs(30),
            lame_duck: Duration::ZERO,
            default_deadline: None,
            max_streams: 1024,
            compression: true,
            transport: TransportLimits::default(),
            tls: None,
            auth: None,
            stream: StreamLimits::default(),
            life: Life::default(),
        }
    }
}

/// Bounds on connections and on calls as such, whoever makes them.
#[derive(Debug, Clone)]
pub struct TransportLimits {
    /// Most connections; beyond, the one that has been idle longest makes room, or the new one is closed.
    pub connections: usize,
    /// Most calls at once over all connections.
    pub calls: usize,
    /// Most bytes, over all connections, of requests in arrival and of answers that wait for their readers.
    pub bytes: usize,
    /// Time for a connection to finish its TLS handshake and its HTTP/2 preface.
    pub handshake: Duration,
    /// Time after which a silent connection is asked for a sign of life; zero for never.
    pub keepalive: Duration,
    /// Time that it has to give one.
    pub keepalive_timeout: Duration,
    /// Age at which a connection is told to move its next calls elsewhere; zero for none.
    pub age: Duration,
    /// Time that its calls then have to finish.
    pub age_grace: Duration,
    /// Largest sum of a call's headers, bytes.
    pub header_bytes: u32,
    /// Calls that a connection may have cancelled before they are taken up; one more ends it.
    pub pending_resets: usize,
    /// Time for a request message to arrive whole.
    pub read: Duration,
    /// Time that a caller may go without reading any of its answer.
    pub write: Duration,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            calls: 4096,
            bytes: 192 << 20,
            handshake: Duration::from_secs(10),
            keepalive: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(20),
            age: Duration::ZERO,
            age_grace: Duration::from_secs(30),
            header_bytes: 16 << 10,
            pending_resets: 1024,
            read: Duration::from_secs(30),
            write: Duration::from_secs(60),
        }
    }
}

/// Bounds on streams of frames.
#[derive(Debug, Clone)]
pub struct StreamLimits {
    /// Streams at once, all callers together.
    pub streams: usize,
    /// Streams at once of one caller.
    pub per_caller: usize,
    /// The part of the threads' time that promised rates may take together.
    pub promised_share: f64,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            streams: 1024,
            per_caller: 256,
            promised_share: 0.9,
        }
    }
}

/// Certificates. The files are looked at every two seconds and taken over when they change and hold.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The server's certificate and those that lead to its authority, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of the clients' certificates, PEM; clients are not asked for one if unset.
    pub client_ca: Option<PathBuf>,
    /// Whether clients without a certificate are let in as well.
    pub client_optional: bool,
}

/// A kind of name in a client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CertificateName {
    /// The first URI of its subject alternative names, such as a SPIFFE id: the identity `cert-uri:NAME`.
    Uri,
    /// The first DNS name of its subject alternative names: `cert-dns:NAME`.
    Dns,
    /// The common name of its subject: `cert-cn:NAME`. Name constraints of an authority do not bound it.
    Cn,
}

/// Who may call, and what. The files are looked at every two seconds and taken over when they change and hold.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// File of hashed keys and of grants, TOML.
    pub keys: Option<PathBuf>,
    /// File with the public keys of JSON Web Tokens.
    pub jwks: Option<PathBuf>,
    /// Who must have issued them.
    pub issuer: String,
    /// Whom they must be for.
    pub audience: String,
    /// Clocks may differ by this much.
    pub leeway: Duration,
    /// Claim with the heads that a token is good for.
    pub heads_claim: String,
    /// Claim with the methods that a token is good for.
    pub methods_claim: String,
    /// Whether a client's certificate says who it is.
    pub certificates: bool,
    /// Which of its names, the first kind that it has.
    pub certificate_names: Vec<CertificateName>,
    /// Methods that need no identity.
    pub open_methods: Vec<String>,
    /// Heads of identities that nothing else is said of; unset, keys of the key file have all and others none.
    pub heads: Option<Vec<String>>,
    /// Methods of identities that nothing else is said of.
    pub methods: Vec<String>,
    /// Calls a second of identities that nothing else is said of; 0 for no bound.
    pub rate: f64,
    /// Calls that such an identity may make at once after a pause.
    pub burst: u32,
    /// Calls under way at once of identities that nothing else is said of; 0 for no bound.
    pub concurrency: usize,
    /// Pixels of images a second of identities that nothing else is said of; 0 for no bound.
    pub pixels: f64,
}

impl Default for AuthConfig {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            keys: None,
            jwks: None,
            issuer: String::new(),
            audience: String::new(),
            leeway: Duration::from_secs(30),
            heads_claim: "frostline_heads".to_owned(),
            methods_claim: "frostline_methods".to_owned(),
            certificates: false,
            certificate_names: vec![CertificateName::Uri, CertificateName::Dns],
            open_methods: list(&["Health/*"]),
            heads: None,
            methods: list(&[
                "VisionService/*",
                "ModelService/Get*",
                "ModelService/List*",
                "GRPCInferenceService/Server*",
                "GRPCInferenceService/Model*",
                "GRPCInferenceService/RepositoryIndex",
                "ServerReflection/*",
                "Health/*",
            ]),
            rate: 0.0,
            burst: 16,
            concurrency: 0,
            pixels: 0.0,
        }
    }
}
