//! Integration tests: real sessions on the demo models, a real gRPC server in this process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod abuse;
mod admin;
mod audit;
mod auth;
mod bad_heads;
mod bad_input;
mod budget;
mod cli;
#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "the benchmark takes other parts of it")]
mod common;
mod connections;
mod conservation;
mod contract;
mod costs;
mod dashboards;
mod deadlines;
mod descriptors;
mod device;
mod drain;
mod foreign;
mod forms;
mod geometry;
mod health;
mod keypoints;
mod layers;
mod library;
mod lifecycle;
mod messages;
mod observe;
mod oip;
mod openvino;
mod overload;
mod packing;
mod poison;
mod preflight;
mod process;
mod protocol;
mod reloads;
mod repository;
mod sharing;
mod sizes;
mod sockets;
mod streams;
mod support;
mod systemd;
mod tls;
mod tokens;
mod told;
mod traces;
mod track;
mod uploads;
