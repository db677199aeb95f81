//! Integration tests: real sessions on the demo models, a real gRPC server in this process.

mod bad_input;
mod layers;
mod repository;
mod sharing;
mod support;
