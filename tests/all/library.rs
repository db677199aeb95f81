//! Where the runtime library is found without a word, and what is said where it is not.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use frostline::backend::LIBRARY_VERSION;
use tempfile::TempDir;

/// The program in a folder far from any library.
struct Elsewhere {
    folder: TempDir,
}

impl Elsewhere {
    fn new() -> Self {
        // On the file system of the program, which is linked and not copied.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let bin = folder.path().join("a/b/c/d/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::hard_link(env!("CARGO_BIN_EXE_frostline"), bin.join("frostline")).unwrap();
        Self { folder }
    }

    fn run(&self, arguments: &[&str], environment: Option<&Path>) -> Output {
        let mut command = Command::new(self.folder.path().join("a/b/c/d/bin/frostline"));
        command.args(arguments);
        for name in ["ORT_DYLIB_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"] {
            command.env_remove(name);
        }
        if let Some(environment) = environment {
            command.env("VIRTUAL_ENV", environment);
        }
        command.output().unwrap()
    }

    /// An environment of Python with the package `onnxruntime` of a version.
    fn environment(&self, version: &str) -> (PathBuf, PathBuf) {
        let root = self.folder.path().join(format!("venv-{version}"));
        let capi = root.join("lib/python3.13/site-packages/onnxruntime/capi");
        fs::create_dir_all(&capi).unwrap();
        let file = capi.join(format!("libonnxruntime.so.{version}"));
        let own = frostline::backend::Runtime::load(None).unwrap();
        symlink(fs::canonicalize(own.library()).unwrap(), &file).unwrap();
        (root, file)
    }
}

#[test]
fn the_active_environments_package_is_found() {
    let elsewhere = Elsewhere::new();
    let (environment, file) = elsewhere.environment(LIBRARY_VERSION);
    let version = elsewhere.run(&["--version"], Some(&environment));
    let text = String::from_utf8(version.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let library = format!("ONNX Runtime {LIBRARY_VERSION} at {}", file.display());
    let own = format!("frostline {}", env!("CARGO_PKG_VERSION"));
    let commit = format!("commit {}", frostline::COMMIT);
    assert_eq!(lines, [own.as_str(), commit.as_str(), library.as_str()]);
    // And it is one that loads: the next thing that fails is the repository.
    let missing = ["check", "/nonexistent"];
    let check = elsewhere.run(&missing, Some(&environment));
    assert_eq!(check.status.code(), Some(4), "{check:?}");
}

#[test]
fn a_miss_lists_where_it_looked() {
    let elsewhere = Elsewhere::new();
    let (environment, file) = elsewhere.environment("1.2.3");
    let output = elsewhere.run(&["serve", "--listen", "127.0.0.1:0"], Some(&environment));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    let bin = elsewhere.folder.path().join("a/b/c/d/bin");
    for place in [
        format!("{} (is not there)", bin.join("libonnxruntime.so").display()),
        format!(
            "{} (is not there)",
            bin.join("../lib/libonnxruntime.so").display()
        ),
        format!("{} (is another version)", file.parent().unwrap().display()),
        format!("onnxruntime=={LIBRARY_VERSION}"),
        "device.library".to_owned(),
        "ORT_DYLIB_PATH".to_owned(),
    ] {
        assert!(said.contains(&place), "{place} is not in {said}");
    }
    let version = elsewhere.run(&["--version"], None);
    let text = String::from_utf8(version.stdout).unwrap();
    assert!(text.ends_with("not found\n"), "{text}");
}
