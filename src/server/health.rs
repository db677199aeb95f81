//! `grpc.health.v1`: the server (the empty name), each service by its full name, and each head as `frostline.head.<name>`.
//!
//! A head is `SERVING` while it is loaded, and `NOT_SERVING` if it is there but does not load; `Watch` follows it as it
//! comes and goes. The server and its services are `NOT_SERVING` while a head is missing that must serve. Everything is
//! from the moment that the server drains or has lost its device. A head is told only to those who may use it.

use std::{pin::Pin, sync::Arc};

use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health,
};

use super::{
    identity::Identity,
    life::{Life, Phase},
};
use crate::engine::Engine;

/// What a head's name is preceded by.
const HEAD: &str = "frostline.head.";

/// Answers health checks.
#[derive(Debug, Clone)]
pub(super) struct Checks {
    state: Arc<State>,
}

struct State {
    engine: Arc<Engine>,
    services: Vec<&'static str>,
    life: Life,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("services", &self.services)
            .field("phase", &self.life.get())
            .finish_non_exhaustive()
    }
}

impl Checks {
    /// Checks of `engine` and of the `services` in front of it, as far as `life` lets them serve.
    pub(super) fn new(engine: Arc<Engine>, services: Vec<&'static str>, life: Life) -> Self {
        Self {
            state: Arc::new(State {
                engine,
                services,
                life,
            }),
        }
    }
}

impl State {
    /// How `name` is, for `identity`.
    fn status(&self, name: &str, identity: &Identity) -> ServingStatus {
        let engine = &self.engine;
        let head = name
            .strip_prefix(HEAD)
            .filter(|head| identity.may_use(head));
        let serves = if name.is_empty() || self.services.contains(&name) {
            engine.lacks().is_none()
        } else if head.is_some_and(|head| engine.head(head).is_some()) {
            true
        } else if head.is_some_and(|head| engine.fault(head).is_some()) {
            false
        } else {
            return ServingStatus::ServiceUnknown;
        };
        if serves && self.life.get() == Phase::Ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for Checks {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let identity = Identity::of(request.extensions());
        match self.state.status(&request.get_ref().service, &identity) {
            ServingStatus::ServiceUnknown => {
                let shown: String = request.get_ref().service.chars().take(100).collect();
                let message = format!("nothing is called {shown:?}; heads are {HEAD}<name>");
                Err(Status::not_found(message))
            }
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let identity = Identity::of(request.extensions());
        let name = request.into_inner().service;
        let state = Arc::clone(&self.state);
        let phases = WatchStream::new(state.life.follow()).map(Some);
        let heads = WatchStream::new(state.engine.changes()).map(|()| None);
        let mut last = None;
        let changes = phases
            .merge(heads)
            // Watches must not hold up the drain.
            .take_while(|phase| phase.is_none_or(|phase| phase < Phase::Draining))
            // The end may come so soon that nobody saw the server leave.
            .chain(tokio_stream::once(None))
            .filter_map(move |_| {
                let now = state.status(&name, &identity);
                (last.replace(now) != Some(now)).then(|| Ok(response(now)))
            });
        Ok(Response::new(Box::pin(changes)))
    }
}
