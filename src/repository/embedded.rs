//! The demo models, compiled into the binary.

/// Marker for the files below.
pub(super) struct Embedded;

/// Heads of the demo repository.
pub(super) const HEADS: &[&str] = match cfg!(feature = "demo-models") {
    true => &["motion", "objects", "scene"],
    false => &[],
};

/// A binary without the feature `demo-models` serves folders only.
#[cfg(not(feature = "demo-models"))]
pub(super) fn get(_path: &str) -> Option<&'static [u8]> {
    None
}

#[cfg(feature = "demo-models")]
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

#[cfg(feature = "demo-models")]
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
