//! Any text as a manifest: an error that names the file, or a manifest within its bounds.
#![no_main]

use frostline::repository::{BackboneManifest, HeadManifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match HeadManifest::parse("heads/x/head.toml", text) {
        Ok(head) => {
            assert!(!head.file.contains(['/', '\\']) && head.file != "..");
            assert!(head.frames() >= 1);
            assert_eq!(head.sha256.len(), 64);
        }
        Err(error) => assert!(error.to_string().starts_with("heads/x/head.toml")),
    }
    match BackboneManifest::parse("backbone.toml", text) {
        Ok(backbone) => {
            assert!(!backbone.file.contains(['/', '\\']) && backbone.file != "..");
            assert!(!backbone.input.sizes.is_empty());
            for feature in &backbone.features {
                for size in &backbone.input.sizes {
                    assert!(feature.row_shape(*size).iter().all(|side| *side > 0));
                }
            }
        }
        Err(error) => assert!(error.to_string().starts_with("backbone.toml")),
    }
});
