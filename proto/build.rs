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
    let mut names = tonic_prost_build::Config::new();
    names.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::proto::codec::Codec")
        .compile_fds_with_config(descriptors, names)?;
    Ok(())
}
