//! Where the ONNX Runtime library is looked for.

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// The ONNX Runtime version that Frostline is built and tested against.
pub const LIBRARY_VERSION: &str = "1.31.1";

/// The library's name where it was installed for Frostline.
const NAME: &str = "libonnxruntime.so";

/// What the search starts from.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// `ORT_DYLIB_PATH`.
    pub(super) variable: Option<OsString>,
    /// This program.
    pub(super) executable: Option<PathBuf>,
    /// The active environments of Python: `VIRTUAL_ENV`, `CONDA_PREFIX`.
    pub(super) environments: Vec<PathBuf>,
}

/// No library: where it was looked for, in order, and why each place was none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Miss(Vec<(PathBuf, &'static str)>);

impl Miss {
    /// The places as a list for a message.
    pub(super) fn list(&self) -> String {
        let mut text = String::new();
        for (index, (place, why)) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            let _ = write!(text, "{comma}{} ({why})", place.display());
        }
        text
    }
}

impl Surroundings {
    /// Those of this process.
    pub(super) fn of_process() -> Self {
        let given = |name| env::var_os(name).filter(|value| !value.is_empty());
        let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"]
            .into_iter()
            .filter_map(given);
        Self {
            variable: given("ORT_DYLIB_PATH"),
            // As it was installed, not what a link on the path leads from.
            executable: env::current_exe().ok(),
            environments: environments.map(PathBuf::from).collect(),
        }
    }

    /// The first library of: `ORT_DYLIB_PATH`, which is then the only place; the executable's folder and `../lib` beside
    /// it; `onnxruntime` in a folder above, where a source checkout's `make` puts it; and PyPI's package `onnxruntime` in
    /// the environment that holds the executable, then in the active ones. The package has to be of the version that
    /// Frostline is made for: others are passed over.
    pub(super) fn find(&self) -> Result<PathBuf, Miss> {
        if let Some(path) = &self.variable {
            return Ok(path.into());
        }
        let mut looked = Vec::new();
        let folder = self.executable.as_deref().and_then(Path::parent);
        if let Some(folder) = folder {
            let beside = [folder.to_path_buf(), folder.join("../lib")];
            let checkout = folder.ancestors().take(5).map(|up| up.join("onnxruntime"));
            for place in beside.into_iter().chain(checkout) {
                let file = place.join(NAME);
                if file.is_file() {
                    return Ok(file);
                }
                looked.push((file, "is not there"));
            }
        }
        // A script of an environment lies in its `bin`; a wheel's own files lie in `site-packages/PACKAGE/bin`.
        let above = folder
            .into_iter()
            .flat_map(|folder| folder.ancestors().skip(1).take(6));
        let own = above.enumerate();
        let own = own.filter(|(up, folder)| *up == 0 || folder.join("pyvenv.cfg").is_file());
        let mut prefixes: Vec<PathBuf> = own.map(|(_, folder)| folder.to_path_buf()).collect();
        prefixes.extend(self.environments.iter().cloned());
        // Where the executable lies in a folder of packages, whatever is above it.
        let siblings = folder.and_then(|folder| folder.parent()?.parent());
        let packages = siblings.into_iter().map(Path::to_path_buf);
        let packages = packages.chain(prefixes.iter().flat_map(|prefix| site_packages(prefix)));
        for packages in packages {
            match in_wheel(&packages) {
                Ok(file) => return Ok(file),
                Err(why) => looked.push((packages.join("onnxruntime/capi"), why)),
            }
        }
        looked.dedup();
        Err(Miss(looked))
    }
}

/// The folders of packages of an environment of Python.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = ["lib", "lib64"]
        .iter()
        .filter_map(|lib| fs::read_dir(prefix.join(lib)).ok())
        .flat_map(|entries| entries.flatten())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("python"))
        .flat_map(|entry| ["site-packages", "dist-packages"].map(|name| entry.path().join(name)))
        .filter(|folder| folder.is_dir())
        .collect();
    found.sort();
    found
}

/// The library of the package `onnxruntime` in a folder of packages.
fn in_wheel(packages: &Path) -> Result<PathBuf, &'static str> {
    let folder = packages.join("onnxruntime/capi");
    let file = folder.join(format!("{NAME}.{LIBRARY_VERSION}"));
    if file.is_file() {
        return Ok(file);
    }
    let names = fs::read_dir(&folder).map_err(|_| "is not there")?;
    let other = names
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with(NAME));
    Err(if other {
        "is another version"
    } else {
        "has no library"
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A file, and the folders that lead to it.
    fn put(root: &Path, path: &str) -> PathBuf {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, b"").unwrap();
        file
    }

    #[test]
    fn each_place_is_found_and_comes_before_the_next() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let site = "lib/python3.13/site-packages";
        let wheel = format!("onnxruntime/capi/libonnxruntime.so.{LIBRARY_VERSION}");
        let around = |executable: &str| Surroundings {
            variable: None,
            executable: Some(put(root, executable)),
            environments: vec![root.join("active")],
        };
        let script = || around("own/bin/frostline");
        put(root, "own/pyvenv.cfg");
        // The other way round: the last place first, each then found instead of the one before.
        let active = put(root, &format!("active/{site}/{wheel}"));
        assert_eq!(script().find(), Ok(active));
        let own = put(root, &format!("own/{site}/{wheel}"));
        assert_eq!(script().find(), Ok(own.clone()));
        assert_eq!(
            around(&format!("own/{site}/frostline_server/bin/frostline")).find(),
            Ok(own)
        );
        let checkout = put(root, "onnxruntime/libonnxruntime.so");
        assert_eq!(script().find(), Ok(checkout));
        put(root, "own/lib/libonnxruntime.so");
        assert_eq!(
            script().find(),
            Ok(root.join("own/bin/../lib/libonnxruntime.so"))
        );
        let beside = put(root, "own/bin/libonnxruntime.so");
        assert_eq!(script().find(), Ok(beside));
        let variable = Surroundings {
            variable: Some("anything".into()),
            ..script()
        };
        assert_eq!(variable.find(), Ok("anything".into()));
    }

    #[test]
    fn a_miss_tells_each_place_and_why() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        put(
            root,
            "active/lib/python3.13/site-packages/onnxruntime/capi/libonnxruntime.so.1.2.3",
        );
        put(
            root,
            "second/lib/python3.13/site-packages/onnxruntime/capi/other.so",
        );
        let around = Surroundings {
            variable: None,
            executable: Some(put(root, "a/b/c/d/e/frostline")),
            environments: vec![root.join("active"), root.join("second")],
        };
        let list = around.find().unwrap_err().list();
        for (place, why) in [
            ("a/b/c/d/e/libonnxruntime.so", "is not there"),
            ("a/b/c/d/e/../lib/libonnxruntime.so", "is not there"),
            ("a/onnxruntime/libonnxruntime.so", "is not there"),
            (
                "active/lib/python3.13/site-packages/onnxruntime/capi",
                "is another version",
            ),
            (
                "second/lib/python3.13/site-packages/onnxruntime/capi",
                "has no library",
            ),
        ] {
            let said = format!("{} ({why})", root.join(place).display());
            assert!(list.contains(&said), "{said} is not in {list}");
        }
    }
}
