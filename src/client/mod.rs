//! A typed client, used by the commands and the tests.
//!
//! ```
//! # #[cfg(feature = "demo-models")]
//! # async fn serve() -> anyhow::Result<std::net::SocketAddr> {
//! # use frostline::{backend::Runtime, engine::Engine, repository::Repository, server};
//! # let (runtime, repository) = (Runtime::load(None)?, Repository::embedded()?);
//! # let engine = std::sync::Arc::new(Engine::start(&runtime, &repository, Default::default())?);
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! # let address = listener.local_addr()?;
//! # let config = server::ServerConfig::default();
//! # tokio::spawn(server::serve(listener, engine, config, std::future::pending()));
//! # Ok(address)
//! # }
//! # #[cfg(feature = "demo-models")]
//! # #[tokio::main]
//! # async fn main() -> anyhow::Result<()> {
//! # let address = serve().await?;
//! use frostline::client::Client;
//!
//! let mut client = Client::connect(&format!("http://{address}")).await?;
//! let photo = std::fs::read("models/demo/samples/scene-1.jpg")?;
//! let answer = client.detect(photo.into()).await?;
//! let found = answer.result.unwrap_or_default().detections;
//! for detection in &found {
//!     println!("{} {:.2}", detection.label, detection.score);
//! }
//! assert!(!found.is_empty());
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "demo-models"))]
//! # fn main() {}
//! ```

mod connect;

use bytes::Bytes;
use prost::Message;
use tonic::Status;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::proto::{
    self, model_service_client::ModelServiceClient, vision_service_client::VisionServiceClient,
};

pub use connect::{ConnectError, Credentials, Transport};

/// What a server answered in place of a result, with its gRPC code by the name that the specification gives it; `None` for
/// other errors.
#[must_use]
pub fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let status = error.downcast_ref::<Status>()?;
    // `NotFound` is NOT_FOUND.
    let mut name = String::new();
    for letter in format!("{:?}", status.code()).chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    Some(format!("{name}: {}", status.message()))
}

/// The stable reason (`ErrorReason`, without its prefix) of a part of an answer that failed; empty where there is none.
#[must_use]
pub fn reason(error: &tonic_types::Status) -> String {
    let info = error.details.iter().find_map(|detail| {
        let is_info = detail.type_url.ends_with("/google.rpc.ErrorInfo");
        let info = is_info.then(|| tonic_types::pb::ErrorInfo::decode(&detail.value[..]));
        info?.ok()
    });
    info.map(|info| info.reason).unwrap_or_default()
}

/// A connection to a server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    /// `VisionService`, for calls that have no shorthand here.
    pub vision: VisionServiceClient<Transport>,
    /// `ModelService`.
    pub model: ModelServiceClient<Transport>,
    health: HealthClient<Transport>,
}

impl Client {
    /// Connects to `address`, such as `http://127.0.0.1:8461` or `unix:/run/frostline.sock`, without credentials.
    ///
    /// # Errors
    /// The address is malformed, or nothing listens there.
    pub async fn connect(address: &str) -> Result<Self, ConnectError> {
        Self::connect_with(address, &Credentials::default()).await
    }

    /// Connects to `address` with `credentials`.
    ///
    /// # Errors
    /// The address or a credential is malformed, or nothing that these credentials trust listens there.
    pub async fn connect_with(
        address: &str,
        credentials: &Credentials,
    ) -> Result<Self, ConnectError> {
        let transport = connect::open(address, credentials).await?;
        const MOST: usize = 256 << 20;
        Ok(Self {
            vision: VisionServiceClient::new(transport.clone())
                .max_decoding_message_size(MOST)
                .max_encoding_message_size(MOST),
            model: ModelServiceClient::new(transport.clone()),
            health: HealthClient::new(transport),
        })
    }

    /// Whether `service` serves, by `grpc.health.v1`; an empty name means the whole server.
    ///
    /// # Errors
    /// What the server answers; `NotFound` for a service that it does not have.
    pub async fn serving(&mut self, service: &str) -> Result<bool, Status> {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = self.health.check(request).await?.into_inner();
        Ok(answer.status() == ServingStatus::Serving)
    }

    /// The heads that are loaded, and those whose newest version does not load, of all pages.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn heads(&mut self) -> Result<(Vec<proto::Head>, Vec<proto::FailedHead>), Status> {
        let (mut heads, mut failed) = (Vec::new(), Vec::new());
        let mut request = proto::ListHeadsRequest::default();
        loop {
            let answer = self.model.list_heads(request.clone()).await?.into_inner();
            heads.extend(answer.heads);
            failed.extend(answer.failed);
            if answer.next_page_token.is_empty() {
                return Ok((heads, failed));
            }
            request.page_token = answer.next_page_token;
        }
    }

    /// Any heads on one image file; none named: all that fit.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn analyze_image(
        &mut self,
        image: Bytes,
        heads: &[&str],
    ) -> Result<proto::AnalyzeResponse, Status> {
        let request = proto::AnalyzeRequest {
            input: Some(proto::analyze_request::Input::Image(encoded(image))),
            heads: heads.iter().map(|head| (*head).to_owned()).collect(),
            ..Default::default()
        };
        Ok(self.vision.analyze(request).await?.into_inner())
    }

    /// Any heads on a clip of image files; none named: all.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn analyze_clip(
        &mut self,
        frames: Vec<Bytes>,
        heads: &[&str],
    ) -> Result<proto::AnalyzeResponse, Status> {
        let request = proto::AnalyzeRequest {
            input: Some(proto::analyze_request::Input::Clip(clip(frames))),
            heads: heads.iter().map(|head| (*head).to_owned()).collect(),
            ..Default::default()
        };
        Ok(self.vision.analyze(request).await?.into_inner())
    }

    /// A detection head on one image file.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn detect(&mut self, image: Bytes) -> Result<proto::DetectResponse, Status> {
        let image = Some(encoded(image));
        let request = proto::DetectRequest {
            image,
            ..Default::default()
        };
        Ok(self.vision.detect(request).await?.into_inner())
    }

    /// A segmentation head on one image file.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn segment(&mut self, image: Bytes) -> Result<proto::SegmentResponse, Status> {
        let image = Some(encoded(image));
        let request = proto::SegmentRequest {
            image,
            ..Default::default()
        };
        Ok(self.vision.segment(request).await?.into_inner())
    }

    /// An action head on a clip of image files.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn recognize(
        &mut self,
        frames: Vec<Bytes>,
    ) -> Result<proto::RecognizeActionResponse, Status> {
        let request = proto::RecognizeActionRequest {
            input: Some(proto::recognize_action_request::Input::Clip(clip(frames))),
            ..Default::default()
        };
        Ok(self.vision.recognize_action(request).await?.into_inner())
    }
}

/// An image file as a message.
#[must_use]
pub fn encoded(image: Bytes) -> proto::Image {
    proto::Image {
        content: Some(proto::image::Content::Encoded(image)),
    }
}

/// Raw RGB pixels as a message.
#[must_use]
pub fn raw(width: u32, height: u32, rgb: Bytes) -> proto::Image {
    proto::Image {
        content: Some(proto::image::Content::Raw(proto::RawImage {
            width,
            height,
            rgb,
        })),
    }
}

/// Image files as a clip.
#[must_use]
pub fn clip(frames: Vec<Bytes>) -> proto::Clip {
    proto::Clip {
        frames: frames.into_iter().map(encoded).collect(),
    }
}
