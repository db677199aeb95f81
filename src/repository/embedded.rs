//! The demo models, compiled into the binary.

/// Marker for the files below.
pub(super) struct Embedded;

/// Heads of the demo repository.
pub(super) const HEADS: &[&str] = &["motion", "objects", "scene"];

macro_rules! demo_files {
    ($($path:literal),* $(,)?) => {
        /// The file at `path` inside the demo repository.
        pub(super) fn get(path: &str) -> Option<&'static [u8]> {
            match path {
                $($path => Some(include_bytes!(concat!(
                    env!("CARGO_MANIFEST_DIR"), "/models/demo/", $path
                ))),)*
                _ => None,
            }
        }
    };
}

demo_files! {
    "backbone.toml",
    "backbone.onnx",
    "heads/motion/head.toml",
    "heads/motion/head.onnx",
    "heads/objects/head.toml",
    "heads/objects/head.onnx",
    "heads/scene/head.toml",
    "heads/scene/head.onnx",
}
