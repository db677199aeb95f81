//! OpenVINO as a plugin of ONNX Runtime: where its files are, its one registration, what it can do on this processor, and
//! the options that it is given.
//!
//! The plugin ignores options that it does not know, takes a precision of its own choice where none is given, and offers no
//! device where a file of it is missing. So everything is given here and checked here.

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    path::{Path, PathBuf},
};

use ort::{AsPointer, device::Device as Offer, environment::Environment, memory::DeviceType};
use parking_lot::Mutex;

use super::Precision;

/// The provider's name, which its options carry.
pub(super) const PROVIDER: &str = "OpenVINOExecutionProvider";

/// The provider that every other session names, or it would get this one too.
const OWN: &str = "CPUExecutionProvider";

/// The plugin, and what it loads from its own folder.
const PLUGIN: &str = "libonnxruntime_providers_openvino_plugin.so";
const FILES: [&str; 5] = [
    PLUGIN,
    "libopenvino.so.2641",
    "libopenvino_intel_cpu_plugin.so",
    "libopenvino_onnx_frontend.so.2641",
    "libtbb.so.12",
];

/// PyPI's package of it, beside PyPI's `onnxruntime`.
const PACKAGE: &str = "onnxruntime_ep_openvino";

/// OpenVINO on the CPU, ready to compile graphs.
#[derive(Debug, Clone)]
pub(super) struct OpenVino {
    /// What it computes in: never [`Precision::Auto`].
    pub(super) precision: Precision,
}

impl OpenVino {
    /// Registers the plugin, once for the process, and checks that this processor computes in `precision`.
    ///
    /// `folder` is where its files are, or else they are beside `library` or in PyPI's package beside that one's.
    ///
    /// # Errors
    /// What is missing, and where, as the rest of a sentence.
    pub(super) fn open(
        environment: &Environment,
        library: &Path,
        folder: Option<&Path>,
        precision: Precision,
    ) -> Result<Self, String> {
        let folder = find(library, folder)?;
        register(environment, &folder)?;
        let Some(device) = offer(environment) else {
            let vendor = vendor(environment);
            return Err(format!(
                "OpenVINO's plugin in {} offers no device for this processor: it takes those of Intel, this one is of \
                 {vendor}",
                folder.display()
            ));
        };
        let able = capabilities(&device);
        let has = |name: &str| able.split_whitespace().any(|able| able == name);
        match precision {
            Precision::Bf16 if !has("BF16") => Err(format!(
                "this processor does not compute in bf16, OpenVINO says that it can {able}: let device.precision be \
                 \"fp32\" or \"auto\""
            )),
            Precision::Bf16 => Ok(Self { precision }),
            Precision::Auto | Precision::Fp32 => Ok(Self {
                precision: Precision::Fp32,
            }),
        }
    }

    /// What a session on one fixed shape is given; `streams` runs at once, each on so many `threads`.
    ///
    /// # Errors
    /// An input whose name cannot be written in the provider's language.
    pub(super) fn options(
        &self,
        (input, shape): (&str, &[usize]),
        streams: usize,
        threads: usize,
    ) -> Result<Vec<(String, String)>, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
        if input.is_empty() || !input.chars().all(plain) {
            return Err(format!(
                "the input's name {input:?} has characters that OpenVINO's options do not take: use letters, digits, \
                 '.', '_', '-', ':' and '/'"
            ));
        }
        let hint = match self.precision {
            Precision::Bf16 => "bf16",
            Precision::Auto | Precision::Fp32 => "f32",
        };
        let streams = streams.max(1);
        let threads = threads.max(1) * streams;
        // Pinned, the threads of all sessions would share the first cores.
        let config = serde_json::json!({ "CPU": {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads.to_string(),
            "NUM_STREAMS": streams.to_string(),
            "ENABLE_CPU_PINNING": "NO",
        }});
        let shape: Vec<_> = shape.iter().map(ToString::to_string).collect();
        let shape = format!("{input}[{}]", shape.join(","));
        Ok(vec![
            (format!("{PROVIDER}.load_config"), config.to_string()),
            (format!("{PROVIDER}.reshape_input"), shape),
        ])
    }
}

/// The device that ONNX Runtime's own provider offers: what sessions name that run on nothing else. Without a name they
/// would get every plugin that is registered.
pub(super) fn own(environment: &Environment) -> impl Iterator<Item = Offer<'_>> {
    let devices = environment.devices();
    devices.filter(|device| device.ep().is_ok_and(|name| name == OWN))
}

/// The device that the plugin offers for the CPU.
pub(super) fn offer(environment: &Environment) -> Option<Offer<'_>> {
    let mut devices = environment.devices();
    devices.find(|device| {
        device.ep().is_ok_and(|name| name == PROVIDER)
            && device.hardware_device().ty() == DeviceType::CPU
    })
}

/// Who made the processor.
fn vendor(environment: &Environment) -> String {
    let vendor = own(environment).next();
    let vendor = vendor.and_then(|device| device.hardware_device().vendor().ok());
    vendor.unwrap_or("another maker").to_owned()
}

