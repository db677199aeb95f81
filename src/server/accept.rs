//! Connections as they come: counted, given a time to say what they are, and told so if there is no place for them.

use std::{future::Future, io, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    TransportLimits,
    connection::{Connection, Stream},
    greeting::{self, Begun},
    peer::{LOOKS, Peer, State},
    quiet::Quiet,
    registry::{Place, Registry},
    socket::{Bare, Listener, Origin},
    tls,
};
use crate::metrics::{End, Metrics};

/// Of those, the ones that are told something; others are closed without a word.
const TOLD: usize = 16;

/// Time that being told may take.
const TELLING: Duration = Duration::from_secs(2);

/// Lines of the log about connections that cannot be accepted: they are tried again at once.
static CANNOT_ACCEPT: Quiet = Quiet::new(1, 10);

/// What every connection is accepted with.
struct Door {
    registry: Arc<Registry>,
    settings: Option<tls::Settings>,
    limits: TransportLimits,
    metrics: Arc<Metrics>,
    telling: Semaphore,
    ready: mpsc::Sender<io::Result<Connection>>,
}

/// Accepts connections until the stream of them is dropped. Then those that have not finished their handshake are closed:
/// they hold no call. Those that hold none and do not take their leave have as long as a handshake may take.
pub(super) fn accept(
    listeners: Vec<Listener>,
    settings: Option<tls::Settings>,
    limits: TransportLimits,
    metrics: Arc<Metrics>,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, accepted) = mpsc::channel(64);
    let unread = limits.write;
    let door = Arc::new(Door {
        registry: Arc::default(),
        settings,
        limits,
        metrics,
        telling: Semaphore::new(TOLD),
        ready,
    });
    let looking = Arc::downgrade(&door);
    tokio::spawn(async move {
        let pause = unread / LOOKS;
        loop {
            sleep(pause).await;
            let Some(door) = looking.upgrade() else {
                return;
            };
            door.registry.look(unread);
        }
    });
    for listener in listeners {
        tokio::spawn(Arc::clone(&door).take_from(listener));
    }
    ReceiverStream::new(accepted)
}

impl Door {
    /// Takes connections from `listener` until they are not wanted any more.
    async fn take_from(self: Arc<Self>, listener: Listener) {
        let next = async || {
            self.registry.room(self.limits.connections).await;
            listener.accept().await
        };
        loop {
            let accepting = tokio::select! {
                accepting = next() => accepting,
                () = self.ready.closed() => break,
            };
            match accepting {
                Ok((stream, origin)) => Arc::clone(&self).open(stream, origin),
                Err(error) => {
                    // Out of file descriptors, most likely, which a connection that rests then gives back; those with
                    // calls go on.
                    if let Some(untold) = CANNOT_ACCEPT.may_tell() {
                        tracing::warn!(%error, untold, "cannot accept a connection");
                    }
                    if self.registry.evict() {
                        self.metrics.connection_ended(End::Evicted);
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        sleep(self.limits.handshake).await;
        self.registry.close_idle(self.limits.handshake);
    }

    /// Follows a connection until HTTP/2 has it.
    fn open(self: Arc<Self>, stream: Bare, origin: Origin) {
        let mut place = self.registry.open(&self.metrics);
        if stream.hasten().is_err() {
            return;
        }
        let state = Arc::new(State::new());
        let most = self.limits.connections;
        match self.registry.enter(&mut place, &state, most) {
            Some(true) => self.metrics.connection_ended(End::Evicted),
            Some(false) => {}
            None => {
                self.metrics.connection_ended(End::Refused);
                tracing::debug!(address = %origin, "there is no place for a connection");
                tokio::spawn(async move { self.refuse(stream, place).await });
                return;
            }
        }
        tokio::spawn(async move {
            let shaking = timeout(self.limits.handshake, self.shake(stream));
            // Before it has said what it is it holds no call: it is in nobody's way, neither another's nor a drain's.
            let shaken = tokio::select! {
                shaken = shaking => shaken,
                () = state.closed() => return,
                () = self.ready.closed() => return,
            };
            let (stream, certificate, begun) = match shaken {
                Ok(Ok(shaken)) => shaken,
                Ok(Err(error)) => {
                    self.metrics.connection_ended(End::Handshake);
                    tracing::debug!(address = %origin, %error, "the handshake failed");
                    return;
                }
                Err(_) => {
                    self.metrics.connection_ended(End::HandshakeTimeout);
                    tracing::debug!(address = %origin, "the handshake took too long");
                    return;
                }
            };
            let greeting = match begun {
                Begun::Http2(greeting) => greeting,
                Begun::Http1 => {
                    self.metrics.connection_ended(End::NotGrpc);
                    self.metrics.refused("not_grpc");
                    self.tell(greeting::tell_http1(stream)).await;
                    return;
                }
                Begun::Other => {
                    self.metrics.connection_ended(End::NotGrpc);
                    self.metrics.refused("not_grpc");
                    tracing::debug!(address = %origin, "this is no HTTP");
                    return;
                }
            };
            let peer = Arc::new(Peer {
                origin,
                certificate,
                state,
            });
            let metrics = Arc::clone(&self.metrics);
            let connection = Connection::new(stream, greeting, peer, &self.limits, metrics, place);
            // The receiver is gone when the server drains: the connection is closed then.
            let _ = self.ready.send(Ok(connection)).await;
        });
    }

    /// Says that there is no place, in HTTP/2: its client then knows that no call was taken.
    async fn refuse(&self, stream: Bare, _place: Place) {
        self.metrics.refused("connections");
        let most = self.limits.connections;
        let telling = async {
            let (stream, ..) = self.shake(stream).await?;
            let why = format!("the server has {most} busy connections, which is its limit");
            greeting::refuse(stream, &why).await
        };
        self.tell(telling).await;
    }

    /// Waits for `telling`, but not long, and for few at once.
    async fn tell(&self, telling: impl Future<Output = io::Result<()>>) {
        let Ok(_one) = self.telling.try_acquire() else {
            return;
        };
        tokio::select! {
            // Whoever does not hear it is gone.
            _ = timeout(TELLING.min(self.limits.handshake), telling) => {}
            () = self.ready.closed() => {}
        }
    }

    /// Ends the TLS handshake, if there is one, and reads how the connection begins.
    async fn shake(&self, stream: Bare) -> io::Result<(Stream, Option<tls::Names>, Begun)> {
        let (mut stream, certificate) = match &self.settings {
            None => (Stream::Plain(stream), None),
            Some(settings) => {
                let acceptor = TlsAcceptor::from(settings.get());
                let stream = acceptor.accept(stream).await?;
                let certificates = stream.get_ref().1.peer_certificates();
                let certificate = certificates.and_then(|chain| tls::Names::of(chain.first()?));
                (Stream::Tls(Box::new(stream)), certificate)
            }
        };
        let begun = greeting::read(&mut stream).await?;
        Ok((stream, certificate, begun))
    }
}
