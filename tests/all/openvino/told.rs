//! What the commands say of the plugin.

use super::*;
use crate::process::check;

/// What `check` says of OpenVINO in `folder`.
fn said(folder: &Path, settings: &[&str]) -> (Option<i32>, String) {
    let mut all = vec![
        "device.device=openvino:cpu".to_owned(),
        format!("device.openvino_plugin={}", folder.display()),
    ];
    all.extend(settings.iter().map(|&setting| setting.to_owned()));
    check(&all)
}

#[test]
fn what_openvino_lacks_is_one_sentence_that_says_what_and_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let refused = |settings: &[&str], wanted: &[&str]| {
        let (code, said) = said(folder.path(), settings);
        assert_eq!(code, Some(1), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        let device = "the device openvino:cpu cannot be used: ";
        for part in [device].iter().chain(wanted) {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
    };
    refused(&[], &[PLUGIN, "is not in", &path, "make runtime"]);
    fs::write(folder.path().join(PLUGIN), b"not a library").unwrap();
    refused(&[], &[FILES[0], "is missing", &path]);
    for file in FILES {
        fs::write(folder.path().join(file), b"").unwrap();
    }
    refused(&[], &["does not take", PLUGIN]);
    for (settings, wanted) in [
        (
            ["device.device=cpu", "device.precision=bf16"],
            "the device cpu cannot be used: bf16",
        ),
        (
            ["device.device=openvino:cpu", "device.precision=bf17"],
            "device.precision",
        ),
        (
            ["device.device=openvino:gpu", "device.precision=auto"],
            "is no device",
        ),
    ] {
        let (code, said) = check(&settings.map(str::to_owned));
        assert!(
            code.is_some_and(|code| code != 0) && said.contains(wanted),
            "{said}"
        );
    }
}

#[test]
fn a_processor_that_the_plugin_does_not_take_is_told() {
    if is_intel() || plugin().is_none() {
        eprintln!("skipped: the plugin takes this machine's processor, or is not there");
        return;
    }
    // As it was fetched.
    let library = Runtime::load(None)
        .unwrap()
        .library()
        .canonicalize()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    for file in FILES.iter().chain([&PLUGIN]) {
        symlink(
            library.parent().unwrap().join(file),
            folder.path().join(file),
        )
        .unwrap();
    }
    let refusal = "offers no device for this processor";
    let (code, refused) = said(folder.path(), &[]);
    assert_eq!(code, Some(1), "{refused}");
    assert!(refused.contains(refusal), "{refused}");
    // Where that is no must it is told, and the next start need not find out again.
    let settings = [
        format!("device.openvino_plugin={}", folder.path().display()),
        format!(
            "device.trial_file={}",
            folder.path().join("trial.json").display()
        ),
    ];
    for how in ["by trial in", "by an earlier trial"] {
        let (code, said) = check(&settings);
        assert_eq!(code, Some(0), "{said}");
        if !said.contains("device cuda:0") {
            let wanted = [
                refusal,
                how,
                "device cpu",
                "chosen: nothing else can be used",
            ];
            assert!(wanted.iter().all(|part| said.contains(part)), "{said}");
        }
    }
}

#[test]
fn check_tells_where_the_backbone_runs_and_what_it_holds() {
    let Some(folder) = plugin() else {
        return;
    };
    let (code, said) = said(folder, &["device.precision=fp32", "engine.lanes=2"]);
    assert_eq!(code, Some(0), "{said}");
    for part in [
        "device openvino:cpu in fp32: as configured",
        "backbone.onnx: 266 on OpenVINOExecutionProvider",
        "MB of it for each of 2 lanes",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}
