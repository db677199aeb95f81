//! The commands, run as a script runs them: what they print, and with which code they end.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use sha2::{Digest, Sha256};

use crate::support::{Running, one_lane};

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo");

fn frostline(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_frostline"))
        .args(arguments)
        .output()
        .unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A copy of the demo repository, changed by `change`, as `frostline check` sees it.
fn check_of(change: impl FnOnce(&Path)) -> Output {
    let folder = tempfile::tempdir().unwrap();
    copy(Path::new(DEMO), folder.path());
    change(folder.path());
    frostline(&["check", folder.path().to_str().unwrap()])
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_name() == "samples" {
            continue;
        }
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{} has no {from:?}", file.display());
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn a_good_repository_is_shown_with_its_shapes_and_speed() {
    let output = check_of(|_| {});
    assert_eq!(code(&output), Some(0), "{}", complaint(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    for part in [
        "backbone.onnx",
        "uint8 [N, 128, 128, 3]",
        "stride32",
        "3 heads",
    ] {
        assert!(table.contains(part), "no {part:?} in\n{table}");
    }
}

/// What is done to a good repository, and what the message must then name.
type Case<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>, &'a [&'a str]);

#[test]
fn a_bad_repository_is_refused_by_file_and_field() {
    let cases: [Case; 9] = [
        (
            "a graph that is none",
            Box::new(|dir| {
                let (file, graph) = (dir.join("heads/scene/head.toml"), b"\x08\x08no graph");
                fs::write(dir.join("heads/scene/head.onnx"), graph).unwrap();
                let text = fs::read_to_string(&file).unwrap();
                let line = text.lines().find(|line| line.starts_with("sha256"));
                let hash = format!("sha256 = \"{}\"", hex::encode(Sha256::digest(graph)));
                fs::write(&file, text.replace(line.unwrap(), &hash)).unwrap();
            }),
            &["heads/scene/head.onnx"],
        ),
        (
            "too few labels",
            Box::new(|dir| {
                edit(
                    &dir.join("heads/scene/head.toml"),
                    "labels = [",
                    "labels = [\"one more\", ",
                )
            }),
            &["heads/scene/head.onnx", "output \"logits\"", "labels"],
        ),
        (
            "missing graph",
            Box::new(|dir| fs::remove_file(dir.join("heads/scene/head.onnx")).unwrap()),
            &["heads/scene/head.onnx", "cannot be read"],
        ),
        (
            "wrong hash",
            Box::new(|dir| fs::write(dir.join("heads/objects/head.onnx"), b"other").unwrap()),
            &["heads/objects/head.toml", "sha256"],
        ),
        (
            "foreign backbone",
            Box::new(|dir| {
                let file = dir.join("heads/scene/head.toml");
                let text = fs::read_to_string(&file).unwrap();
                let line = text
                    .lines()
                    .find(|line| line.starts_with("backbone"))
                    .unwrap();
                let foreign = format!("backbone = \"{}\"", "0".repeat(64));
                fs::write(&file, text.replace(line, &foreign)).unwrap();
            }),
            &["heads/scene/head.toml", "backbone"],
        ),
        (
            "unknown key",
            Box::new(|dir| edit(&dir.join("backbone.toml"), "name =", "colour = 1\nname =")),
            &["backbone.toml", "colour"],
        ),
        (
            "wrong shape",
            Box::new(|dir| edit(&dir.join("backbone.toml"), "stride = 8", "stride = 16")),
            &["backbone", "stride"],
        ),
        (
            "a head with the backbone's name",
            Box::new(|dir| {
                let text = fs::read_to_string(dir.join("backbone.toml")).unwrap();
                let line = text.lines().find(|l| l.starts_with("name")).unwrap();
                let (file, own) = (dir.join("heads/scene/head.toml"), "name = \"scene\"");
                edit(&file, own, line);
                let name = line.split('"').nth(1).unwrap();
                fs::rename(dir.join("heads/scene"), dir.join("heads").join(name)).unwrap();
            }),
            &["head.toml: name", "the backbone's name too"],
        ),
        (
            "no manifest",
            Box::new(|dir| fs::remove_file(dir.join("backbone.toml")).unwrap()),
            &["backbone.toml", "cannot be read"],
        ),
    ];
    for (name, change, parts) in cases {
        let output = check_of(change);
        let complaint = complaint(&output);
        assert_eq!(code(&output), Some(4), "{name}: {complaint}");
        for part in parts {
            assert!(
                complaint.contains(part),
                "{name}: no {part:?} in {complaint}"
            );
        }
    }
}

#[test]
fn codes_tell_failures_apart() {
    let picture = format!("{DEMO}/samples/scene-1.jpg");
    assert_eq!(code(&frostline(&["config"])), Some(0));
    assert_eq!(code(&frostline(&["no-such-command"])), Some(2));
    let unknown = frostline(&["--set", "engine.nothing=1", "config"]);
    assert_eq!(code(&unknown), Some(2), "{}", complaint(&unknown));
    assert!(complaint(&unknown).contains("engine.nothing"));
    // Port 1 of loopback: nothing listens there.
    let nobody = frostline(&["detect", "--addr", "http://127.0.0.1:1", &picture]);
    assert_eq!(code(&nobody), Some(3), "{}", complaint(&nobody));
    let dead = frostline(&["health", "--set", "server.listen=127.0.0.1:1"]);
    assert_eq!(code(&dead), Some(3), "{}", complaint(&dead));
    let partly = frostline(&["detect", "/no/such/file.jpg", &picture]);
    assert_eq!(code(&partly), Some(5), "{}", complaint(&partly));
    assert!(complaint(&partly).contains("/no/such/file.jpg"));
    let none = frostline(&["detect", "/no/such/file.jpg"]);
    assert_eq!(code(&none), Some(1), "{}", complaint(&none));
}

/// Runs a command whose standard output nobody reads.
fn unread(arguments: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Command::new(env!("CARGO_BIN_EXE_frostline"))
        .args(arguments)
        .stdout(writer)
        .output()
        .unwrap()
}

#[test]
fn a_reader_that_stops_reading_is_no_failure() {
    let picture = format!("{DEMO}/samples/scene-1.jpg");
    let (clip, none) = (format!("{DEMO}/samples/clip-1"), "/no/such/file.jpg");
    let pictures = [picture.as_str(); 12];
    let commands: [&[&str]; 11] = [
        &["config"],
        &["reference"],
        &["reference", "manifest"],
        &["completions", "bash"],
        &["heads"],
        &["--help"],
        &[&["detect"], &pictures[..]].concat(),
        &[&["detect", "--json", none], &pictures[..]].concat(),
        &["segment", &picture, none, &picture],
        &["analyze", &picture, &picture, "--clip", &clip],
        &["check"],
    ];
    for command in commands {
        let output = unread(command);
        assert_eq!(
            code(&output),
            Some(0),
            "{command:?}: {}",
            complaint(&output)
        );
        let said = complaint(&output);
        // What could not be read is still told; that nobody reads is not.
        let about_input = said.lines().all(|line| line.contains(none));
        assert!(about_input, "{command:?}: {said}");
    }
    // The entry goes to standard error, which is read.
    let token = unread(&["token", "somebody"]);
    assert_eq!(code(&token), Some(0), "{}", complaint(&token));
    assert!(
        complaint(&token).starts_with("[[key]]"),
        "{}",
        complaint(&token)
    );
    assert!(
        !complaint(&token).contains("panicked"),
        "{}",
        complaint(&token)
    );
}

#[test]
fn nobody_reading_complaints_changes_no_code() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let picture = format!("{DEMO}/samples/scene-1.jpg");
    let output = Command::new(env!("CARGO_BIN_EXE_frostline"))
        .args([
            "--set",
            "telemetry.log=debug",
            "detect",
            "/no/such/file.jpg",
            &picture,
        ])
        .stderr(writer)
        .output()
        .unwrap();
    assert_eq!(code(&output), Some(5));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("scene-1.jpg"), "{shown}");
}

