//! `VisionService`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Request, Response, Status};

use super::{call::Call, convert, status::status};
use crate::{
    engine::{self, Analysis, Engine, Head, Options},
    error::{Error, Kind, Result},
    proto::{self, vision_service_server::VisionService},
    repository::Task,
};

/// The fields of options of calls for one task.
const FIELDS: [&str; 2] = ["options.max_detections", "options.top_k"];

/// What is known of an answer beside what was found.
struct Made {
    /// When the call came.
    begun: Instant,
    provenance: engine::Provenance,
    /// Height and width of its image.
    image_size: [u32; 2],
}

impl Made {
    fn image_size(&self) -> Option<proto::ImageSize> {
        Some(convert::size(&self.image_size))
    }
}

/// Answers calls with an engine.
#[derive(Clone)]
pub(super) struct Vision {
    engine: Arc<Engine>,
    default_deadline: Option<Duration>,
}

impl Vision {
    pub(super) fn new(engine: Arc<Engine>, default_deadline: Option<Duration>) -> Self {
        Self {
            engine,
            default_deadline,
        }
    }

    fn call<T>(&self, request: &Request<T>, priority: i32) -> Result<Call> {
        Call::read(request, priority, self.default_deadline)
    }

    async fn run_one(
        &self,
        images: Vec<(engine::Source, String)>,
        head: Arc<Head>,
        options: Options,
        call: Call,
    ) -> Result<(Arc<Head>, engine::Outcome, Made)> {
        let begun = call.begun;
        let request = call.request(images, vec![head], options);
        let Analysis {
            mut heads,
            provenance,
            image_size,
            ..
        } = self.engine.run(request).await?;
        let made = Made {
            begun,
            provenance,
            image_size,
        };
        match heads.pop() {
            Some((head, outcome)) => Ok((head, outcome?, made)),
            None => Err(Error::new(Kind::Internal, "the engine gave no answer")),
        }
    }

    /// To be asked when the rest of the answer is made: it tells the time until then.
    fn provenance(&self, made: &Made) -> Option<proto::Provenance> {
        let (backbone, total) = (&self.engine.backbone().sha256, made.begun.elapsed());
        Some(convert::provenance(&made.provenance, backbone, total))
    }

    async fn analyze_inner(
        &self,
        request: Request<proto::AnalyzeRequest>,
    ) -> Result<proto::AnalyzeResponse> {
        let call = self.call(&request, request.get_ref().priority)?;
        let request = request.into_inner();
        let (images, clip) = match request.input {
            Some(proto::analyze_request::Input::Image(image)) => {
                (vec![convert::image(Some(image), "image")?], false)
            }
            Some(proto::analyze_request::Input::Clip(clip)) => (convert::clip(Some(clip))?, true),
            None => return Err(Error::invalid("input", "is missing: set image or clip")),
        };
        let heads = call.heads(&self.engine, &request.heads, clip)?;
        let label_map = convert::label_map_format(
            request.segmentation.unwrap_or_default(),
            "segmentation.format",
        )?;
        let mut options = Options {
            label_map,
            ..Options::default()
        };
        convert::detection_options(request.detection.as_ref(), "detection", &mut options)?;
        convert::classification_options(
            request.classification.as_ref(),
            "classification",
            &mut options,
        )?;
        let fields = ["detection.max_detections", "classification.top_k"];
        convert::check_bounds(&options, &heads, fields)?;
        let begun = call.begun;
        let request = call.request(images, heads, options);
        let analysis = self.engine.run(request).await?;
        Ok(self.analyzed(analysis, begun))
    }

    fn analyzed(&self, analysis: Analysis, begun: Instant) -> proto::AnalyzeResponse {
        let made = Made {
            begun,
            provenance: analysis.provenance,
            image_size: analysis.image_size,
        };
        let heads = analysis.heads.into_iter();
        let results = heads.map(|(head, outcome)| convert::head_result(&head, outcome));
        proto::AnalyzeResponse {
            results: results.collect(),
            image_size: made.image_size(),
            provenance: self.provenance(&made),
        }
    }

    async fn detect_inner(
        &self,
        request: Request<proto::DetectRequest>,
    ) -> Result<proto::DetectResponse> {
        let call = self.call(&request, request.get_ref().priority)?;
        let request = request.into_inner();
        let head = call.head(&self.engine, &request.head, Task::Detection)?;
        let images = vec![convert::image(request.image, "image")?];
        let mut options = Options::default();
        convert::detection_options(request.options.as_ref(), "options", &mut options)?;
        convert::check_bounds(&options, std::slice::from_ref(&head), FIELDS)?;
        let (head, outcome, made) = self.run_one(images, head, options, call).await?;
        let engine::Outcome::Detection(detections) = outcome else {
            return Err(mixed_up());
        };
        Ok(proto::DetectResponse {
            result: Some(convert::detections(detections, &head)),
            head: head.manifest.name.clone(),
            version: head.manifest.version.clone(),
            image_size: made.image_size(),
            provenance: self.provenance(&made),
        })
    }

