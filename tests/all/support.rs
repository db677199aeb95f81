//! A server on a free port, and pictures to send.

use std::{io::Cursor, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use frostline::{
    backend::Runtime,
    client::Client,
    engine::{Engine, EngineConfig},
    repository::Repository,
    server::{self, ServerConfig},
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

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
        Self::start_all(runtime, &Repository::embedded().unwrap(), config).await
    }

    /// As [`Running::start`], of another repository than the embedded one.
    pub(crate) async fn start_of(repository: &Repository, config: EngineConfig) -> Self {
        Self::start_all(Runtime::load(None).unwrap(), repository, config).await
    }

    async fn start_all(runtime: Runtime, repository: &Repository, config: EngineConfig) -> Self {
        let engine = Arc::new(Engine::start(&runtime, repository, config).unwrap());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let config = ServerConfig::default();
        let serving = tokio::spawn(server::serve(
            listener,
            Arc::clone(&engine),
            config,
            shutdown,
        ));
        Self {
            engine,
            address,
            stop,
            serving,
        }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&format!("http://{}", self.address))
            .await
            .unwrap()
    }

    /// Waits until every place at the door is given back: a lane lets go of an image just after its answer is sent.
    pub(crate) async fn settled(&self) {
        let idle = async {
            while self.engine.in_flight() > 0 {
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
