//! `frostline track`: lines of frames in, the same with ids out.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

const CLIP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/samples/clip-1");

fn track(arguments: &[&str], input: &str) -> Output {
    let mut process = Command::new(env!("CARGO_BIN_EXE_frostline"))
        .arg("track")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Ended early, it reads no more: what it says is looked at.
    let _ = process.stdin.take().unwrap().write_all(input.as_bytes());
    process.wait_with_output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let read = text.lines().map(|line| serde_json::from_str(line).unwrap());
    read.collect()
}

fn frame(time: f64, boxes: &[[f32; 4]]) -> Value {
    let found: Vec<_> = boxes
        .iter()
        .map(|sides| json!({"box": sides, "score": 0.9, "mine": "kept"}))
        .collect();
    json!({"time": time, "detections": found})
}

#[test]
fn what_detect_prints_is_passed_on_with_a_track_for_each_detection() {
    let frames = Command::new(env!("CARGO_BIN_EXE_frostline"))
        .args(["detect", "--json", CLIP])
        .output()
        .unwrap();
    assert!(frames.status.success(), "{frames:?}");
    let given = lines(&frames);
    let output = track(
        &["--fps", "8", "--new-score", "0.5"],
        &String::from_utf8(frames.stdout).unwrap(),
    );
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut tracked = lines(&output);
    assert_eq!(tracked.len(), given.len());
    let mut ids = 0;
    for row in &mut tracked {
        for found in row["heads"]["objects"]["detections"]
            .as_array_mut()
            .unwrap()
        {
            let id = found.as_object_mut().unwrap().remove("track_id").unwrap();
            assert!(id.is_null() || id.is_u64(), "{id}");
            ids += usize::from(id.is_u64());
        }
    }
    // All else is as it was.
    assert_eq!(tracked, given);
    assert!(ids > 0, "nothing in the clip was followed");
}

#[test]
fn a_frame_s_line_comes_back_before_the_next_is_there() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_frostline"))
        .arg("track")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = process.stdin.take().unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
    for (number, expected) in [json!(null), json!(1), json!(1)].into_iter().enumerate() {
        writeln!(input, "{}", frame(number as f64, &[[5.0, 5.0, 50.0, 50.0]])).unwrap();
        let row: Value = serde_json::from_str(&output.next().unwrap().unwrap()).unwrap();
        assert_eq!(row["detections"][0]["track_id"], expected);
        assert_eq!(row["detections"][0]["mine"], "kept");
    }
    drop(input);
    assert!(process.wait().unwrap().success());
}

#[test]
fn a_frame_that_is_not_later_is_passed_on_without_ids() {
    let there = [[5.0, 5.0, 50.0, 50.0]];
    let frames = [1.0, 1.1, 1.1, 0.5, 1.2].map(|time| frame(time, &there).to_string());
    let output = track(&[], &frames.join("\n"));
    let rows = lines(&output);
    let ids: Vec<_> = rows
        .iter()
        .map(|row| row["detections"][0]["track_id"].clone())
        .collect();
    assert_eq!(json!(ids), json!([null, 1, null, null, 1]));
    assert_eq!(
        rows[3]["untracked"],
        "the frame is of 500000 us, and must be later than the one before it, of 1100000 us"
    );
    assert!(rows[4].get("untracked").is_none());
}

#[test]
fn a_bad_line_or_flag_is_named() {
    let good = frame(0.0, &[[0.0, 0.0, 9.0, 9.0]]).to_string();
    let cases = [
        ("{", "line 2: EOF while parsing"),
        ("[]", "line 2: invalid type"),
        (r#"{"time": 1}"#, "line 2: has no detections"),
        (r#"{"detections": 7}"#, "line 2: detections: is no list"),
        (
            r#"{"detections": [{"score": 1}]}"#,
            "line 2: detections[0]: missing field `box`",
        ),
        (
            r#"{"time": "now", "detections": []}"#,
            "line 2: time: is no number",
        ),
        (
            r#"{"time": -1, "detections": []}"#,
            "line 2: time: is -1, but must be from 0",
        ),
        (
            r#"{"detections": [{"box": [0, 0, 1, 1], "score": 1, "mask": {"size": [2, 2], "counts": "1"}}]}"#,
            "line 2: detections[0]: mask: the counts cover",
        ),
    ];
    for (line, complaint) in cases {
        let output = track(&[], &format!("{good}\n{line}\n"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains(complaint), "{line}: {said}");
        // What came before it was answered.
        assert_eq!(lines(&output).len(), 1, "{line}");
    }
    for (flags, complaint) in [
        (["--fps", "0"], "--fps: is 0, but must be above 0"),
        (
            ["--high-score", "2"],
            "high_score is 2, but must be from 0 to 1",
        ),
        (["--lost", "61"], "lost is 61s, but must be at most 60s"),
    ] {
        let output = track(&flags, "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(complaint),
            "{said}"
        );
    }
}