    async fn segment_inner(
        &self,
        request: Request<proto::SegmentRequest>,
    ) -> Result<proto::SegmentResponse> {
        let call = self.call(&request, request.get_ref().priority)?;
        let request = request.into_inner();
        let head = call.head(&self.engine, &request.head, Task::Segmentation)?;
        let images = vec![convert::image(request.image, "image")?];
        let options = Options {
            label_map: convert::label_map_format(
                request.options.unwrap_or_default(),
                "options.format",
            )?,
            ..Options::default()
        };
        let (head, outcome, made) = self.run_one(images, head, options, call).await?;
        let engine::Outcome::Segmentation(found) = outcome else {
            return Err(mixed_up());
        };
        Ok(proto::SegmentResponse {
            result: Some(convert::label_map(found, &head)?),
            head: head.manifest.name.clone(),
            version: head.manifest.version.clone(),
            image_size: made.image_size(),
            provenance: self.provenance(&made),
        })
    }

    async fn recognize_inner(
        &self,
        request: Request<proto::RecognizeActionRequest>,
    ) -> Result<proto::RecognizeActionResponse> {
        let call = self.call(&request, request.get_ref().priority)?;
        let request = request.into_inner();
        let head = call.head(&self.engine, &request.head, Task::Action)?;
        let clip = request
            .input
            .map(|proto::recognize_action_request::Input::Clip(clip)| clip);
        let images = convert::clip(clip)?;
        let mut options = Options::default();
        convert::classification_options(request.options.as_ref(), "options", &mut options)?;
        convert::check_bounds(&options, std::slice::from_ref(&head), FIELDS)?;
        let (head, outcome, made) = self.run_one(images, head, options, call).await?;
        let engine::Outcome::Classification(top) = outcome else {
            return Err(mixed_up());
        };
        Ok(proto::RecognizeActionResponse {
            result: Some(convert::classification(&top, &head)),
            head: head.manifest.name.clone(),
            version: head.manifest.version.clone(),
            image_size: made.image_size(),
            provenance: self.provenance(&made),
        })
    }

    async fn features_inner(
        &self,
        request: Request<proto::ExtractFeaturesRequest>,
    ) -> Result<proto::ExtractFeaturesResponse> {
        let call = self.call(&request, request.get_ref().priority)?;
        let request = request.into_inner();
        let backbone = self.engine.backbone();
        // As by the Open Inference Protocol, where it is a model of its name.
        call.identity.check_head(&backbone.name, "map_names")?;
        let size = match request.input_size {
            None => backbone.input.sizes[0],
            Some(proto::ImageSize { height, width }) => [height, width],
        };
        if !backbone.input.sizes.contains(&size) {
            let sizes = &backbone.input.sizes;
            let message = format!("{size:?} is not among the backbone's sizes {sizes:?}");
            return Err(Error::invalid("input_size", message));
        }
        for (index, name) in request.map_names.iter().enumerate() {
            if !backbone
                .features
                .iter()
                .any(|feature| feature.name == *name)
            {
                let known: Vec<_> = backbone.features.iter().map(|f| f.name.as_str()).collect();
                let message = format!("is not among the backbone's feature maps {known:?}");
                return Err(Error::invalid(format!("map_names[{index}]"), message));
            }
            if request.map_names[..index].contains(name) {
                return Err(Error::invalid(
                    format!("map_names[{index}]"),
                    "is named twice",
                ));
            }
        }
        let images = vec![convert::image(request.image, "image")?];
        let begun = call.begun;
        let analysis = self
            .engine
            .run(engine::Request {
                features: Some(size),
                ..call.request(images, Vec::new(), Options::default())
            })
            .await?;
        let row = analysis.features.ok_or_else(mixed_up)?;
        let maps = if request.map_names.is_empty() {
            row.maps().map(convert::tensor).collect()
        } else {
            let named = |name: &String| {
                let map = row.maps().find(|map| map.name == name);
                map.map(convert::tensor).ok_or_else(mixed_up)
            };
            request.map_names.iter().map(named).collect::<Result<_>>()?
        };
        let made = Made {
            begun,
            provenance: analysis.provenance,
            image_size: analysis.image_size,
        };
        Ok(proto::ExtractFeaturesResponse {
            maps,
            image_size: made.image_size(),
            provenance: self.provenance(&made),
        })
    }
}

fn mixed_up() -> Error {
    Error::new(Kind::Internal, "the engine gave another kind of answer")
}

fn reply<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status(&error))
}

#[tonic::async_trait]
impl VisionService for Vision {
    async fn analyze(
        &self,
        request: Request<proto::AnalyzeRequest>,
    ) -> Result<Response<proto::AnalyzeResponse>, Status> {
        reply(self.analyze_inner(request).await)
    }

    async fn detect(
        &self,
        request: Request<proto::DetectRequest>,
    ) -> Result<Response<proto::DetectResponse>, Status> {
        reply(self.detect_inner(request).await)
    }

    async fn segment(
        &self,
        request: Request<proto::SegmentRequest>,
    ) -> Result<Response<proto::SegmentResponse>, Status> {
        reply(self.segment_inner(request).await)
    }

    async fn recognize_action(
        &self,
        request: Request<proto::RecognizeActionRequest>,
    ) -> Result<Response<proto::RecognizeActionResponse>, Status> {
        reply(self.recognize_inner(request).await)
    }

    async fn extract_features(
        &self,
        request: Request<proto::ExtractFeaturesRequest>,
    ) -> Result<Response<proto::ExtractFeaturesResponse>, Status> {
        reply(self.features_inner(request).await)
    }
}
