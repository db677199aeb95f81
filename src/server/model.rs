//! `ModelService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{convert, identity::Identity, status::status};
use crate::{
    engine::Engine,
    error::{Error, Kind},
    proto::{self, model_service_server::ModelService},
};

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
        let backbone = convert::backbone(self.engine.backbone());
        Ok(Response::new(proto::GetBackboneResponse {
            backbone: Some(backbone),
        }))
    }

    async fn list_heads(
        &self,
        request: Request<proto::ListHeadsRequest>,
    ) -> Result<Response<proto::ListHeadsResponse>, Status> {
        let heads = Identity::of(request.extensions())
            .heads(&self.engine)
            .iter()
            .map(|head| convert::head(&head.manifest))
            .collect();
        Ok(Response::new(proto::ListHeadsResponse { heads }))
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
        let name = allowed(request, |request| request.name)?;
        let head = self.blocking(move |engine| engine.load_head(&name)).await?;
        let head = Some(convert::head(&head.manifest));
        Ok(Response::new(proto::LoadHeadResponse { head }))
    }

    async fn unload_head(
        &self,
        request: Request<proto::UnloadHeadRequest>,
    ) -> Result<Response<proto::UnloadHeadResponse>, Status> {
        let name = allowed(request, |request| request.name)?;
        let head = self.engine.unload_head(&name);
        let head = head.map_err(|error| status(&error))?;
        let head = Some(convert::head(&head.manifest));
        Ok(Response::new(proto::UnloadHeadResponse { head }))
    }
}

/// The head that a change names, if the caller may use it.
fn allowed<T>(request: Request<T>, name: impl FnOnce(T) -> String) -> Result<String, Status> {
    let identity = Identity::of(request.extensions());
    let name = name(request.into_inner());
    identity
        .check_head(&name, "name")
        .map_err(|error| status(&error))?;
    Ok(name)
}
