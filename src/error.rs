//! The closed set of errors that a caller can meet.
//!
//! Every layer above the leaves returns [`Error`]; the server maps [`Kind`] to a gRPC code in one place.

use std::{fmt, time::Duration};

use schemars::JsonSchema;

/// What went wrong, as a caller sees it. Adding a kind makes the server's mapping fail to compile until it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema)]
#[schemars(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// A field of the request is missing, malformed or out of range.
    InvalidArgument,
    /// The image cannot be decoded.
    InvalidImage,
    /// The request is over a configured limit; sending it again does not help.
    LimitExceeded,
    /// No head of this name is loaded.
    UnknownHead,
    /// The head does another task than the call asks for.
    WrongTask,
    /// The caller is not known: no token, or one that does not hold.
    Unauthenticated,
    /// The caller is known, and may not do this.
    PermissionDenied,
    /// The caller is over its own rate or number of calls at once; the same call may succeed later.
    RateLimited,
    /// The server is full; the same call may succeed later.
    Overloaded,
    /// The caller's deadline passed, or cannot be met.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// The backbone failed on this image.
    BackboneFailed,
    /// The head failed on this image's features.
    HeadFailed,
    /// A head does not load; the one that was there goes on serving.
    LoadFailed,
    /// The server is draining, or its device is gone.
    Unavailable,
    /// The server has no such method.
    UnknownMethod,
    /// A defect of the server.
    Internal,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 17] = [
        Self::InvalidArgument,
        Self::InvalidImage,
        Self::LimitExceeded,
        Self::UnknownHead,
        Self::WrongTask,
        Self::Unauthenticated,
        Self::PermissionDenied,
        Self::RateLimited,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::BackboneFailed,
        Self::HeadFailed,
        Self::LoadFailed,
        Self::Unavailable,
        Self::UnknownMethod,
        Self::Internal,
    ];

    /// The stable name that clients may match on (`google.rpc.ErrorInfo.reason`).
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::InvalidImage => "INVALID_IMAGE",
            Self::LimitExceeded => "LIMIT_EXCEEDED",
            Self::UnknownHead => "UNKNOWN_HEAD",
            Self::WrongTask => "WRONG_TASK",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::RateLimited => "RATE_LIMITED",
            Self::Overloaded => "OVERLOADED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Cancelled => "CANCELLED",
            Self::BackboneFailed => "BACKBONE_FAILED",
            Self::HeadFailed => "HEAD_FAILED",
            Self::LoadFailed => "LOAD_FAILED",
            Self::Unavailable => "UNAVAILABLE",
            Self::UnknownMethod => "UNKNOWN_METHOD",
            Self::Internal => "INTERNAL",
        }
    }
}

/// An error with what its caller needs to act on it.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    field: Option<String>,
    retry_after: Option<Duration>,
    values: Vec<(&'static str, String)>,
}

impl Error {
    /// An error of `kind`; `message` is for people: lower case, no full stop. What differs from call to call does not belong
    /// in it but in [`with`](Self::with), so that equal errors have equal messages.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            field: None,
            retry_after: None,
            values: Vec::new(),
        }
    }

    /// A request's field is wrong.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message).at(field)
    }

    /// Names the request's field that is at fault, as a path (`clip.frames[3].encoded`).
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Tells a program what the message is about: `value`, what was asked for, `limit`, what there may be, and the like.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.values.push((name, value.to_string()));
        self
    }

    /// What [`with`](Self::with) told.
    #[must_use]
    pub fn values(&self) -> &[(&'static str, String)] {
        &self.values
    }

    /// Tells the caller when to try again.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// For people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The request's field at fault, if one is.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// When to try again, if that may help.
    #[must_use]
    pub fn retry_delay(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{field}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {}

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;
