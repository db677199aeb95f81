//! `VisionService`.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Request, Response, Status, Streaming};

use super::{
    budget::Ledger,
    call::Call,
    convert,
    features::{self, Wanted},
    masks,
    status::status,
    stream::{Answers, Streams},
};
use crate::{
    engine::{self, Analysis, Engine, Head, Options, Room},
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

/// What is to be analyzed.
pub(super) enum Input {
    Image(proto::Image),
    Clip(proto::Clip),
}

/// How results are to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    options: Options,
    masks: proto::MaskFormat,
}

impl How {
    /// Reads the options of a call for any task.
    pub(super) fn read(
        detection: Option<&proto::DetectionOptions>,
        segmentation: Option<proto::SegmentationOptions>,
        classification: Option<&proto::ClassificationOptions>,
    ) -> Result<Self> {
        let segmentation = segmentation.unwrap_or_default();
        let mut options = Options {
            label_map: convert::label_map_format(segmentation, "segmentation.format")?,
            ..Options::default()
        };
        convert::detection_options(detection, "detection", &mut options)?;
        convert::classification_options(classification, "classification", &mut options)?;
        Ok(Self {
            options,
            masks: masks::format(detection, "detection")?,
        })
    }
}

/// What `make` makes, on a thread of its own where masks have to be drawn.
async fn encoded<T: Send + 'static>(
    format: proto::MaskFormat,
    make: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if matches!(
        format,
        proto::MaskFormat::Unspecified | proto::MaskFormat::Rle
    ) {
        return make();
    }
    let made = tokio::task::spawn_blocking(make).await;
    made.map_err(|error| Error::new(Kind::Internal, error.to_string()))?
}

/// Answers calls with an engine.
#[derive(Clone)]
pub(super) struct Vision {
    pub(super) engine: Arc<Engine>,
    default_deadline: Option<Duration>,
    streams: Arc<Streams>,
}

impl Vision {
    pub(super) fn new(
        engine: Arc<Engine>,
        default_deadline: Option<Duration>,
        streams: Arc<Streams>,
    ) -> Self {
        Self {
            engine,
            default_deadline,
            streams,
        }
    }

    pub(super) fn call<T>(&self, request: &Request<T>, priority: i32) -> Result<Call> {
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
        let (backbone, total) = (self.engine.identity(), made.begun.elapsed());
        Some(convert::provenance(&made.provenance, backbone, total))
    }

    async fn analyze_inner(
        &self,
        request: Request<proto::AnalyzeRequest>,
    ) -> Result<proto::AnalyzeResponse> {
        let call = self.call(&request, request.get_ref().priority)?;
        let request = request.into_inner();
        let how = How::read(
            request.detection.as_ref(),
            request.segmentation,
            request.classification.as_ref(),
        )?;
        let input = match request.input {
            Some(proto::analyze_request::Input::Image(image)) => Input::Image(image),
            Some(proto::analyze_request::Input::Clip(clip)) => Input::Clip(clip),
            None => return Err(Error::invalid("input", "is missing: set image or clip")),
        };
        self.analyze_one(call, input, "", &request.heads, how).await
    }

