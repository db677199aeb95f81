//! `ModelService`.

use std::sync::Arc;

use prost::Message;
use tonic::{Request, Response, Status};

use super::{
    audit::{By, Change},
    convert,
    identity::Identity,
    status::{part, status},
};
use crate::{
    engine::Engine,
    error::{Error, Kind},
    proto::{self, model_service_server::ModelService},
};

/// Heads in a page where the caller does not say how many, and most of them.
const PAGE: u32 = 100;
const MOST_PAGE: u32 = 1000;
/// Bytes of heads in a page: half of what stock clients take.
const PAGE_BYTES: usize = 2 << 20;

/// Tells what an engine holds, and changes it.
#[derive(Clone)]
pub(super) struct Model {
    engine: Arc<Engine>,
}

impl Model {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// Work that takes its time, off the async threads. It goes on if the caller leaves.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let engine = Arc::clone(&self.engine);
        let done = tokio::task::spawn_blocking(move || work(&engine)).await;
        done.map_err(|error| status(&Error::new(Kind::Internal, error.to_string())))?
            .map_err(|error| status(&error))
    }
}

#[tonic::async_trait]
impl ModelService for Model {
    async fn get_backbone(
        &self,
        _request: Request<proto::GetBackboneRequest>,
    ) -> Result<Response<proto::GetBackboneResponse>, Status> {
        let backbone = convert::backbone(&self.engine);
        Ok(Response::new(proto::GetBackboneResponse {
            backbone: Some(backbone),
        }))
    }

    async fn list_heads(
        &self,
        request: Request<proto::ListHeadsRequest>,
    ) -> Result<Response<proto::ListHeadsResponse>, Status> {
        let identity = Identity::of(request.extensions());
        let proto::ListHeadsRequest {
            page_size,
            page_token,
        } = request.get_ref();
        let most = match page_size {
            None => PAGE,
            Some(size) if (1..=MOST_PAGE).contains(size) => *size,
            Some(size) => {
                let message = format!("must be from 1 to {MOST_PAGE}");
                let error = Error::invalid("page_size", message);
                return Err(status(&error.with("value", size).with("limit", MOST_PAGE)));
            }
        };
        let loaded = identity.heads(&self.engine);
        let version = |name: &str| {
            let serving = loaded.iter().find(|head| head.manifest.name == name);
            serving.map(|head| head.manifest.version.clone())
        };
        // A page begins after the name that is its token: no head is told twice, nor left out, if others come and go.
        let mut rest = loaded.iter().map(|head| &head.manifest);
        let mut rest = rest
            .by_ref()
            .filter(|manifest| manifest.name > *page_token)
            .peekable();
        let (mut heads, mut bytes) = (Vec::new(), 0);
        while let Some(manifest) = rest.peek() {
            let head = convert::head(manifest);
            bytes += head.encoded_len();
            if heads.len() == most as usize || (bytes > PAGE_BYTES && !heads.is_empty()) {
                break;
            }
            heads.push(head);
            rest.next();
        }
        let next = match (rest.peek(), heads.last()) {
            (Some(_), Some(last)) => last.name.clone(),
            _ => String::new(),
        };
        let faults = self.engine.faults().into_iter();
        let failed = faults
            .filter(|(name, _)| identity.may_use(name))
            .filter(|(name, _)| *name > *page_token && (next.is_empty() || *name <= next))
            .map(|(name, reason)| proto::FailedHead {
                serving_version: version(&name),
                error: Some(part(&Error::new(Kind::LoadFailed, reason.to_string()))),
                name,
            });
        Ok(Response::new(proto::ListHeadsResponse {
            failed: failed.collect(),
            heads,
            next_page_token: next,
        }))
    }

    async fn get_head(
        &self,
        request: Request<proto::GetHeadRequest>,
    ) -> Result<Response<proto::GetHeadResponse>, Status> {
        let identity = Identity::of(request.extensions());
        let head = identity.head(&self.engine, &request.get_ref().name, "name");
        let head = Some(convert::head(&head.map_err(|e| status(&e))?.manifest));
        Ok(Response::new(proto::GetHeadResponse { head }))
    }

    async fn load_head(
        &self,
        request: Request<proto::LoadHeadRequest>,
    ) -> Result<Response<proto::LoadHeadResponse>, Status> {
        let (name, change) = self.change("load", request, |request| request.name)?;
        // It goes on if the caller leaves, and so does what is told of it.
        let loading = self.blocking(move |engine| {
            let loaded = engine.load_head(&name);
            change.tell(loaded.as_ref().map(|head| Some(&**head)));
            loaded
        });
        let head = Some(convert::head(&loading.await?.manifest));
        Ok(Response::new(proto::LoadHeadResponse { head }))
    }

    async fn unload_head(
        &self,
        request: Request<proto::UnloadHeadRequest>,
    ) -> Result<Response<proto::UnloadHeadResponse>, Status> {
        let (name, change) = self.change("unload", request, |request| request.name)?;
        let head = self.engine.unload_head(&name);
        change.tell(head.as_ref().map(|_| None));
        let head = head.map_err(|error| status(&error))?;
        let head = Some(convert::head(&head.manifest));
        Ok(Response::new(proto::UnloadHeadResponse { head }))
    }
}

impl Model {
    /// The head that a change names, if the caller may use it; refusals are on record as all are.
    fn change<T>(
        &self,
        action: &'static str,
        request: Request<T>,
        name: impl FnOnce(T) -> String,
    ) -> Result<(String, Change), Status> {
        let (by, identity) = (By::of(&request), Identity::of(request.extensions()));
        let name = name(request.into_inner());
        let allowed = identity.check_head(&name, "name");
        allowed.map_err(|error| status(&error))?;
        let change = by.changes(&self.engine, action, &name);
        Ok((name, change))
    }
}
