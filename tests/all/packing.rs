//! Packed messages: taken and answered as asked, and never more than a plain message would be.

use std::{io::Write, net::SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use frostline::{
    client::{encoded, raw},
    proto::{
        self,
        inference::{ModelInferRequest, model_infer_request::InferInputTensor},
    },
    server::ServerConfig,
};
use h2::client::SendRequest;
use http::HeaderMap;
use prost::Message;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::{
    abuse::{LIMIT, bare_to},
    common::framing::{PREFIX, framed},
    process::Process,
    support::{Running, one_lane, png, reason},
};

const DETECT: &str = "frostline.v1.VisionService/Detect";
const FEATURES: &str = "frostline.v1.VisionService/ExtractFeatures";
const INFER: &str = "inference.GRPCInferenceService/ModelInfer";
const CHECK: &str = "grpc.health.v1.Health/Check";

fn packed(encoding: &str, message: &[u8]) -> Vec<u8> {
    match encoding {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(message).unwrap();
            encoder.finish().unwrap()
        }
        "zstd" => zstd::stream::encode_all(message, 3).unwrap(),
        _ => message.to_vec(),
    }
}

fn unpacked(encoding: &str, message: &[u8]) -> Vec<u8> {
    match encoding {
        "gzip" => {
            let mut out = Vec::new();
            std::io::copy(&mut GzDecoder::new(message), &mut out).unwrap();
            out
        }
        "zstd" => zstd::stream::decode_all(message).unwrap(),
        _ => message.to_vec(),
    }
}

fn behind_prefix(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX + message.len());
    bytes.put_u8(1);
    bytes.put_u32(u32::try_from(message.len()).unwrap());
    bytes.put_slice(message);
    bytes.freeze()
}

/// What a call got: the answer's headers, its bytes and its status.
struct Answer {
    headers: HeaderMap,
    bytes: Vec<u8>,
    status: Status,
}

impl Answer {
    /// Its message, and whether it came packed.
    fn message<T: Message + Default>(&self) -> (T, bool) {
        assert_eq!(self.status.code(), Code::Ok, "{:?}", self.status);
        let (prefix, message) = self.bytes.split_at(PREFIX);
        let is_packed = prefix[0] == 1;
        let encoding = match is_packed {
            true => self.headers["grpc-encoding"].to_str().unwrap(),
            false => "",
        };
        let message = unpacked(encoding, message);
        (T::decode(&message[..]).unwrap(), is_packed)
    }
}