/// What OpenVINO says that the processor computes in, such as `FP32 BF16 INT8`.
fn capabilities(device: &Offer<'_>) -> String {
    let key = CString::from(c"OPTIMIZATION_CAPABILITIES");
    let api = ort::api();
    // SAFETY: the device is live, and so are its pairs and their texts as long as it is; they are copied at once.
    unsafe {
        let pairs = (api.EpDevice_EpMetadata)(device.ptr());
        if pairs.is_null() {
            return String::new();
        }
        let text = (api.GetKeyValue)(pairs, key.as_ptr());
        if text.is_null() {
            return String::new();
        }
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

/// The folder that holds all files; which one is missing in the first that holds the plugin.
pub(super) fn find(library: &Path, named: Option<&Path>) -> Result<PathBuf, String> {
    let beside = library.parent().unwrap_or(Path::new(".")).to_path_buf();
    // `site-packages/onnxruntime/capi/libonnxruntime.so.V`
    let packages = beside.parent().and_then(Path::parent);
    let package = packages.map(|folder| folder.join(PACKAGE));
    let places: Vec<PathBuf> = match named {
        Some(folder) => vec![folder.to_path_buf()],
        None => std::iter::once(beside).chain(package).collect(),
    };
    let holds = places.iter().find(|folder| folder.join(PLUGIN).is_file());
    let Some(folder) = holds else {
        let looked: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
        return Err(format!(
            "OpenVINO's plugin {PLUGIN} is not in {}: `make runtime` puts it beside the library, and \
             device.openvino_plugin can name another folder",
            looked.join(" or ")
        ));
    };
    match FILES.iter().find(|file| !folder.join(file).is_file()) {
        None => Ok(folder.clone()),
        Some(file) => Err(format!(
            "{file} is missing beside OpenVINO's plugin in {}: `make runtime` puts all of it beside the library",
            folder.display()
        )),
    }
}

/// Where the plugin is, its size and when it was written, or why there is none.
pub(super) fn stamp(library: &Path, folder: Option<&Path>) -> String {
    match find(library, folder) {
        Ok(folder) => {
            let about = std::fs::metadata(folder.join(PLUGIN)).ok();
            let about = about.map(|about| (about.len(), about.modified().ok()));
            format!("{} {about:?}", folder.display())
        }
        Err(why) => why,
    }
}

/// The folder whose plugin this process has.
static REGISTERED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Registers the plugin, unless it is.
fn register(environment: &Environment, folder: &Path) -> Result<(), String> {
    let mut registered = REGISTERED.lock();
    match registered.as_deref() {
        Some(before) if before == folder => return Ok(()),
        Some(before) => {
            return Err(format!(
                "this process has OpenVINO's plugin of {}, and one is all that it can have",
                before.display()
            ));
        }
        None => {}
    }
    let plugin = folder.join(PLUGIN);
    let taken = environment.register_ep_library("openvino", &plugin);
    taken.map_err(|error| {
        format!(
            "ONNX Runtime does not take {}: {}",
            plugin.display(),
            super::fault::refusal(error.message())
        )
    })?;
    *registered = Some(folder.to_path_buf());
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn put(folder: &Path, files: &[&str]) {
        std::fs::create_dir_all(folder).unwrap();
        for file in files {
            std::fs::write(folder.join(file), b"").unwrap();
        }
    }

    #[test]
    fn the_plugin_is_found_whole_beside_the_library_in_its_package_or_where_it_is_named() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("onnxruntime/capi/libonnxruntime.so");
        let none = find(&library, None).unwrap_err();
        for place in ["onnxruntime/capi or ", PACKAGE] {
            assert!(none.contains(place), "{none}");
        }
        let package = root.path().join(PACKAGE);
        put(&package, &FILES);
        assert_eq!(find(&library, None), Ok(package.clone()));
        let beside = library.parent().unwrap();
        put(beside, &[PLUGIN]);
        // Half of it is a mistake, not a reason to take another.
        let half = find(&library, None).unwrap_err();
        assert!(
            half.starts_with(FILES[1]) && half.contains("onnxruntime/capi"),
            "{half}"
        );
        put(beside, &FILES);
        assert_eq!(find(&library, None), Ok(beside.to_path_buf()));
        assert_eq!(find(&library, Some(&package)), Ok(package));
        let elsewhere = find(&library, Some(root.path())).unwrap_err();
        assert!(
            elsewhere.contains(root.path().to_str().unwrap()),
            "{elsewhere}"
        );
    }

    #[test]
    fn everything_that_decides_is_given() {
        let openvino = OpenVino {
            precision: Precision::Bf16,
        };
        let given = openvino.options(("image", &[4, 128, 96, 3]), 3, 2).unwrap();
        let [(config, value), (reshape, shape)] = &given[..] else {
            panic!("{given:?}");
        };
        assert_eq!(config, "OpenVINOExecutionProvider.load_config");
        let value: serde_json::Value = serde_json::from_str(value).unwrap();
        let expected = serde_json::json!({"CPU": {
            "INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": "6", "NUM_STREAMS": "3",
            "ENABLE_CPU_PINNING": "NO"}});
        assert_eq!(value, expected);
        assert_eq!(reshape, "OpenVINOExecutionProvider.reshape_input");
        assert_eq!(shape, "image[4,128,96,3]");
        let odd = openvino.options(("a[1]", &[1]), 1, 2).unwrap_err();
        assert!(odd.contains("a[1]"), "{odd}");
    }
}
