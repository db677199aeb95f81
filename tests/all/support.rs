//! A server on a free port, and pictures to send.

use std::{io::Cursor, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use frostline::{
    backend::Runtime,
    client::{Client, ConnectError, Credentials},
    engine::{Engine, EngineConfig},
    repository::Repository,
    server::{self, ServerConfig},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt;

use crate::common::graphs::{HeadGraph, TOUCHY, write_head};

/// A running server. Stop it to see that it drains.
pub(crate) struct Running {
    pub(crate) engine: Arc<Engine>,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub(crate) async fn start(config: EngineConfig) -> Self {
        Self::start_on(Runtime::load(None).unwrap(), config).await
    }

    /// As [`Running::start`], with graphs on the runtime's device.
    pub(crate) async fn start_on(runtime: Runtime, config: EngineConfig) -> Self {
        Self::serve(runtime, &Repository::embedded().unwrap(), config).await
    }

    /// As [`Running::start`], listening as `server` says.
    pub(crate) async fn start_with(config: EngineConfig, server: ServerConfig) -> Self {
        let runtime = Runtime::load(None).unwrap();
        Self::serve_with(runtime, &Repository::embedded().unwrap(), config, server).await
    }

    /// As [`Running::start`], of another repository than the embedded one.
    pub(crate) async fn start_of(repository: &Repository, config: EngineConfig) -> Self {
        Self::serve(Runtime::load(None).unwrap(), repository, config).await
    }

    /// As [`Running::start_of`], with graphs on the runtime's device.
    pub(crate) async fn serve(
        runtime: Runtime,
        repository: &Repository,
        config: EngineConfig,
    ) -> Self {
        Self::serve_with(runtime, repository, config, ServerConfig::default()).await
    }

    /// A server with the models of `repository`.
    pub(crate) async fn start_from(
        repository: &Repository,
        engine: EngineConfig,
        server: ServerConfig,
    ) -> Self {
        Self::serve_with(Runtime::load(None).unwrap(), repository, engine, server).await
    }

    /// One lane that runs one image at a time, on the models of [`touchy`].
    pub(crate) async fn one_at_a_time(size: [u32; 2], names: [&str; 2]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        touchy(folder.path(), size, names);
        let config = EngineConfig {
            buckets: Some(vec![1]),
            ..one_lane()
        };
        Self::start_of(&Repository::open(folder.path()).unwrap(), config).await
    }

    async fn serve_with(
        runtime: Runtime,
        repository: &Repository,
        config: EngineConfig,
        server: ServerConfig,
    ) -> Self {
        let engine = Arc::new(Engine::start(&runtime, repository, config).unwrap());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let serving = tokio::spawn(server::serve(
            listener,
            Arc::clone(&engine),
            server,
            shutdown,
        ));
        Self {
            engine,
            address,
            stop,
            serving,
        }
    }

    /// A client that proves who it is; the server speaks TLS if it knows an authority.
    pub(crate) async fn client_with(
        &self,
        credentials: &Credentials,
    ) -> Result<Client, ConnectError> {
        let scheme = match credentials.authorities {
            Some(_) => "https",
            None => "http",
        };
        // The name that the tests' certificates have.
        let address = format!("{scheme}://localhost:{}", self.address.port());
        Client::connect_with(&address, credentials).await
    }

    /// A bare connection, for clients that are made from the protocol.
    pub(crate) async fn channel(&self) -> Channel {
        let address = format!("http://{}", self.address);
        let channel = Channel::from_shared(address).unwrap();
        channel.connect().await.unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&format!("http://{}", self.address))
            .await
            .unwrap()
    }

    /// Waits until every place at the door is given back: a lane lets go of an image just after its answer is sent.
    pub(crate) async fn settled(&self) {
        let idle = async {
            while self.engine.in_flight() > 0 || self.engine.load().result_bytes > 0 {
                tokio::task::yield_now().await;
            }
        };
        let limit = std::time::Duration::from_secs(20);
        tokio::time::timeout(limit, idle)
            .await
            .expect("a place at the door leaked");
    }

    /// What the server ends with by itself.
    pub(crate) async fn ended(self) -> anyhow::Result<()> {
        let ended = self.serving.await.unwrap();
        drop(self.stop);
        ended
    }

    /// Asks the server to stop and waits until it has.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        self.serving.await.unwrap().unwrap();
    }
}

/// Writes a backbone that costs what its images say ([`TOUCHY`]), and heads of these names that give a mean.
pub(crate) fn touchy(folder: &Path, size: [u32; 2], names: [&str; 2]) {
    let backbone = TOUCHY.write(folder);
    for name in names {
        let graph = HeadGraph::Mean(1.0);
        write_head(folder, name, "1", &backbone, size, &graph);
    }
}

/// One lane, so that counts of batches do not depend on the machine.
pub(crate) fn one_lane() -> EngineConfig {
    EngineConfig {
        lanes: 1,
        ..EngineConfig::default()
    }
}

/// A PNG of `width` x `height` pixels that depends on `seed`.
pub(crate) fn png(width: u32, height: u32, seed: u32) -> Bytes {
    let image = image::RgbImage::from_fn(width, height, |x, y| {
        let wave = |a: u32, b: u32| ((x * a + y * b + seed * 37) % 256) as u8;
        image::Rgb([wave(3, 1), wave(1, 5), wave(7, 2)])
    });
    let mut bytes = Vec::new();
    image
        .write_to(&mut Cursor::new(&mut bytes), image::ImageFormat::Png)
        .unwrap();
    bytes.into()
}

/// The stable reason of a refusal.
pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info();
    info.map(|info| info.reason.clone()).unwrap_or_default()
}

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM.
    pub(crate) pem: Vec<u8>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem().into_bytes();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A certificate for `name` and its private key, PEM.
    pub(crate) fn issue(&self, name: &str) -> (Vec<u8>, Vec<u8>) {
        self.issue_with(vec![SanType::DnsName(name.try_into().unwrap())], "")
    }

    /// As [`Authority::issue`], for the time from `from` until `until`, seconds since 1970.
    pub(crate) fn issue_for(&self, name: &str, from: u64, until: u64) -> (Vec<u8>, Vec<u8>) {
        let at = |seconds| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = (at(from), at(until));
        self.issue_as(params, vec![SanType::DnsName(name.try_into().unwrap())], "")
    }

    /// A certificate with these alternative names and this common name, none if empty, and its private key, PEM.
    pub(crate) fn issue_with(&self, names: Vec<SanType>, common: &str) -> (Vec<u8>, Vec<u8>) {
        self.issue_as(CertificateParams::default(), names, common)
    }

    fn issue_as(
        &self,
        mut params: CertificateParams,
        names: Vec<SanType>,
        common: &str,
    ) -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        params.distinguished_name = DistinguishedName::new();
        if !common.is_empty() {
            params.distinguished_name.push(DnType::CommonName, common);
        }
        params.subject_alt_names = names;
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (
            certificate.pem().into_bytes(),
            key.serialize_pem().into_bytes(),
        )
    }
}