#[test]
fn what_a_folder_holds_beside_images_is_told_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::copy(format!("{DEMO}/samples/scene-1.jpg"), root.join("a.jpg")).unwrap();
    for name in ["notes.txt", "b.heic", "._a.jpg", ".DS_Store"] {
        fs::write(root.join(name), b"x").unwrap();
    }
    for number in 0..9 {
        fs::create_dir(root.join(format!("folder-{number}"))).unwrap();
    }
    std::os::unix::fs::symlink("nowhere.jpg", root.join("link.jpg")).unwrap();
    let output = frostline(&["detect", root.to_str().unwrap()]);
    assert_eq!(code(&output), Some(0), "{}", complaint(&output));
    assert_eq!(
        String::from_utf8(output.stdout.clone())
            .unwrap()
            .matches("a.jpg")
            .count(),
        1
    );
    let said = complaint(&output);
    for part in [
        "skipped: ",
        "2 not named as a supported kind of image (",
        "notes.txt",
        "b.heic",
        "2 hidden (",
        "9 folders in a folder (",
        "4 more)",
        "1 unreadable (",
        "link.jpg",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert_eq!(said.lines().count(), 1, "{said}");
    // A folder of images alone has nothing to tell.
    let clean = frostline(&["recognize", &format!("{DEMO}/samples/clip-1")]);
    assert_eq!((code(&clean), complaint(&clean).as_str()), (Some(0), ""));
    fs::remove_file(root.join("a.jpg")).unwrap();
    let none = frostline(&["detect", root.to_str().unwrap()]);
    assert_eq!(code(&none), Some(1), "{}", complaint(&none));
    assert!(complaint(&none).contains("b.heic"), "{}", complaint(&none));
}

