//! Messages, clients and servers generated from `proto/`, and the codec that bounds what a caller's message may hold.

mod bounds;
pub mod codec;
mod generated;
mod schema;

pub use generated::*;

/// The domain of the reasons in `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "frostline.v1";

/// The protocol's descriptors, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/frostline.protoset"));
