//! `ModelService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{convert, status::status};
use crate::{
    engine::Engine,
    error::{Error, Kind},
    proto::{self, model_service_server::ModelService},
};

/// Tells what an engine holds.
#[derive(Clone)]
pub(super) struct Model {
    engine: Arc<Engine>,
}

impl Model {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
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
        _request: Request<proto::ListHeadsRequest>,
    ) -> Result<Response<proto::ListHeadsResponse>, Status> {
        let heads = self
            .engine
            .heads()
            .iter()
            .map(|head| convert::head(&head.manifest))
            .collect();
        Ok(Response::new(proto::ListHeadsResponse { heads }))
    }

    async fn get_head(
        &self,
        request: Request<proto::GetHeadRequest>,
    ) -> Result<Response<proto::GetHeadResponse>, Status> {
        let name = request.into_inner().name;
        match self.engine.head(&name) {
            Some(head) => {
                let head = Some(convert::head(&head.manifest));
                Ok(Response::new(proto::GetHeadResponse { head }))
            }
            None => {
                let error = Error::new(Kind::UnknownHead, "no head of this name is loaded");
                Err(status(&error.at("name")))
            }
        }
    }
}
