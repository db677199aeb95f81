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
