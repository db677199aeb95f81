//! What answers and errors tell beside what was found: sizes, settings, pages, values, request ids.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use frostline::{client::encoded, error::Kind, proto};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    costs::jpeg,
    support::{Running, one_lane, png},
};

/// `file`, a JPEG, with an EXIF segment that says `orientation`.
fn turned(file: &[u8], orientation: u8) -> Bytes {
    let tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0";
    let mut segment = b"\xff\xe1\0\0Exif\0\0".to_vec();
    segment.extend(tiff);
    segment.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    let length = u16::try_from(segment.len() - 2).unwrap().to_be_bytes();
    segment[2..4].copy_from_slice(&length);
    [&file[..2], &segment, &file[2..]].concat().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_tells_the_size_that_boxes_mean() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let file = jpeg(160, 96);
    for (file, width, height) in [(file.clone(), 160, 96), (turned(&file, 6), 96, 160)] {
        let wanted = Some(proto::ImageSize { height, width });
        let request = proto::DetectRequest {
            image: Some(encoded(file.clone())),
            options: Some(proto::DetectionOptions {
                score_threshold: Some(0.0),
                omit_masks: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        let found = client.vision.detect(request).await.unwrap().into_inner();
        assert_eq!(found.image_size, wanted);
        let boxes = found.result.unwrap().detections;
        let within = |b: proto::BoundingBox| b.x_max <= width as f32 && b.y_max <= height as f32;
        assert!(!boxes.is_empty() && boxes.iter().all(|d| within(d.bbox.unwrap())));
        let map = client.segment(file.clone()).await.unwrap();
        assert_eq!(map.image_size, wanted);
        let map = map.result.unwrap();
        assert_eq!((map.width, map.height), (width, height));
        let all = client.analyze_image(file.clone(), &[]).await.unwrap();
        assert_eq!(all.image_size, wanted);
        let clip = client.recognize(vec![file.clone(); 2]).await.unwrap();
        assert_eq!(clip.image_size, wanted);
        let request = proto::ExtractFeaturesRequest {
            image: Some(encoded(file)),
            ..Default::default()
        };
        let maps = client.vision.extract_features(request).await.unwrap();
        assert_eq!(maps.into_inner().image_size, wanted);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_tell_what_a_call_may_leave_out_and_come_in_pages() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let (heads, failed) = client.heads().await.unwrap();
    assert!(failed.is_empty());
    for head in &heads {
        let loaded = server.engine.head(&head.name).unwrap();
        let (post, labels) = (&loaded.manifest.postprocess, loaded.manifest.labels.len());
        let detects = head.task() == proto::HeadTask::Detection;
        assert_eq!(head.detection.is_some(), detects, "{head:?}");
        if let Some(told) = &head.detection {
            assert_eq!(told.score_threshold, post.detection.score_threshold());
            assert_eq!(
                told.max_detections as usize,
                post.detection.max_detections()
            );
            assert_eq!(
                (told.nms_iou, told.has_masks),
                (post.detection.nms_iou, post.detection.mask.is_some())
            );
            assert_eq!(told.mask_threshold, Some(post.detection.mask_threshold()));
        }
        if let Some(told) = &head.classification {
            let told = (told.top_k as usize, told.max_top_k as usize);
            assert_eq!(told, (post.classification.top_k().min(labels), labels));
        }
    }
    assert!(heads.iter().any(|head| head.detection.is_some()));
    assert!(heads.iter().any(|head| head.classification.is_some()));

    let (mut paged, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page_size = Some(2);
        let request = proto::ListHeadsRequest {
            page_size,
            page_token,
        };
        let answer = client.model.list_heads(request).await.unwrap().into_inner();
        assert!((1..=2).contains(&answer.heads.len()));
        paged.extend(answer.heads);
        (page_token, pages) = (answer.next_page_token, pages + 1);
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((paged, pages), (heads.clone(), heads.len().div_ceil(2)));
    for size in [0, 1001] {
        let page_size = Some(size);
        let request = proto::ListHeadsRequest {
            page_size,
            ..Default::default()
        };
        let refused = client.model.list_heads(request).await.unwrap_err();
        let wanted = [
            ("field", "page_size"),
            ("value", &size.to_string()),
            ("limit", "1000"),
        ];
        assert_eq!(values(&refused), wanted.map(own).into());
    }
    server.stop().await;
}

fn own((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn values(status: &Status) -> HashMap<String, String> {
    let details = status.get_error_details();
    details.error_info().unwrap().metadata.clone()
}

#[test]
fn reasons_are_an_enum_of_the_protocol() {
    let known: BTreeSet<_> = Kind::ALL
        .iter()
        .map(|kind| kind.reason().to_owned())
        .collect();
    let mut told = BTreeSet::new();
    for number in 1.. {
        let Ok(reason) = proto::ErrorReason::try_from(number) else {
            break;
        };
        told.insert(
            reason
                .as_str_name()
                .strip_prefix("ERROR_REASON_")
                .unwrap()
                .to_owned(),
        );
    }
    assert_eq!(told, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_errors_have_equal_sentences_and_their_values_beside_them() {
    let server = Running::start(one_lane()).await;
    let client = server.client().await;
    let mut vision = client.vision.clone();
    let mut refusals = Vec::new();
    for most in ["0", "70000", "4000000000"] {
        let request = proto::DetectRequest {
            image: Some(encoded(png(64, 64, 1))),
            options: Some(proto::DetectionOptions {
                max_detections: Some(most.parse().unwrap()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let refused = vision.detect(request).await.unwrap_err();
        let told = values(&refused);
        assert_eq!(told["value"], most);
        assert_eq!(told["field"], "options.max_detections");
        assert!(told["limit"].parse::<u32>().unwrap() >= 1);
        refusals.push(refused.message().to_owned());
    }
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    let long = |frames: usize| {
        let clip = frostline::client::clip(vec![png(8, 8, 1); frames]);
        proto::RecognizeActionRequest {
            input: Some(proto::recognize_action_request::Input::Clip(clip)),
            ..Default::default()
        }
    };
    let one = vision.recognize_action(long(300)).await.unwrap_err();
    let other = vision.recognize_action(long(400)).await.unwrap_err();
    assert_eq!(one.message(), other.message());
    assert_eq!(
        (&*values(&one)["value"], &*values(&other)["value"]),
        ("300", "400")
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_methods_are_named_and_every_error_has_its_calls_number() {
    let server = Running::start(one_lane()).await;
    let channel = server.channel().await;
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/frostline.v1.VisionService/Dream");
    let codec = tonic_prost::ProstCodec::<proto::DetectRequest, proto::DetectResponse>::default();
    let mut request = tonic::Request::new(proto::DetectRequest::default());
    request
        .metadata_mut()
        .insert("x-request-id", "job-7".parse().unwrap());
    let refused = grpc.unary(request, path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(
        refused
            .message()
            .contains("frostline.v1.VisionService/Dream"),
        "{refused}"
    );
    let info = refused.get_error_details().error_info().unwrap().clone();
    assert_eq!(info.reason, "UNKNOWN_METHOD");
    assert_eq!(info.metadata["method"], "frostline.v1.VisionService/Dream");
    assert_eq!(refused.metadata().get("x-request-id").unwrap(), "job-7");

    let mut client = server.client().await;
    let refused = client
        .detect(Bytes::from_static(b"no image"))
        .await
        .unwrap_err();
    assert!(!refused.metadata().get("x-request-id").unwrap().is_empty());
    let answer = client.vision.detect(proto::DetectRequest {
        image: Some(encoded(png(64, 64, 1))),
        ..Default::default()
    });
    assert!(
        answer
            .await
            .unwrap()
            .metadata()
            .contains_key("x-request-id")
    );
    server.stop().await;
}