    /// One input of a call; `prefix` is where in the request it is.
    pub(super) async fn analyze_one(
        &self,
        call: Call,
        input: Input,
        prefix: &str,
        heads: &[String],
        how: How,
    ) -> Result<proto::AnalyzeResponse> {
        let (images, clip) = match input {
            Input::Image(image) => {
                let image = convert::image(Some(image), &format!("{prefix}image"))?;
                (vec![image], false)
            }
            Input::Clip(clip) => (convert::clip(Some(clip), prefix)?, true),
        };
        let heads = call.heads(&self.engine, heads, clip)?;
        let fields = ["detection.max_detections", "classification.top_k"];
        convert::check_bounds(&how.options, &heads, fields)?;
        let begun = call.begun;
        let analysis = self
            .engine
            .run(call.request(images, heads, how.options))
            .await?;
        let made = Made {
            begun,
            provenance: analysis.provenance,
            image_size: analysis.image_size,
        };
        let (heads, format) = (analysis.heads, how.masks);
        let results = encoded(format, move || {
            let one =
                |(head, outcome): (Arc<Head>, _)| convert::head_result(&head, outcome, format);
            Ok(heads.into_iter().map(one).collect())
        });
        Ok(proto::AnalyzeResponse {
            results: results.await?,
            image_size: made.image_size(),
            provenance: self.provenance(&made),
        })
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
        let format = masks::format(request.options.as_ref(), "options")?;
        let (head, outcome, made) = self.run_one(images, head, options, call).await?;
        let engine::Outcome::Detection(found) = outcome else {
            return Err(mixed_up());
        };
        let by = Arc::clone(&head);
        let result = encoded(format, move || convert::detections(found, &by, format));
        Ok(proto::DetectResponse {
            result: Some(result.await?),
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
        let images = convert::clip(clip, "")?;
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

    /// The maps that a request wants, made as it wants them.
    async fn maps(
        &self,
        request: proto::ExtractFeaturesRequest,
        call: Call,
        prefix: &str,
        whole: bool,
    ) -> Result<(Vec<proto::Tensor>, Made, Option<Arc<Room>>)> {
        // As by the Open Inference Protocol, where it is a model of its name.
        let backbone = self.engine.backbone();
        call.identity.check_head(&backbone.name, "map_names")?;
        let wanted = Wanted::read(&request, &self.engine)?;
        if whole {
            wanted.check_bytes(request.max_bytes)?;
        }
        let images = vec![convert::image(request.image, &format!("{prefix}image"))?];
        let begun = call.begun;
        let analysis = self
            .engine
            .run(engine::Request {
                features: Some(wanted.size),
                ..call.request(images, Vec::new(), Options::default())
            })
            .await?;
        let row = analysis.features.ok_or_else(mixed_up)?;
        let maps = wanted.tensors(&row)?;
        let made = Made {
            begun,
            provenance: analysis.provenance,
            image_size: analysis.image_size,
        };
        Ok((maps, made, analysis.room))
    }

    async fn features_inner(
        &self,
        request: Request<proto::ExtractFeaturesRequest>,
    ) -> Result<proto::ExtractFeaturesResponse> {
        let call = self.call(&request, request.get_ref().priority)?;
        let (maps, made, _room) = self.maps(request.into_inner(), call, "", true).await?;
        Ok(proto::ExtractFeaturesResponse {
            maps,
            image_size: made.image_size(),
            provenance: self.provenance(&made),
        })
    }

    async fn stream_inner(&self, request: Request<proto::StreamFeaturesRequest>) -> Result<Pieces> {
        let asked = request.get_ref().features_request.as_ref();
        let call = self.call(&request, asked.map_or(0, |asked| asked.priority))?;
        let asked = request.into_inner().features_request;
        let asked = asked.ok_or_else(|| Error::invalid("features_request", "is missing"))?;
        let (maps, made, room) = self.maps(asked, call, "features_request.", false).await?;
        let last = proto::StreamFeaturesResponse {
            image_size: made.image_size(),
            provenance: self.provenance(&made),
            ..Default::default()
        };
        let pieces = features::pieces(maps, last, room).map(Ok);
        Ok(Box::pin(tokio_stream::iter(pieces)))
    }
}

/// An answer in several messages.
type Pieces =
    Pin<Box<dyn tokio_stream::Stream<Item = Result<proto::StreamFeaturesResponse, Status>> + Send>>;

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

    type AnalyzeStreamStream = Answers;

    async fn analyze_stream(
        &self,
        request: Request<Streaming<proto::AnalyzeStreamRequest>>,
    ) -> Result<Response<Answers>, Status> {
        // Without the deadline of calls that bring none: a stream lasts as long as there are frames.
        let call = Call::read(&request, 0, None).map_err(|error| status(&error))?;
        let ledger = request.extensions().get::<Ledger>().cloned();
        let inbound = request.into_inner();
        reply(self.streams.begin(&self.engine, call, ledger, inbound))
    }

    async fn extract_features(
        &self,
        request: Request<proto::ExtractFeaturesRequest>,
    ) -> Result<Response<proto::ExtractFeaturesResponse>, Status> {
        reply(self.features_inner(request).await)
    }

    type StreamFeaturesStream = Pieces;

    async fn stream_features(
        &self,
        request: Request<proto::StreamFeaturesRequest>,
    ) -> Result<Response<Pieces>, Status> {
        reply(self.stream_inner(request).await)
    }

    async fn batch_analyze(
        &self,
        request: Request<proto::BatchAnalyzeRequest>,
    ) -> Result<Response<proto::BatchAnalyzeResponse>, Status> {
        reply(self.batch_inner(request).await)
    }
}
