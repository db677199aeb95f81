//! The one place where errors become gRPC statuses.

use std::collections::HashMap;

use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt, pb};

use crate::{
    error::{Error, Kind},
    proto::ERROR_DOMAIN,
};

/// The trailer that tells a client's retry policy how long to wait, in milliseconds (gRPC proposal A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The gRPC code of a kind of error.
pub(super) fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument | Kind::InvalidImage | Kind::LimitExceeded | Kind::WrongTask => {
            Code::InvalidArgument
        }
        Kind::UnknownHead => Code::NotFound,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::Overloaded | Kind::RateLimited => Code::ResourceExhausted,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Cancelled => Code::Cancelled,
        Kind::LoadFailed => Code::FailedPrecondition,
        Kind::Unavailable => Code::Unavailable,
        Kind::UnknownMethod => Code::Unimplemented,
        Kind::BackboneFailed | Kind::HeadFailed | Kind::Internal => Code::Internal,
    }
}

/// What a part of an answer that failed says in place of its result: the same as the error of a whole call.
pub(super) fn part(error: &Error) -> pb::Status {
    let status = status(error);
    // tonic-types wrote it.
    pb::Status::decode(status.details()).unwrap_or_default()
}

/// A status with `google.rpc` details: the reason and what it is about always, the field and the delay where there are
/// any.
pub(super) fn status(error: &Error) -> Status {
    let told = |(name, value): &(&'static str, String)| ((*name).to_owned(), value.clone());
    let mut metadata: HashMap<_, _> = error.values().iter().map(told).collect();
    let refused = matches!(error.kind(), Kind::Unauthenticated | Kind::PermissionDenied);
    if let (Some(field), false) = (error.field(), refused) {
        metadata.insert("field".to_owned(), field.to_owned());
    }
    let mut details = ErrorDetails::with_error_info(error.kind().reason(), ERROR_DOMAIN, metadata);
    if let (Some(field), false) = (error.field(), refused) {
        details.add_bad_request_violation(field, error.message());
    }
    if let Some(delay) = error.retry_delay() {
        details.set_retry_info(Some(delay));
    }
    if error.kind() == Kind::Internal {
        tracing::error!(%error, "internal error");
    }
    let mut status = Status::with_error_details(code(error.kind()), error.to_string(), details);
    if let Some(delay) = error.retry_delay() {
        // What gRPC's own retry policies wait by; they do not read RetryInfo.
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).max(1);
        status.metadata_mut().insert(PUSHBACK, millis.into());
    }
    status
}

/// A code as the gRPC specification writes it.
pub(super) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
