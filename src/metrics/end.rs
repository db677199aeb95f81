//! How connections end.

/// Why a connection ended that its caller did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its TLS handshake failed, or it went away in it.
    Handshake,
    /// It did not say in time what it is.
    HandshakeTimeout,
    /// What it speaks is no HTTP/2.
    NotGrpc,
    /// It was idle longest when another came.
    Evicted,
    /// There was no place for it.
    Refused,
}

impl End {
    pub(super) const ALL: [Self; 5] = [
        Self::Handshake,
        Self::HandshakeTimeout,
        Self::NotGrpc,
        Self::Evicted,
        Self::Refused,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::NotGrpc => "not_grpc",
            Self::Evicted => "evicted",
            Self::Refused => "refused",
        }
    }
}
