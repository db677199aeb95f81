//! Messages whose bytes say little and mean much: refused before they are made.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    abuse::{LIMIT, Witness, bare},
    support::{Running, one_lane, reason},
};

/// What is answered to a call of `path` with the message `bytes`.
async fn answer(sender: &SendRequest<Bytes>, server: &Running, path: &str, bytes: &[u8]) -> Status {
    let mut body = BytesMut::with_capacity(5 + bytes.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(bytes.len()).unwrap());
    body.put_slice(bytes);
    let request = Request::post(format!("http://{}/{path}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut sender = sender.clone().ready().await.unwrap();
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    stream.send_data(body.freeze(), true).unwrap();
    let response = timeout(LIMIT, response).await.expect("no answer").unwrap();
    Status::from_header_map(response.headers()).expect("no status")
}

/// A field of wire type 2 with this content.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_counted_before_they_are_made() {
    let server = Running::start(one_lane()).await;
    let mut witness = Witness::new(&server).await;
    let (sender, connection) = bare(&server, 1 << 20).await;
    let infer = "inference.GRPCInferenceService/ModelInfer";
    let load = "inference.GRPCInferenceService/RepositoryModelLoad";
    let analyze = "frostline.v1.VisionService/Analyze";
    let many = |number: u8| field(number, &[]).repeat(1 << 20);
    let cases = [
        (infer, many(5), "inputs"),
        (infer, many(6), "outputs"),
        (infer, many(7), "raw_input_contents"),
        (infer, many(4), "parameters"),
        // Of one input: parameters, and numbers, packed and one by one.
        (infer, field(5, &many(4)), "parameters"),
        (infer, field(5, &field(5, &many(8))), "bytes_contents"),
        (
            infer,
            field(5, &field(5, &field(3, &[1; 5 << 20]))),
            "int64_contents",
        ),
        (
            infer,
            field(5, &field(5, &[0x18, 1].repeat(5 << 20))),
            "int64_contents",
        ),
        (load, field(3, &[]).repeat(1000), "parameters"),
        (analyze, many(3), "heads"),
        (analyze, field(2, &many(1)), "frames"),
        (
            "frostline.v1.VisionService/RecognizeAction",
            field(1, &many(1)),
            "frames",
        ),
        (
            "frostline.v1.VisionService/ExtractFeatures",
            many(2),
            "map_names",
        ),
    ];
    for (path, message, named) in cases {
        let status = answer(&sender, &server, path, &message).await;
        let got = (status.code(), reason(&status));
        let expected = (Code::InvalidArgument, "LIMIT_EXCEEDED".to_owned());
        assert_eq!(got, expected, "{path} {named}: {status:?}");
        let details = status.get_error_details();
        let field = &details.bad_request().unwrap().field_violations[0].field;
        assert_eq!(field, named, "{path}");
        assert!(status.message().contains("more than"), "{status:?}");
    }
    witness.sees_nothing(&server).await;
    // What is no such message is its caller's mistake.
    for damaged in [&[0x0a, 0x7f][..], &[0xff; 12], &[0x0b]] {
        let status = answer(&sender, &server, analyze, damaged).await;
        let got = (status.code(), reason(&status));
        assert_eq!(
            got,
            (Code::InvalidArgument, "INVALID_ARGUMENT".to_owned()),
            "{damaged:?}"
        );
    }
    witness.sees_nothing(&server).await;
    drop(sender);
    connection.abort();
    server.stop().await;
}
