//! Compiles `proto/` to Rust without `protoc`: `protox` parses, `tonic-prost-build` generates.

use std::{env, fs, path::PathBuf, process::Command};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "frostline/v1/types.proto",
        "frostline/v1/stream.proto",
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
        .extern_path(".google.rpc", "::tonic_types::pb")
        .extern_path(".google.api", "::prost_types")
        .compile_fds_with_config(descriptors, names)?;
    println!("cargo:rustc-env=BUILT_COMMIT={}", commit());
    Ok(())
}

/// The commit that is built: `FROSTLINE_COMMIT`, or what git says. Only a release asks, so that a commit makes nobody
/// compile a development build again.
fn commit() -> String {
    println!("cargo:rerun-if-env-changed=FROSTLINE_COMMIT");
    if let Ok(given) = env::var("FROSTLINE_COMMIT")
        && !given.is_empty()
    {
        return given;
    }
    if env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return "development".to_owned();
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // Grows with each commit; HEAD itself only names a branch.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && fs::exists(&log).unwrap_or(false)
    {
        println!("cargo:rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned())
}
