//! Ways in for the fuzz targets, which see only what is public. Not part of an ordinary build.

use prost::Message;
use tonic::metadata::MetadataMap;

use super::{auth, call, convert, identity::Grants, message, oip};
use crate::{engine::Options, proto};

/// Reads `bytes` as each request and converts it as far as it goes without an engine.
pub fn request(bytes: &[u8]) {
    let [choice, bytes @ ..] = bytes else {
        return;
    };
    let mut options = Options::default();
    match choice % 6 {
        0 => {
            let Ok(request) = proto::AnalyzeRequest::decode(bytes) else {
                return;
            };
            let _ = convert::priority(request.priority);
            let _ =
                convert::detection_options(request.detection.as_ref(), "detection", &mut options);
            let _ = convert::classification_options(
                request.classification.as_ref(),
                "classification",
                &mut options,
            );
            let format = request.segmentation.unwrap_or_default();
            let _ = convert::label_map_format(format, "segmentation.format");
            match request.input {
                Some(proto::analyze_request::Input::Image(image)) => {
                    let _ = convert::image(Some(image), "image");
                }
                Some(proto::analyze_request::Input::Clip(clip)) => {
                    if let Ok(frames) = convert::clip(Some(clip), "") {
                        assert!(!frames.is_empty(), "a clip without frames");
                    }
                }
                None => {}
            }
        }
        1 => {
            let Ok(request) = proto::DetectRequest::decode(bytes) else {
                return;
            };
            if convert::detection_options(request.options.as_ref(), "options", &mut options).is_ok()
                && let Some(threshold) = options.score_threshold
            {
                assert!((0.0..=1.0).contains(&threshold), "{threshold}");
            }
            let _ = convert::image(request.image, "image");
        }
        2 => {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(value) = text.parse() {
                let mut metadata = MetadataMap::new();
                metadata.insert("grpc-timeout", value);
                let _ = call::timeout(&metadata);
            }
        }
        3 => message::fuzz(bytes),
        4 => oip::fuzz(bytes),
        _ => {
            let _ = proto::ExtractFeaturesRequest::decode(bytes);
            let _ = proto::RecognizeActionRequest::decode(bytes);
            let _ = proto::LoadHeadRequest::decode(bytes);
        }
    }
}

/// Reads `bytes` as a key file, a key set and a token.
pub fn keys(bytes: &[u8]) {
    auth::fuzz(bytes);
}
