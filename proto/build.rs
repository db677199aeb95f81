//! Compiles `proto/` to Rust without `protoc`: `protox` parses, `tonic-prost-build` generates.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "frostline/v1/types.proto",
        "frostline/v1/vision.proto",
        "frostline/v1/model.proto",
        "inference/grpc_service.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=models/demo");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("frostline.protoset"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
