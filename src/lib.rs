//! Frostline: one frozen vision backbone, many light heads, one gRPC service.
//!
//! Layers, imports going downward only:
//!
//! ```text
//! main, cli       commands
//! server, client  the protocol
//! stream          flows of frames, clips, accounts
//! engine          sharing, batching, scheduling
//! backend         ONNX Runtime          task   outputs to results      media  images
//! track           objects over frames
//! repository      manifests and files   metrics, telemetry, trace   error, config, cores, corked, descriptors, files,
//!                                                                      memory, proto, slice
//! ```

pub mod backend;
pub mod cli;
pub mod client;
pub mod config;
mod cores;
pub mod corked;
mod descriptors;
pub mod engine;
pub mod error;
mod files;
pub mod media;
mod memory;
pub mod metrics;
pub mod proto;
pub mod repository;
pub mod server;
mod shares;
pub mod slice;
pub mod stream;
pub mod task;
pub mod telemetry;
pub mod trace;
pub mod track;

/// The version, as the crate's.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that a release build was made of; `unknown` where the build could not tell, `development` for others.
pub const COMMIT: &str = env!("BUILT_COMMIT");
