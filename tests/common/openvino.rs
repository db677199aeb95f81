//! OpenVINO's plugin, as it is on processors of Intel, elsewhere with a few lines before it that say so.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use frostline::backend::Runtime;

pub(crate) const PLUGIN: &str = "libonnxruntime_providers_openvino_plugin.so";
pub(crate) const FILES: [&str; 4] = [
    "libopenvino.so.2641",
    "libopenvino_intel_cpu_plugin.so",
    "libopenvino_onnx_frontend.so.2641",
    "libtbb.so.12",
];

/// Functions in ONNX Runtime's table, of version 1.31.
const FUNCTIONS: usize = 428;

/// Whether the plugin takes this processor as it is.
pub(crate) fn is_intel() -> bool {
    let about = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    about.contains("GenuineIntel")
}

/// The folder of a plugin that runs here; `None`, with a word why, where it was not fetched.
pub(crate) fn plugin() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(prepare).as_deref()
}

fn prepare() -> Option<PathBuf> {
    let library = Runtime::load(None)
        .unwrap()
        .library()
        .canonicalize()
        .unwrap();
    let beside = library.parent().unwrap().to_path_buf();
    if !beside.join(PLUGIN).is_file() {
        eprintln!(
            "skipped: {PLUGIN} is not in {}: `make runtime`",
            beside.display()
        );
        return None;
    }
    if is_intel() {
        return Some(beside);
    }
    // One for this test run: others may write theirs meanwhile.
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("openvino-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for file in FILES {
        link(&beside.join(file), &folder.join(file));
    }
    link(&beside.join(PLUGIN), &folder.join("plugin.so"));
    let place =
        std::mem::offset_of!(ort::sys::OrtApi, HardwareDevice_VendorId) / size_of::<usize>();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(folder.join(PLUGIN))
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/common/vendor.c"
        ))
        .args([
            format!("-DVENDOR={place}"),
            format!("-DFUNCTIONS={FUNCTIONS}"),
        ])
        .arg("-ldl")
        .status()
        .unwrap();
    assert!(compiled.success(), "cc failed");
    Some(folder)
}

fn link(from: &Path, to: &Path) {
    let _ = fs::remove_file(to);
    symlink(from, to).unwrap();
}