/// A call with these headers, its bytes sent in `pieces`.
async fn call(
    sender: &mut SendRequest<Bytes>,
    address: SocketAddr,
    method: &str,
    headers: &[(&str, &str)],
    bytes: Bytes,
    pieces: usize,
) -> Answer {
    let request = http::Request::post(format!("http://{address}/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    let mut ready = sender.clone().ready().await.unwrap();
    let (answer, mut stream) = ready
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    let piece = bytes.len().div_ceil(pieces).max(1);
    for piece in bytes.chunks(piece) {
        // A refusal may come first, and end the stream.
        let _ = stream.send_data(Bytes::copy_from_slice(piece), false);
    }
    let _ = stream.send_data(Bytes::new(), true);
    let response = timeout(LIMIT, answer).await.expect("no answer").unwrap();
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(Ok(piece)) = body.data().await {
        bytes.extend_from_slice(&piece);
        let _ = body.flow_control().release_capacity(piece.len());
    }
    let trailers = body.trailers().await.ok().flatten().unwrap_or_default();
    let status = Status::from_header_map(&trailers);
    let status = status.or_else(|| Status::from_header_map(&parts.headers));
    Answer {
        headers: parts.headers,
        bytes,
        status: status.expect("no status"),
    }
}

fn infer() -> ModelInferRequest {
    let mut raw = BytesMut::new();
    let file = png(96, 64, 5);
    raw.put_u32_le(u32::try_from(file.len()).unwrap());
    raw.put_slice(&file);
    ModelInferRequest {
        model_name: "objects".to_owned(),
        inputs: vec![InferInputTensor {
            name: "image".to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![1],
            ..Default::default()
        }],
        raw_input_contents: vec![raw.freeze()],
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_come_packed_are_answered_as_plain_ones() {
    let server = Running::start(one_lane()).await;
    let address = server.address;
    let (mut sender, _end) = bare_to(address, 1 << 24).await;
    let features = proto::ExtractFeaturesRequest {
        image: Some(encoded(png(96, 64, 5))),
        ..Default::default()
    };
    // Raw pixels of a size that is unpacked partly elsewhere.
    let detect = proto::DetectRequest {
        image: Some(raw(800, 600, png_pixels(800, 600))),
        ..Default::default()
    };
    let ask =
        async |sender: &mut SendRequest<Bytes>, method, headers: &[(&str, &str)], bytes, pieces| {
            call(sender, address, method, headers, bytes, pieces).await
        };
    let plain = ask(&mut sender, FEATURES, &[], framed(&features, false), 1).await;
    assert!(!plain.headers.contains_key("grpc-encoding"));
    let (plain, _) = plain.message::<proto::ExtractFeaturesResponse>();
    let found = ask(&mut sender, DETECT, &[], framed(&detect, false), 1).await;
    let found = found.message::<proto::DetectResponse>().0.result;
    let inferred = ask(&mut sender, INFER, &[], framed(&infer(), false), 1).await;
    let (inferred, _) = inferred.message::<proto::inference::ModelInferResponse>();

    for encoding in ["gzip", "zstd"] {
        let headers = [
            ("grpc-encoding", encoding),
            ("grpc-accept-encoding", "identity,deflate,gzip,zstd"),
        ];
        let send = |message: Vec<u8>| behind_prefix(&packed(encoding, &message));
        for pieces in [1, 3, 1000] {
            let bytes = send(features.encode_to_vec());
            let answer = ask(&mut sender, FEATURES, &headers, bytes, pieces).await;
            assert_eq!(answer.headers["grpc-encoding"], encoding);
            let (got, is_packed) = answer.message::<proto::ExtractFeaturesResponse>();
            assert!(is_packed, "{encoding}");
            assert_eq!(got.maps, plain.maps, "{encoding} {pieces}");
        }
        let bytes = send(detect.encode_to_vec());
        let answer = ask(&mut sender, DETECT, &headers, bytes, 7).await;
        let (got, _) = answer.message::<proto::DetectResponse>();
        assert_eq!(got.result, found, "{encoding}");
        // What is short comes as it is, though others may be packed.
        let check = send(HealthCheckRequest::default().encode_to_vec());
        let answer = ask(&mut sender, CHECK, &headers, check, 1).await;
        let (got, is_packed) = answer.message::<HealthCheckResponse>();
        assert_eq!((got.status, is_packed), (1, false));
        let bytes = send(infer().encode_to_vec());
        let answer = ask(&mut sender, INFER, &headers, bytes, 2).await;
        let (got, _) = answer.message::<proto::inference::ModelInferResponse>();
        assert_eq!(got.outputs, inferred.outputs, "{encoding}");
        assert_eq!(got.raw_output_contents, inferred.raw_output_contents);
        // A plain message among those that may be packed, and a packed answer to a plain request.
        let bytes = framed(&features, false);
        let answer = ask(&mut sender, FEATURES, &headers, bytes.clone(), 3).await;
        let (got, _) = answer.message::<proto::ExtractFeaturesResponse>();
        assert_eq!(got.maps, plain.maps);
        let asked = [("grpc-accept-encoding", encoding)];
        let answer = ask(&mut sender, FEATURES, &asked, bytes.clone(), 1).await;
        assert!(answer.message::<proto::ExtractFeaturesResponse>().1);
        // Clients that only say what they could unpack, as most do unasked, get it plain.
        let could = [("grpc-accept-encoding", "identity, deflate, gzip")];
        let answer = ask(&mut sender, FEATURES, &could, bytes, 1).await;
        assert!(!answer.message::<proto::ExtractFeaturesResponse>().1);
    }
    drop(sender);
    server.stop().await;
}

fn png_pixels(width: u32, height: u32) -> Bytes {
    let image = image::load_from_memory(&png(width, height, 5)).unwrap();
    image.into_rgb8().into_raw().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_unpacked_is_refused_with_its_reason() {
    let server = Running::start(one_lane()).await;
    let address = server.address;
    let (mut sender, _end) = bare_to(address, 65_535).await;
    let good = proto::DetectRequest {
        image: Some(encoded(png(64, 64, 1))),
        ..Default::default()
    };
    for encoding in ["gzip", "zstd"] {
        let headers = [("grpc-encoding", encoding)];
        let whole = packed(encoding, &good.encode_to_vec());
        let more = [&whole[..], b"more"].concat();
        let cases: [(&str, Bytes); 4] = [
            ("not packed", framed(&good, true)),
            ("cut", behind_prefix(&whole[..whole.len() / 2])),
            ("with more behind", behind_prefix(&more)),
            ("body cut", behind_prefix(&whole).slice(..whole.len() / 2)),
        ];
        for (what, bytes) in cases {
            let answer = call(&mut sender, address, DETECT, &headers, bytes, 2).await;
            let code = answer.status.code();
            assert_eq!(code, Code::InvalidArgument, "{encoding} {what}");
            // What gzip's length is read from may be any bytes where its end is missing.
            let told = reason(&answer.status);
            let any = what.contains("cut") || what.contains("more");
            let expected = told == "INVALID_ARGUMENT" || any && told == "LIMIT_EXCEEDED";
            assert!(expected, "{encoding} {what}: {told}");
        }
    }
    // The length that gzip says at its end is another one.
    let headers = [("grpc-encoding", "gzip")];
    let whole = packed("gzip", &good.encode_to_vec());
    let length = good.encoded_len();
    for (claimed, expected) in [
        (0, "LIMIT_EXCEEDED"),
        (length - 1, "LIMIT_EXCEEDED"),
        (length + 1, "INVALID_ARGUMENT"),
        (50 << 20, "INVALID_ARGUMENT"),
        (1 << 31, "LIMIT_EXCEEDED"),
    ] {
        let mut bytes = whole.clone();
        let end = bytes.len() - 4;
        bytes[end..].copy_from_slice(&u32::try_from(claimed).unwrap().to_le_bytes());
        let bytes = behind_prefix(&bytes);
        let answer = call(&mut sender, address, DETECT, &headers, bytes, 2).await;
        assert_eq!(answer.status.code(), Code::InvalidArgument, "{claimed}");
        // The check sum at the end is wrong as well, and may be what is found first.
        let told = reason(&answer.status);
        assert!(
            told == expected || told == "INVALID_ARGUMENT",
            "{claimed}: {told}"
        );
    }
    let headers = [("grpc-encoding", "br")];
    let answer = call(
        &mut sender,
        address,
        DETECT,
        &headers,
        framed(&good, true),
        1,
    )
    .await;
    assert_eq!(answer.status.code(), Code::Unimplemented);
    assert_eq!(answer.headers["grpc-accept-encoding"], "gzip,zstd,identity");
    drop(sender);
    server.stop().await;

    // Where it is switched off, nothing is unpacked, and nothing packed.
    let off = ServerConfig {
        compression: false,
        ..ServerConfig::default()
    };
    let server = Running::start_with(one_lane(), off).await;
    let address = server.address;
    let (mut sender, _end) = bare_to(address, 1 << 24).await;
    let headers = [("grpc-encoding", "gzip")];
    let bytes = behind_prefix(&packed("gzip", &good.encode_to_vec()));
    let answer = call(&mut sender, address, DETECT, &headers, bytes, 1).await;
    assert_eq!(answer.status.code(), Code::Unimplemented);
    assert_eq!(answer.headers["grpc-accept-encoding"], "identity");
    let asked = [("grpc-accept-encoding", "gzip")];
    let answer = call(
        &mut sender,
        address,
        DETECT,
        &asked,
        framed(&good, false),
        1,
    )
    .await;
    assert!(!answer.headers.contains_key("grpc-encoding"));
    assert!(!answer.message::<proto::DetectResponse>().1);
    drop(sender);
    server.stop().await;
}

/// A request with a file of `bytes` zeros.
fn zeros(bytes: usize) -> Vec<u8> {
    let request = proto::DetectRequest {
        image: Some(encoded(vec![0; bytes].into())),
        ..Default::default()
    };
    request.encode_to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_takes_no_more_memory_than_an_honest_message() {
    // Just under the limit of a request, and far over it.
    const HONEST: usize = 60 << 20;
    const BOMB: usize = 512 << 20;
    // KiB, as the kernel counts; the allocator may hold some of what is free.
    const SLACK: u64 = 24 << 10;
    let high_water = |process: &Process| {
        let pid = i32::try_from(process.child.id()).unwrap();
        let status = procfs::process::Process::new(pid).unwrap().status();
        status.unwrap().vmhwm.unwrap()
    };
    let process = Process::start(&[]).await;
    let (mut sender, _end) = bare_to(process.address, 65_535).await;
    let honest = proto::DetectRequest::decode(&zeros(HONEST)[..]).unwrap();
    let honest = framed(&honest, false);
    let answer = call(&mut sender, process.address, DETECT, &[], honest, 256).await;
    assert_eq!(answer.status.code(), Code::InvalidArgument);
    let plain = high_water(&process);
    drop(sender);
    process.stop().await;

    for encoding in ["gzip", "zstd"] {
        for (bytes, expected) in [(BOMB, "LIMIT_EXCEEDED"), (HONEST, "")] {
            let process = Process::start(&[]).await;
            let (mut sender, _end) = bare_to(process.address, 65_535).await;
            let bomb = behind_prefix(&packed(encoding, &zeros(bytes)));
            assert!(bomb.len() < 1 << 20, "{} bytes", bomb.len());
            let headers = [("grpc-encoding", encoding)];
            let answer = call(&mut sender, process.address, DETECT, &headers, bomb, 1).await;
            assert_eq!(answer.status.code(), Code::InvalidArgument);
            if !expected.is_empty() {
                assert_eq!(reason(&answer.status), expected);
                assert!(answer.status.message().contains("unpacks"), "{encoding}");
            }
            let took = high_water(&process);
            eprintln!("{encoding} {bytes}: {took} KiB, plain {plain} KiB");
            assert!(took <= plain + SLACK, "{encoding} {bytes}: {took}, {plain}");
            drop(sender);
            process.stop().await;
        }
    }
}
