//! Integration tests: real sessions on the demo models, a real gRPC server in this process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod abuse;
mod auth;
mod bad_input;
mod cli;
mod dashboards;
mod device;
mod health;
mod layers;
mod observe;
mod oip;
mod repository;
mod sharing;
mod support;
mod tls;
