//! What is no gRPC call, or a broken one, and is told so: it is its caller's mistake, and never a fault of the server's.

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::{Code, Status, body::Body};

use super::{greeting::HINT, methods::Methods, status::status};
use crate::error::{Error, Kind, Result};

/// HTTP takes this many times `server.header_bytes`, so that a call over the limit is answered in gRPC.
pub(super) const HEADER_ROOM: u32 = 4;

/// Bytes that HTTP/2 counts for each header beside its name and value.
const HEADER_OVERHEAD: usize = 32;

const STATUS: &str = "grpc-status";
const DETAILS: &str = "grpc-status-details-bin";

/// The answer to `request` if it is no call at all.
pub(super) fn answer(request: &Request<Body>) -> Option<Response<Body>> {
    let content = request.headers().get(header::CONTENT_TYPE);
    let known = content.is_some_and(|content| is_grpc(content.as_bytes()));
    if known && request.method() == Method::POST {
        return None;
    }
    let http = match known {
        true => StatusCode::METHOD_NOT_ALLOWED,
        false => StatusCode::UNSUPPORTED_MEDIA_TYPE,
    };
    let content = content.map(|content| String::from_utf8_lossy(content.as_bytes()));
    let shown: String = content.iter().flat_map(|c| c.chars()).take(100).collect();
    let message = match known {
        true => format!("the HTTP method is {}, not POST", request.method()),
        false => format!("the content type is {shown:?}, not application/grpc"),
    };
    // Proxies and gRPC clients find the status in the headers, people read the text.
    let (mut parts, ()) = Status::invalid_argument(&message)
        .into_http::<()>()
        .into_parts();
    parts.status = http;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    parts.headers.insert(header::CONTENT_TYPE, plain);
    if known {
        let post = HeaderValue::from_static("POST");
        parts.headers.insert(header::ALLOW, post);
    }
    let text = format!("{message}; {HINT}");
    Some(Response::from_parts(parts, Body::new(text)))
}

/// Whether this content type is gRPC's with protocol buffers, which are what it means by itself.
fn is_grpc(content: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    content
        .split_at_checked(GRPC.len())
        .is_some_and(|(start, rest)| {
            let rest = match rest.split_at_checked(6) {
                Some((format, rest)) if format.eq_ignore_ascii_case(b"+proto") => rest,
                _ => rest,
            };
            start.eq_ignore_ascii_case(GRPC) && matches!(rest, [] | [b';' | b' ', ..])
        })
}

/// Refuses headers of more than `most` bytes, as HTTP/2 counts them.
pub(super) fn check_headers(headers: &HeaderMap, most: usize) -> Result<()> {
    let one = |(name, value): (&http::HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + HEADER_OVERHEAD
    };
    let bytes: usize = headers.iter().map(one).sum();
    if bytes <= most {
        return Ok(());
    }
    let message = format!("has more than {most} bytes of headers");
    let error = Error::new(Kind::LimitExceeded, message).at("metadata");
    Err(error.with("value", bytes).with("limit", most))
}

/// What a call of a method that the server does not have is told.
pub(super) fn unknown_method(path: &str, methods: &Methods) -> Status {
    let path: String = path.trim_start_matches('/').chars().take(200).collect();
    let service = path.split_once('/').map_or(&*path, |(service, _)| service);
    let mut own: Vec<_> = methods
        .names()
        .filter_map(|name| name.split_once('/'))
        .filter_map(|(other, method)| (other == service).then_some(method))
        .collect();
    own.sort_unstable();
    let message = if own.is_empty() {
        let mut services: Vec<_> = methods
            .names()
            .filter_map(|name| name.split_once('/'))
            .map(|(service, _)| service)
            .collect();
        services.sort_unstable();
        services.dedup();
        let services = services.join(", ");
        format!("there is no method {path:?}: no such service; there are {services}")
    } else {
        let own = own.join(", ");
        format!("there is no method {path:?}: the service has {own}")
    };
    status(&Error::new(Kind::UnknownMethod, message).with("method", path))
}

/// The end of a body that its caller did not send whole. [`refine`] knows it by its code, which nothing else here has.
pub(super) fn gone() -> Status {
    Status::aborted("the caller ended the call")
}

/// Gives an error that the transport's library found in a request the code that it has here. The server's own errors
/// have details and pass as they are, and so does an answer with a message, whose status comes after it.
pub(super) fn refine(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    let Some(code) = headers.get(STATUS) else {
        return response;
    };
    if headers.contains_key(DETAILS) {
        return response;
    }
    let found = || Status::from_header_map(headers);
    match Code::from_bytes(code.as_bytes()) {
        Code::Internal => {
            let text = found().map_or_else(String::new, |status| status.message().to_owned());
            let text: String = text.chars().take(500).collect();
            let message = format!("is no message of this method: {text}");
            status(&Error::invalid("request", message)).into_http()
        }
        Code::Aborted => {
            let message = gone().message().to_owned();
            status(&Error::new(Kind::Cancelled, message)).into_http()
        }
        _ => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_of_grpc_are_known() {
        for good in [
            "application/grpc",
            "application/grpc+proto",
            "Application/gRPC;charset=utf-8",
            "application/grpc+proto; x=y",
        ] {
            assert!(is_grpc(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "application/json",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc+json",
            "application/grpcx",
            "text/plain",
        ] {
            assert!(!is_grpc(bad.as_bytes()), "{bad}");
        }
    }
}
