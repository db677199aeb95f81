//! Messages, clients and servers generated from `proto/frostline/v1`.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

tonic::include_proto!("frostline.v1");

/// The protocol's descriptors, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/frostline.protoset"));
