//! A bad request gets the right code and names its field; the server goes on.

use bytes::Bytes;
use frostline::{
    client::{clip, encoded, raw},
    proto,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::{Running, one_lane, png, reason};

fn field(status: &Status) -> String {
    let details = status.get_error_details();
    let violation = details
        .bad_request()
        .and_then(|bad| bad.field_violations.first());
    violation
        .map(|violation| violation.field.clone())
        .unwrap_or_default()
}

/// A PNG whose header claims `side` x `side` pixels.
fn claims(side: u32) -> Bytes {
    let mut bytes = png(1, 1, 0).to_vec();
    bytes[16..20].copy_from_slice(&side.to_be_bytes());
    bytes[20..24].copy_from_slice(&side.to_be_bytes());
    let crc = !bytes[12..29].iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    });
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be_read() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let whole = png(64, 64, 3);
    let cases = [
        (
            "empty",
            encoded(Bytes::new()),
            "INVALID_ARGUMENT",
            "image.encoded",
        ),
        (
            "another format",
            encoded(Bytes::from_static(b"%PDF-1.7 ...")),
            "INVALID_IMAGE",
            "image.encoded",
        ),
        (
            "truncated",
            encoded(whole.slice(..whole.len() / 2)),
            "INVALID_IMAGE",
            "image.encoded",
        ),
        (
            "30000 x 30000",
            encoded(claims(30_000)),
            "LIMIT_EXCEEDED",
            "image.encoded",
        ),
        (
            "100 megapixels",
            encoded(claims(10_000)),
            "LIMIT_EXCEEDED",
            "image.encoded",
        ),
        (
            "nothing",
            proto::Image::default(),
            "INVALID_ARGUMENT",
            "image",
        ),
        (
            "raw of another length",
            raw(10, 10, Bytes::from_static(&[0; 7])),
            "INVALID_IMAGE",
            "image.raw",
        ),
        (
            "raw of no pixels",
            raw(0, 10, Bytes::new()),
            "INVALID_IMAGE",
            "image.raw",
        ),
        (
            "raw beyond all limits",
            raw(u32::MAX, u32::MAX, Bytes::new()),
            "LIMIT_EXCEEDED",
            "image.raw",
        ),
    ];
    for (name, image, expected, at) in cases {
        let request = proto::DetectRequest {
            image: Some(image),
            ..Default::default()
        };
        let status = client.vision.detect(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert_eq!(
            (reason(&status).as_str(), field(&status).as_str()),
            (expected, at),
            "{name}"
        );
    }
    assert_eq!(server.engine.counters().backbone_rows, 0);
    client.detect(png(1, 1, 0)).await.unwrap();
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clips_that_do_not_hold_together() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let mut recognize = async |frames: Vec<Bytes>| {
        let input = Some(proto::recognize_action_request::Input::Clip(clip(frames)));
        let request = proto::RecognizeActionRequest {
            input,
            ..Default::default()
        };
        client.vision.recognize_action(request).await.unwrap_err()
    };
    let none = recognize(Vec::new()).await;
    assert_eq!(
        (none.code(), field(&none).as_str()),
        (Code::InvalidArgument, "clip.frames")
    );
    let mixed = recognize(vec![png(64, 48, 0), png(48, 64, 0)]).await;
    assert_eq!(field(&mixed), "clip.frames[1].encoded");
    let many = recognize(vec![png(8, 8, 0); 65]).await;
    assert_eq!(
        (reason(&many).as_str(), field(&many).as_str()),
        ("LIMIT_EXCEEDED", "clip.frames")
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_options_that_do_not_exist() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let image = || Some(encoded(png(32, 32, 0)));

    let request = proto::DetectRequest {
        image: image(),
        head: "nobody".to_owned(),
        ..Default::default()
    };
    let status = client.vision.detect(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "UNKNOWN_HEAD")
    );

    let request = proto::DetectRequest {
        image: image(),
        head: "scene".to_owned(),
        ..Default::default()
    };
    let status = client.vision.detect(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::InvalidArgument, "WRONG_TASK")
    );

    let status = client
        .analyze_image(png(32, 32, 0), &["motion"])
        .await
        .unwrap_err();
    assert_eq!(
        (reason(&status).as_str(), field(&status).as_str()),
        ("WRONG_TASK", "heads[0]")
    );
    let status = client
        .analyze_image(png(32, 32, 0), &["scene", "scene"])
        .await
        .unwrap_err();
    assert_eq!(field(&status), "heads[1]");

    for threshold in [f32::NAN, -0.1, 1.5, f32::INFINITY] {
        let options = proto::DetectionOptions {
            score_threshold: Some(threshold),
            ..Default::default()
        };
        let request = proto::DetectRequest {
            image: image(),
            options: Some(options),
            ..Default::default()
        };
        let status = client.vision.detect(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(field(&status), "options.score_threshold");
    }

    let mut request = tonic::Request::new(proto::DetectRequest {
        image: image(),
        ..Default::default()
    });
    request.set_timeout(std::time::Duration::ZERO);
    let status = client.vision.detect(request).await.unwrap_err();
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{status:?}"
    );

    client.detect(png(32, 32, 0)).await.unwrap();
    server.settled().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_head_gives_is_refused_with_the_bound() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let most = |name: &str| {
        let head = server.engine.head(name).unwrap();
        let manifest = &head.manifest;
        match name {
            "objects" => u32::try_from(manifest.postprocess.detection.max_detections()).unwrap(),
            _ => u32::try_from(manifest.labels.len()).unwrap(),
        }
    };
    let (detections, labels) = (most("objects"), most("motion"));
    let detection = |most: u32| proto::DetectionOptions {
        max_detections: Some(most),
        ..Default::default()
    };
    let image = || Some(encoded(png(32, 32, 0)));
    let frames = || clip(vec![png(32, 32, 0); 2]);
    let refused = |status: &tonic::Status, at: &str, bound: u32| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(field(status), at);
        let bound = format!("from 1 to {bound}");
        assert!(status.message().contains(&bound), "{status:?}");
    };
    let mut detect = async |most: u32| {
        let request = proto::DetectRequest {
            image: image(),
            options: Some(detection(most)),
            ..Default::default()
        };
        client.vision.detect(request).await
    };
    detect(detections).await.unwrap();
    let status = detect(detections + 1).await.unwrap_err();
    refused(&status, "options.max_detections", detections);

    let mut recognize = async |top_k: u32| {
        let request = proto::RecognizeActionRequest {
            input: Some(proto::recognize_action_request::Input::Clip(frames())),
            options: Some(proto::ClassificationOptions { top_k: Some(top_k) }),
            ..Default::default()
        };
        client.vision.recognize_action(request).await
    };
    let top = recognize(labels).await.unwrap().into_inner();
    assert_eq!(top.result.unwrap().top.len(), labels as usize);
    let status = recognize(labels + 1).await.unwrap_err();
    refused(&status, "options.top_k", labels);

    let mut analyze = async |most: u32, top_k: u32| {
        let request = proto::AnalyzeRequest {
            input: Some(proto::analyze_request::Input::Clip(frames())),
            detection: Some(detection(most)),
            classification: Some(proto::ClassificationOptions { top_k: Some(top_k) }),
            ..Default::default()
        };
        client.vision.analyze(request).await
    };
    analyze(detections, labels).await.unwrap();
    let status = analyze(detections + 1, labels).await.unwrap_err();
    refused(&status, "detection.max_detections", detections);
    let status = analyze(detections, labels + 1).await.unwrap_err();
    refused(&status, "classification.top_k", labels);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn features_come_in_the_order_that_was_asked_for() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let mut extract = async |names: &[&str]| {
        let request = proto::ExtractFeaturesRequest {
            image: Some(encoded(png(32, 32, 0))),
            map_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        };
        let answer = client.vision.extract_features(request).await?;
        Ok::<_, tonic::Status>(answer.into_inner().maps)
    };
    let all = extract(&[]).await.unwrap();
    let names: Vec<_> = all.iter().map(|tensor| tensor.name.as_str()).collect();
    let backwards: Vec<_> = names.iter().rev().copied().collect();
    let asked = extract(&backwards).await.unwrap();
    assert!(asked.iter().eq(all.iter().rev()), "{backwards:?}");
    let two = [names[2], names[0]];
    let asked = extract(&two).await.unwrap();
    assert!(asked.iter().eq([&all[2], &all[0]]));
    let status = extract(&[names[0], names[0]]).await.unwrap_err();
    assert_eq!(field(&status), "map_names[1]");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_is_instead_is_said() {
    let server = Running::start(one_lane()).await;
    let mut client = server.client().await;
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    let cases: [(&[u8], &str); 6] = [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"II*\0\x08\0\0\0", "a TIFF picture"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQ", "base64 text"),
        (lfs, "a Git LFS pointer"),
        (
            include_bytes!("../reference/cases/12bit.jpg"),
            "unsupported jpeg image: 12-bit samples",
        ),
    ];
    for (bytes, what) in cases {
        let status = client
            .analyze_image(Bytes::copy_from_slice(bytes), &["scene"])
            .await
            .unwrap_err();
        assert_eq!(reason(&status), "INVALID_IMAGE", "{status:?}");
        assert_eq!(field(&status), "image.encoded");
        assert!(status.message().contains(what), "{what}: {status:?}");
    }
    server.stop().await;
}
