//! The protocol's methods.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{Inference, Model, outputs, parameters::shown, tensor::Datatype};
use crate::{
    error::{Error, Kind, Result},
    proto::inference::{
        ModelConfig, ModelConfigRequest, ModelConfigResponse, ModelInferRequest,
        ModelInferResponse, ModelInput, ModelMetadataRequest, ModelMetadataResponse, ModelOutput,
        ModelReadyRequest, ModelReadyResponse, RepositoryIndexRequest, RepositoryIndexResponse,
        RepositoryModelLoadRequest, RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
        RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse,
        ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        grpc_inference_service_server::GrpcInferenceService,
        model_metadata_response::TensorMetadata, repository_index_response::ModelIndex,
    },
    server::{audit::By, identity::Identity, life::Phase, status::status},
};

/// What runs the models, as clients of the protocol know it.
const PLATFORM: &str = "onnxruntime_onnx";

/// Parts of the protocol beyond its core, by the names that its servers use.
const EXTENSIONS: [&str; 3] = ["classification", "model_configuration", "model_repository"];

fn reply<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status(&error))
}

/// There is one repository, which has no name.
fn check_repository(name: &str) -> Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    let message = format!("there is no repository {:?}: leave it empty", shown(name));
    Err(Error::invalid("repository_name", message))
}

/// Refuses parameters other than `known`.
fn check_parameters<'a>(names: impl Iterator<Item = &'a String>, known: &[&str]) -> Result<()> {
    match names.filter(|name| !known.contains(&name.as_str())).min() {
        Some(name) => {
            let field = format!("parameters[{}]", shown(name));
            Err(Error::invalid(field, "is not a parameter of this server"))
        }
        None => Ok(()),
    }
}

impl Inference {
    /// What [`Model`] takes, with the shape of image files.
    fn takes(model: &Model) -> (String, Vec<i64>) {
        let shape = if model.clip() { vec![-1, -1] } else { vec![-1] };
        (model.input().to_owned(), shape)
    }

    fn metadata(&self, request: &Request<ModelMetadataRequest>) -> Result<ModelMetadataResponse> {
        let ModelMetadataRequest { name, version } = request.get_ref();
        let identity = Identity::of(request.extensions());
        let (model, version) = self.model(&identity, name, version, "")?;
        let (input, shape) = Self::takes(&model);
        let outputs = outputs::outputs(&model, &self.engine);
        let outputs = outputs.into_iter().map(|output| TensorMetadata {
            name: output.name,
            datatype: output.datatype.name().to_owned(),
            shape: output.shape,
        });
        Ok(ModelMetadataResponse {
            name: name.clone(),
            versions: vec![version],
            platform: PLATFORM.to_owned(),
            inputs: vec![TensorMetadata {
                name: input,
                datatype: Datatype::Bytes.name().to_owned(),
                shape,
            }],
            outputs: outputs.collect(),
        })
    }

    fn config(&self, request: &Request<ModelConfigRequest>) -> Result<ModelConfigResponse> {
        let ModelConfigRequest { name, version } = request.get_ref();
        let identity = Identity::of(request.extensions());
        let (model, _) = self.model(&identity, name, version, "")?;
        let (input, dims) = Self::takes(&model);
        let outputs = outputs::outputs(&model, &self.engine);
        let output = outputs.into_iter().map(|output| ModelOutput {
            name: output.name,
            data_type: output.datatype.config().into(),
            dims: output.shape,
        });
        let config = ModelConfig {
            name: name.clone(),
            platform: PLATFORM.to_owned(),
            backend: "onnxruntime".to_owned(),
            max_batch_size: 0,
            input: vec![ModelInput {
                name: input,
                data_type: Datatype::Bytes.config().into(),
                dims,
            }],
            output: output.collect(),
        };
        Ok(ModelConfigResponse {
            config: Some(config),
        })
    }

    async fn index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<RepositoryIndexResponse> {
        check_repository(&request.get_ref().repository_name)?;
        let identity = Identity::of(request.extensions());
        let only_ready = request.get_ref().ready;
        let index = |name: &str, version: Option<&str>, reason: &str| ModelIndex {
            name: name.to_owned(),
            version: version.unwrap_or_default().to_owned(),
            state: if version.is_some() {
                "READY"
            } else {
                "UNAVAILABLE"
            }
            .to_owned(),
            reason: reason.to_owned(),
        };
        let loaded = identity.heads(&self.engine);
        let is_loaded = |name: &str| loaded.iter().any(|head| head.manifest.name == name);
        let mut models: Vec<_> = loaded
            .iter()
            .map(|head| index(&head.manifest.name, Some(&head.manifest.version), ""))
            .collect();
        if !only_ready {
            let names = self.blocking(|engine| engine.repository_heads()).await?;
            let others = names
                .iter()
                .filter(|name| identity.may_use(name) && !is_loaded(name));
            models.extend(others.map(|name| {
                let fault = self.engine.fault(name);
                index(name, None, fault.as_deref().unwrap_or("not loaded"))
            }));
            models.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let backbone = self.engine.backbone();
        if identity.may_use(&backbone.name) && !is_loaded(&backbone.name) {
            models.insert(0, index(&backbone.name, Some(&backbone.version), ""));
        }
        Ok(RepositoryIndexResponse { models })
    }

    async fn load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<RepositoryModelLoadResponse> {
        let (by, identity) = (By::of(&request), Identity::of(request.extensions()));
        let request = request.into_inner();
        check_repository(&request.repository_name)?;
        check_parameters(request.parameters.keys(), &[])?;
        let name = request.model_name;
        identity.check_head(&name, "model_name")?;
        let change = by.changes(&self.engine, "load", &name);
        let loaded = self.blocking(move |engine| {
            let loaded = engine.load_head(&name);
            change.tell(loaded.as_ref().map(|head| Some(&**head)));
            loaded
        });
        loaded.await.map_err(|error| error.at("model_name"))?;
        Ok(RepositoryModelLoadResponse {})
    }

    fn unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<RepositoryModelUnloadResponse> {
        let (by, identity) = (By::of(&request), Identity::of(request.extensions()));
        let request = request.into_inner();
        check_repository(&request.repository_name)?;
        check_parameters(request.parameters.keys(), &["unload_dependents"])?;
        let name = request.model_name;
        identity.check_head(&name, "model_name")?;
        let change = by.changes(&self.engine, "unload", &name);
        let unloaded = self.engine.unload_head(&name);
        change.tell(unloaded.as_ref().map(|_| None));
        unloaded.map_err(|error| error.at("model_name"))?;
        Ok(RepositoryModelUnloadResponse {})
    }

    /// Work that takes its time, off the async threads. It goes on if the caller leaves.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&crate::engine::Engine) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let engine = Arc::clone(&self.engine);
        tokio::task::spawn_blocking(move || work(&engine))
            .await
            .map_err(|error| Error::new(Kind::Internal, error.to_string()))?
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(
        &self,
        _request: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _request: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = self.life.get() == Phase::Ready && self.engine.lacks().is_none();
        Ok(Response::new(ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.get_ref();
        let identity = Identity::of(request.extensions());
        let ready = match self.model(&identity, name, version, "") {
            Ok(_) => self.life.get() == Phase::Ready,
            Err(error) if matches!(error.kind(), Kind::UnknownHead | Kind::LoadFailed) => false,
            Err(error) => return Err(status(&error)),
        };
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _request: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        reply(self.metadata(&request))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        reply(self.infer(request).await)
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        reply(self.config(&request))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        reply(self.index(request).await)
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        reply(self.load(request).await)
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        reply(self.unload(request))
    }
}
