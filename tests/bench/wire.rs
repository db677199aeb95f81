//! gRPC on bare HTTP/2, without a client library: the load generator shares the server's cores, and what it takes of
//! them is what the server lacks.

use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use frostline::{corked::Corked, proto};
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use prost::Message;
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::{
    common::framing::{PREFIX, framed},
    load,
};

/// What the other side may send ahead, in bytes.
const WINDOW: u32 = 16 << 20;

/// A connection. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wire {
    sender: SendRequest<Bytes>,
    analyze: Uri,
    detect: Uri,
    extract_features: Uri,
}

impl Wire {
    /// Connects to `address`, as a URL.
    pub(crate) async fn connect(address: &str) -> anyhow::Result<Self> {
        let host = address.strip_prefix("http://").context("no plain URL")?;
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(Corked::new(stream))
            .await?;
        // Ends with the last sender.
        tokio::spawn(connection);
        let method = |name| format!("{address}/frostline.v1.VisionService/{name}").parse();
        Ok(Self {
            sender,
            analyze: method("Analyze")?,
            detect: method("Detect")?,
            extract_features: method("ExtractFeatures")?,
        })
    }

    /// A call of one head on `image`.
    pub(crate) async fn analyze(
        &self,
        head: &str,
        image: proto::Image,
        deadline: Option<Duration>,
    ) -> Result<(), Status> {
        let request = load::request(head, image);
        load::check(&self.call(&self.analyze, &request, deadline).await?)
    }

    pub(crate) async fn detect(&self, request: &proto::DetectRequest) -> Result<(), Status> {
        let _: proto::DetectResponse = self.call(&self.detect, request, None).await?;
        Ok(())
    }

    pub(crate) async fn extract_features(
        &self,
        request: &proto::ExtractFeaturesRequest,
    ) -> Result<(), Status> {
        let _: proto::ExtractFeaturesResponse =
            self.call(&self.extract_features, request, None).await?;
        Ok(())
    }

    async fn call<T: Message + Default>(
        &self,
        method: &Uri,
        message: &impl Message,
        deadline: Option<Duration>,
    ) -> Result<T, Status> {
        let call = self.exchange(head(method, deadline), framed(message, false));
        match deadline {
            // The server's answer may be on its way; the caller no longer waits for it.
            Some(deadline) => tokio::time::timeout(deadline, call)
                .await
                .unwrap_or_else(|_| Err(Status::deadline_exceeded("the caller's own clock"))),
            None => call.await,
        }
    }

    async fn exchange<T: Message + Default>(
        &self,
        head: Request<()>,
        message: Bytes,
    ) -> Result<T, Status> {
        let mut sender = self.sender.clone().ready().await.map_err(broken)?;
        let (answer, mut stream) = sender.send_request(head, false).map_err(broken)?;
        stream.send_data(message, true).map_err(broken)?;
        let (head, mut body) = answer.await.map_err(broken)?.into_parts();
        // An answer without a message has its status here.
        if let Some(status) = failure(&head.headers) {
            return Err(status);
        }
        let message = read(&mut body).await.map_err(broken)?;
        match body.trailers().await.map_err(broken)? {
            Some(trailers) => failure(&trailers).map_or(Ok(()), Err)?,
            None => return Err(Status::internal("no status")),
        }
        let none = || Status::internal("no message");
        let message = message.get(PREFIX..).ok_or_else(none)?;
        T::decode(message).map_err(|error| Status::internal(error.to_string()))
    }
}

fn head(method: &Uri, deadline: Option<Duration>) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = method.clone();
    let headers = request.headers_mut();
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let grpc = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, grpc);
    if let Some(deadline) = deadline {
        let timeout = format!("{}m", deadline.as_millis());
        headers.insert("grpc-timeout", timeout.parse().unwrap());
    }
    request
}

/// The whole body, in one piece.
async fn read(body: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        if first.is_empty() {
            first = part;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&first);
        }
        all.extend_from_slice(&part);
    }
    Ok(match all.is_empty() {
        true => first,
        false => all.freeze(),
    })
}

fn failure(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

fn broken(error: h2::Error) -> Status {
    Status::unavailable(error.to_string())
}
