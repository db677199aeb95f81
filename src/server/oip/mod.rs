//! `inference.GRPCInferenceService`, the Open Inference Protocol: each head is a model, and so is the backbone.
//!
//! A row of a call's batch is one image, or one clip of an action head, and becomes one engine request of its own, so
//! rows share features, batches, deadlines and the door with every other call. A row that fails fails the call.
//!
//! The service lives here, the request's side in [`input`] and [`parameters`], the answer's in [`answer`] and
//! [`tensor`].

mod answer;
mod input;
mod outputs;
mod parameters;
mod service;
mod tensor;

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tonic::Request;

use self::{
    input::{Expected, Row},
    parameters::{Parameters, shown},
};
use super::{call::Call, convert, identity::Identity, life::Life};
use crate::{
    engine::{Analysis, Engine, FeatureSource, Head, LabelMapAs, Options, Source},
    error::{Error, Kind, Result},
    media,
    proto::inference::{
        InferParameter, ModelInferRequest, ModelInferResponse, infer_parameter::ParameterChoice,
    },
    repository::Task,
};

/// Most rows of one call, where the door takes as many.
const MAX_ROWS: usize = 128;

/// Answers calls with an engine.
#[derive(Clone)]
pub(super) struct Inference {
    engine: Arc<Engine>,
    default_deadline: Option<Duration>,
    max_response_bytes: usize,
    /// Whether the server takes requests: false from the moment it drains.
    life: Life,
}

/// What a model's name stands for.
#[derive(Debug, Clone)]
enum Model {
    Head(Arc<Head>),
    Backbone,
}

/// What a call asks of the engine, for each of its rows.
struct Asked {
    heads: Vec<Arc<Head>>,
    /// The size of the input whose features are wanted.
    features: Option<[u32; 2]>,
    options: Options,
    /// How many classes the answer lists.
    top_k: usize,
}

impl Model {
    /// A head's task; none for the backbone.
    fn task(&self) -> Option<Task> {
        match self {
            Self::Head(head) => Some(head.manifest.task),
            Self::Backbone => None,
        }
    }

    /// What it is, for messages.
    fn kind(&self) -> String {
        match self.task() {
            Some(task) => format!("a head that does {task}"),
            None => "the backbone".to_owned(),
        }
    }

    fn clip(&self) -> bool {
        self.task().is_some_and(|task| task.spec().clip)
    }

    /// Name of its input.
    fn input(&self) -> &'static str {
        if self.clip() { "clip" } else { "image" }
    }
}

impl Inference {
    pub(super) fn new(
        engine: Arc<Engine>,
        default_deadline: Option<Duration>,
        max_response_bytes: usize,
        life: Life,
    ) -> Self {
        Self {
            engine,
            default_deadline,
            max_response_bytes,
            life,
        }
    }

    /// The model called `name` and its version. No head has the backbone's name.
    ///
    /// # Errors
    /// `PermissionDenied` for one that `identity` may not use, `UnknownHead` for one that is not loaded or has another
    /// version; both name the field behind `prefix`.
    fn model(
        &self,
        identity: &Identity,
        name: &str,
        version: &str,
        prefix: &str,
    ) -> Result<(Model, String)> {
        let field = format!("{prefix}name");
        let backbone = self.engine.backbone();
        let (model, loaded) = match self.engine.head(name) {
            None if name == backbone.name => {
                identity.check_head(name, &field)?;
                (Model::Backbone, backbone.version.clone())
            }
            _ => {
                let head = identity.head(&self.engine, name, &field)?;
                let version = head.manifest.version.clone();
                (Model::Head(head), version)
            }
        };
        if version.is_empty() || version == loaded {
            return Ok((model, loaded));
        }
        let message = format!(
            "the model {name:?} is loaded in version {loaded:?}, not {:?}",
            shown(version)
        );
        Err(Error::new(Kind::UnknownHead, message).at(format!("{prefix}version")))
    }

    async fn infer(&self, request: Request<ModelInferRequest>) -> Result<ModelInferResponse> {
        let mut call = Call::read(&request, 0, self.default_deadline)?;
        let request = request.into_inner();
        let (name, version) = (&request.model_name, &request.model_version);
        let (model, version) = self.model(&call.identity, name, version, "model_")?;
        let outputs = outputs::outputs(&model, &self.engine);
        let wanted = outputs::wanted(&request.outputs, &outputs)?;
        let parameters = Parameters::read(&request.parameters, &model)?;
        call.priority = parameters.priority;
        if let Some(timeout) = parameters.timeout {
            let until = std::time::Instant::now().checked_add(timeout);
            call.deadline = [call.deadline, until].into_iter().flatten().min();
        }
        let config = self.engine.config();
        let expected = Expected {
            name: model.input(),
            clip: model.clip(),
            // A batch must find its places at a door that others use too.
            rows: MAX_ROWS.min(config.admission.images / 2).max(1),
            frames: config.max_frames,
        };
        let raw = !request.raw_input_contents.is_empty();
        let rows = input::rows(request.inputs, request.raw_input_contents, expected)?;

        let Asked {
            heads,
            features,
            options,
            top_k,
        } = self.asked(&model, &parameters, &wanted)?;
        let sizes = if outputs::needs_sizes(&wanted) {
            rows.iter()
                .map(|row| size(row, &config.media))
                .collect::<Result<_>>()?
        } else {
            Vec::new()
        };
        let rows = rows.into_iter().map(|row| {
            let mut request = call.clone().request(row, heads.clone(), options);
            request.features = features;
            request
        });
        let mut rows: Vec<_> = rows.collect();
        self.engine.look(&mut rows)?;
        let rows = self.run(rows).await?;
        let mut response = ModelInferResponse {
            model_name: request.model_name,
            model_version: version,
            id: request.id,
            parameters: made(&rows, self.engine.identity()),
            ..Default::default()
        };
        // Masks and label maps of a whole batch take their time.
        let limit = self.max_response_bytes;
        let encode = move || {
            let context = answer::Context {
                sizes: &sizes,
                limit,
                top_k,
            };
            let arrays = answer::arrays(rows, &wanted, context)?;
            tensor::write(arrays, raw, &mut response);
            Ok(response)
        };
        tokio::task::spawn_blocking(encode)
            .await
            .map_err(|error| Error::new(Kind::Internal, error.to_string()))?
    }

