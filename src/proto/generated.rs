//! What the build made of `proto/`.
#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

tonic::include_proto!("frostline.v1");

/// The Open Inference Protocol.
pub mod inference {
    tonic::include_proto!("inference");
}
