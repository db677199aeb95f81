//! The trial at the start.

use super::*;
use crate::process::check;

fn trial_options(file: &Path) -> TrialOptions {
    TrialOptions {
        // However busy the machine is: what is not tried cannot be checked.
        budget: Duration::from_secs(120),
        file: Some(file.to_path_buf()),
    }
}

#[test]
fn a_trial_takes_what_is_clearly_faster_and_is_remembered_for_the_same_work() {
    let Some(folder) = plugin() else {
        return;
    };
    let asked = DeviceOptions {
        openvino_plugin: Some(folder.to_path_buf()),
        ..DeviceOptions::default()
    };
    let runtime = Runtime::load(None).unwrap().on(&asked).unwrap();
    if runtime.device().is_gpu() {
        eprintln!("skipped: a GPU comes before every CPU provider");
        return;
    }
    let repository = Repository::embedded().unwrap();
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("trial.json");
    let choose = |lanes: usize| {
        let config = EngineConfig {
            lanes,
            ..EngineConfig::default()
        };
        let chosen = engine::choose(&runtime, &repository, &config, &trial_options(&file));
        let (runtime, trial) = chosen.unwrap();
        (runtime, trial.unwrap())
    };
    let (placed, trial) = choose(2);
    assert!(!trial.remembered);
    let names: Vec<_> = trial.tried.iter().map(engine::Tried::name).collect();
    assert_eq!(
        names,
        ["cpu", "openvino:cpu in bf16", "openvino:cpu in fp32"]
    );
    let chosen = trial.chosen().unwrap();
    assert_eq!(
        trial
            .tried
            .iter()
            .filter(|one| one.verdict.starts_with("chosen"))
            .count(),
        1
    );
    assert_eq!(chosen.device, placed.device().options().device);
    assert!((trial.tried[0].ratio - 1.0).abs() < 1e-9);
    for one in &trial.tried {
        assert!(!one.verdict.is_empty(), "{one:?}");
        match one.rate {
            Some((rate, batch)) => assert!(rate > 0.0 && [1, 4].contains(&batch), "{one:?}"),
            None => assert!(one.verdict.contains("bf16"), "{one:?}"),
        }
        // Slower than fp32 on ONNX Runtime's own provider is never taken, nor what is about as fast.
        if one == chosen && one.device != DeviceChoice::Cpu {
            assert!(one.ratio >= 1.03 && one.verdict.contains("fp32"), "{one:?}");
        }
    }
    assert!(trial.tried[2].rate.is_some(), "{trial:?}");
    let (again, read) = choose(2);
    assert!(read.remembered);
    assert_eq!(read.tried, trial.tried);
    assert_eq!(again.device().name(), placed.device().name());
    // Another number of lanes is other work.
    assert!(!choose(1).1.remembered);
}

#[test]
fn a_trial_that_is_not_wanted_or_has_no_choice_costs_nothing() {
    let repository = Repository::embedded().unwrap();
    let config = EngineConfig::default();
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("trial.json");
    let cpu = Runtime::load(None).unwrap();
    let (runtime, trial) =
        engine::choose(&cpu, &repository, &config, &trial_options(&file)).unwrap();
    assert!(trial.is_none() && runtime.device().name() == "cpu");
    // No plugin: one way is left, and nothing is loaded to find that out.
    let nowhere = DeviceOptions {
        openvino_plugin: Some(kept.path().to_path_buf()),
        ..DeviceOptions::default()
    };
    let auto = cpu.on(&nowhere).unwrap();
    if auto.device().is_gpu() {
        return;
    }
    let (runtime, trial) =
        engine::choose(&auto, &repository, &config, &trial_options(&file)).unwrap();
    let trial = trial.unwrap();
    assert_eq!(runtime.device().name(), "cpu");
    assert_eq!(trial.chosen().unwrap().device, DeviceChoice::Cpu);
    assert!(trial.tried.iter().all(|one| one.rate.is_none()));
    assert!(trial.tried[1].verdict.contains(PLUGIN), "{trial:?}");
    assert!(!file.exists());
    let none = TrialOptions::default();
    assert!(
        engine::choose(&auto, &repository, &config, &none)
            .unwrap()
            .1
            .is_none()
    );
    // What is asked for and cannot be had is no choice either.
    let bf16 = cpu.on(&DeviceOptions {
        precision: Precision::Bf16,
        ..nowhere
    });
    let error =
        engine::choose(&bf16.unwrap(), &repository, &config, &trial_options(&file)).unwrap_err();
    assert!(error.to_string().contains(PLUGIN), "{error}");
}

#[test]
fn check_shows_every_way_and_the_next_start_reads_it() {
    let Some(folder) = plugin() else {
        return;
    };
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("trial.json");
    let settings = [
        format!("device.openvino_plugin={}", folder.display()),
        format!("device.trial_file={}", file.display()),
        "device.trial_ms=120000".to_owned(),
        "engine.lanes=2".to_owned(),
    ];
    let (code, first) = check(&settings);
    assert_eq!(code, Some(0), "{first}");
    if !first.contains("by trial in ") {
        assert!(first.contains("device cuda:0"), "{first}");
        return;
    }
    for part in [
        "tried",
        "images/s",
        "\ncpu ",
        "\nopenvino:cpu in bf16 ",
        "\nopenvino:cpu in fp32 ",
        "chosen: ",
    ] {
        assert!(first.contains(part), "{part:?} is not in {first}");
    }
    let (code, second) = check(&settings);
    assert_eq!(code, Some(0), "{second}");
    assert!(second.contains("by an earlier trial"), "{second}");
}