    /// What the parameters and the outputs that are wanted ask of the engine.
    fn asked(
        &self,
        model: &Model,
        parameters: &Parameters,
        wanted: &[outputs::Wanted],
    ) -> Result<Asked> {
        let mut options = parameters.options;
        let Model::Head(head) = model else {
            return Ok(Asked {
                heads: Vec::new(),
                features: Some(parameters.size(&self.engine.backbone().input.sizes)?),
                options,
                top_k: 0,
            });
        };
        let fields = ["parameters[max_detections]", "parameters[top_k]"];
        convert::check_bounds(&options, std::slice::from_ref(head), fields)?;
        let wants = |name| outputs::wants(wanted, name);
        options.omit_masks = !wants("masks") && !wants("masks_dense");
        let manifest = &head.manifest;
        let top_k = options
            .top_k
            .unwrap_or_else(|| manifest.postprocess.classification.top_k());
        options.top_k = Some(manifest.labels.len());
        // One or the other, where only one is asked for.
        if wants("label_map_png") && !wants("label_map") {
            options.label_map = LabelMapAs::Png;
        }
        Ok(Asked {
            heads: vec![Arc::clone(head)],
            features: None,
            options,
            top_k,
        })
    }

    /// Runs all rows at once; the first to fail ends the others.
    async fn run(&self, rows: Vec<crate::engine::Request>) -> Result<Vec<Analysis>> {
        let mut running = JoinSet::new();
        let count = rows.len();
        for (index, row) in rows.into_iter().enumerate() {
            let engine = Arc::clone(&self.engine);
            running.spawn(async move { (index, engine.run(row).await) });
        }
        let mut done: Vec<Option<Analysis>> = Vec::new();
        done.resize_with(count, || None);
        while let Some(joined) = running.join_next().await {
            let (index, row) =
                joined.map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
            let mut row = row?;
            if let Some((_, outcome)) = row.heads.last_mut()
                && let Err(error) = outcome
            {
                return Err(error.clone());
            }
            done[index] = Some(row);
        }
        let lost = || Error::new(Kind::Internal, "a row got no answer");
        done.into_iter().map(|row| row.ok_or_else(lost)).collect()
    }
}

/// `(height, width)` in pixels of a row's last image, from its header.
fn size(row: &Row, limits: &media::Limits) -> Result<(u32, u32)> {
    match row.last() {
        Some((Source::Raw { width, height, .. }, _)) => Ok((*height, *width)),
        Some((Source::Encoded(bytes), field)) => media::probe(bytes, limits)
            .map(|header| (header.height, header.width))
            .map_err(|error| Error::from(error).at(field)),
        None => Err(Error::new(Kind::Internal, "a row has no image")),
    }
}

/// How the batch was made, as the answer's parameters.
fn made(rows: &[Analysis], backbone: &str) -> std::collections::HashMap<String, InferParameter> {
    let source = match rows.iter().map(|row| row.provenance.source).max() {
        Some(FeatureSource::Computed) | None => "computed",
        Some(FeatureSource::Shared) => "shared",
        Some(FeatureSource::Cached) => "cached",
    };
    let computed: usize = rows.iter().map(|row| row.provenance.backbone_rows).sum();
    let total = rows.iter().map(|row| row.provenance.timing.total).max();
    let micros = total.unwrap_or_default().as_micros();
    let number = |value: Result<i64, _>| ParameterChoice::Int64Param(value.unwrap_or(i64::MAX));
    [
        (
            "backbone",
            ParameterChoice::StringParam(backbone.to_owned()),
        ),
        (
            "feature_source",
            ParameterChoice::StringParam(source.to_owned()),
        ),
        ("backbone_rows", number(i64::try_from(computed))),
        ("total_us", number(i64::try_from(micros))),
    ]
    .into_iter()
    .map(|(name, choice)| {
        let parameter_choice = Some(choice);
        (name.to_owned(), InferParameter { parameter_choice })
    })
    .collect()
}

/// Reads `bytes` as a request for each kind of model, as far as it goes without an engine.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(request) = <ModelInferRequest as prost::Message>::decode(bytes) else {
        return;
    };
    let _ = Parameters::read(&request.parameters, &Model::Backbone)
        .and_then(|parameters| parameters.size(&[[128, 128]]));
    for (name, clip) in [("image", false), ("clip", true)] {
        let expected = Expected {
            name,
            clip,
            rows: MAX_ROWS,
            frames: 64,
        };
        let raw = request.raw_input_contents.clone();
        let Ok(rows) = input::rows(request.inputs.clone(), raw, expected) else {
            continue;
        };
        assert!((1..=MAX_ROWS).contains(&rows.len()));
        for (source, _) in rows.iter().flatten() {
            match source {
                Source::Encoded(file) => assert!(!file.is_empty()),
                Source::Raw { width, height, rgb } => {
                    assert_eq!(rgb.len() as u64, u64::from(*width) * u64::from(*height) * 3);
                }
            }
        }
    }
}