#[test]
fn answers_come_as_json_and_as_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pictures");
    let (picture, clip) = (
        format!("{DEMO}/samples/scene-1.jpg"),
        format!("{DEMO}/samples/clip-1"),
    );
    let out = out.to_str().unwrap();
    let output = frostline(&["analyze", &picture, "--clip", &clip, "--json", "--out", out]);
    assert_eq!(code(&output), Some(0), "{}", complaint(&output));
    let lines: Vec<serde_json::Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [clip, image] = lines.as_slice() else {
        panic!("{lines:?}")
    };
    assert_eq!(clip["backbone_rows"], 8);
    assert!(
        clip["heads"]["motion"]["top"][0]["probability"]
            .as_f64()
            .unwrap()
            > 0.5
    );
    assert_eq!(image["backbone_rows"], 1);
    assert!(
        !image["heads"]["objects"]["detections"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    let map = &image["heads"]["scene"];
    let pixels: u64 = map["segments"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|s| s["pixels"].as_u64())
        .sum();
    assert_eq!(
        pixels,
        map["width"].as_u64().unwrap() * map["height"].as_u64().unwrap()
    );
    for answer in [clip, image] {
        let drawn = image::open(answer["picture"].as_str().unwrap()).unwrap();
        assert!(drawn.width() > 700);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_asked_of_the_server_and_of_its_parts() {
    let server = Running::start(one_lane()).await;
    let address = format!("http://{}", server.address);
    let ask = async |service: Option<&'static str>| {
        let mut arguments = vec!["health".to_owned(), "--addr".to_owned(), address.clone()];
        arguments.extend(service.map(str::to_owned));
        let run = move || frostline(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    assert_eq!(code(&ask(None).await), Some(0));
    let service = Some("frostline.v1.VisionService");
    assert_eq!(code(&ask(service).await), Some(0));
    let nobody = ask(Some("nobody")).await;
    assert_eq!(code(&nobody), Some(1), "{}", complaint(&nobody));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_their_code_and_addresses_their_mistake() {
    let server = Running::start(one_lane()).await;
    let picture = format!("{DEMO}/samples/scene-1.jpg");
    let (plain, port) = (format!("http://{}", server.address), server.address.port());
    let (path, secure) = (format!("{plain}/v1"), format!("https://localhost:{port}"));
    let cases: [(&[&str], i32, &str); 4] = [
        (
            &["detect", "--addr", &plain, "--head", "nobody", &picture],
            1,
            ": NOT_FOUND: ",
        ),
        (
            &["detect", "--addr", &plain, "--head", "scene", &picture],
            1,
            ": INVALID_ARGUMENT: ",
        ),
        (
            &["heads", "--addr", &path],
            3,
            "has a path, which gRPC has not: leave out \"/v1\"",
        ),
        (
            &["heads", "--addr", &secure],
            3,
            "perhaps it speaks no TLS there",
        ),
    ];
    for (arguments, expected, words) in cases {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let ran = tokio::task::spawn_blocking(move || {
            frostline(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let output = ran.await.unwrap();
        let said = complaint(&output);
        assert_eq!(code(&output), Some(expected), "{said}");
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    server.stop().await;
}

#[test]
fn a_log_that_is_no_terminals_has_no_colour_codes() {
    let start = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--repository",
        "/nowhere",
    ];
    for (color, coloured) in [
        (None, false),
        (Some("never"), false),
        (Some("always"), true),
    ] {
        let mut arguments = start.to_vec();
        arguments.extend(color.iter().flat_map(|color| ["--color", color]));
        let said = complaint(&frostline(&arguments));
        assert!(said.contains("admin port"), "{said}");
        assert_eq!(said.contains('\x1b'), coloured, "{said:?}");
    }
}
