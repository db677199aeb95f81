//! Messages, clients and servers generated from `proto/`.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

tonic::include_proto!("frostline.v1");

/// The Open Inference Protocol.
pub mod inference {
    tonic::include_proto!("inference");
}

/// The protocol's descriptors, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/frostline.protoset"));
