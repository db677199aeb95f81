//! The configuration: a TOML file, environment variables over it, flags over those.
//!
//! Every value is known by its path (`engine.max_batch`), so that all three sources speak of the same thing: a file's
//! `[engine] max_batch = 4`, the variable `FROSTLINE_ENGINE_MAX_BATCH=4`, the flag `--set engine.max_batch=4`. Unknown
//! paths are errors.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    backend::{Arena, CachePolicy, ConvSearch, DeviceChoice, DeviceOptions, TensorRtOptions},
    engine::{AdmissionLimits, EngineConfig},
    media,
    server::ServerConfig,
};

/// Why a configuration is refused.
#[derive(Debug, Error)]
#[error("{origin}: {detail}")]
pub struct ConfigError {
    origin: String,
    detail: String,
}

/// The whole configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How the server listens.
    pub server: Server,
    /// Bounds on requests.
    pub limits: Limits,
    /// How the machine is used.
    pub engine: Engine,
    /// Where graphs run.
    pub device: Device,
    /// Which models are served.
    pub repository: Repository,
    /// What is told of the server's work.
    pub telemetry: Telemetry,
}

/// `[server]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address and port.
    pub listen: SocketAddr,
    /// Allows an address other than loopback while there is neither TLS nor authorization.
    pub insecure: bool,
    /// Seconds between telling the health check that the server drains and refusing new calls.
    pub lame_duck_seconds: u64,
    /// Seconds that calls under way get to finish after that.
    pub drain_seconds: u64,
    /// Most calls at once on one connection.
    pub max_streams: u32,
}

/// `[limits]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request in bytes.
    pub request_bytes: usize,
    /// Largest response in bytes.
    pub response_bytes: usize,
    /// Largest encoded image in bytes.
    pub image_bytes: usize,
    /// Most pixels of an image.
    pub image_pixels: u64,
    /// Longest side of an image in pixels.
    pub image_side: u32,
    /// Most frames of a clip.
    pub frames: usize,
    /// Most images and frames inside at once.
    pub images_in_flight: usize,
    /// Most bytes of images inside at once.
    pub bytes_in_flight: usize,
    /// Deadline in milliseconds of calls that bring none; 0 for none.
    pub default_deadline_ms: u64,
}

/// `[engine]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Threads that run graphs; 0 for one per core.
    pub lanes: usize,
    /// Threads that one lane's operators use.
    pub threads_per_lane: usize,
    /// Threads that decode and postprocess beside the lanes; 0: the lanes do it themselves, which suits a CPU.
    pub workers: usize,
    /// Largest backbone batch.
    pub max_batch: usize,
    /// Batch sizes to run, such as `[1, 4, 8]`; `"auto"` for those that warm-up shows to be worthwhile.
    pub buckets: Buckets,
    /// Milliseconds that a batch may wait to become larger.
    pub max_queue_delay_ms: u64,
    /// Milliseconds that one step of a lane may take before the device is taken for hung and the process ends; 0 for no
    /// limit.
    pub step_limit_ms: u64,
    /// Bytes of finished features to keep; 0 for none.
    pub cache_bytes: usize,
    /// Whether callers with different identities share rows in flight and in the cache.
    pub share_across_callers: bool,
    /// Shares of the machine under load by head, such as `{ objects = 2.0 }`; 1 where not named.
    pub head_weights: BTreeMap<String, f64>,
    /// Shares of the machine under load by caller; 1 where not named.
    pub caller_weights: BTreeMap<String, f64>,
}

/// Batch sizes: `"auto"` or a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "must be \"auto\" or a list of batch sizes")]
pub enum Buckets {
    /// Those that warm-up shows to be worthwhile.
    #[default]
    #[serde(with = "auto")]
    Auto,
    /// These.
    Sizes(Vec<usize>),
}

/// The word `auto`.
mod auto {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("auto")
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "auto" => Ok(()),
            other => Err(D::Error::custom(format!("{other:?} is not \"auto\""))),
        }
    }
}

/// `[device]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// The ONNX Runtime library; found where it was installed if unset.
    pub library: Option<PathBuf>,
    /// Where graphs run: `auto`, `cpu`, `cuda:N` or `tensorrt:N`. `auto` takes the first CUDA device, if the library can
    /// use one, else the CPU.
    pub device: DeviceChoice,
    /// Refuses graphs of which some nodes fall back to the CPU.
    pub strict: bool,
    /// Most bytes of one graph's memory arena on the device; 0 for no bound.
    pub memory_limit_bytes: usize,
    /// How that arena grows: `same_as_requested` or `next_power_of_two`.
    pub arena: Arena,
    /// How convolution algorithms are chosen: `heuristic`, `exhaustive` or `default`.
    pub conv_search: ConvSearch,
    /// Lets fp32 matrix products use TensorFloat-32.
    pub tf32: bool,
    /// Captures the backbone's run for each batch size as a CUDA graph; every node has to run on CUDA.
    pub cuda_graphs: bool,
    /// Lets convolutions use the NHWC layout.
    pub prefer_nhwc: bool,
    /// Bytes of finished features to keep in the device's memory.
    pub cache_bytes: usize,
    /// What becomes of those beyond it: `spill` to host memory, within `engine.cache_bytes`, or `drop`.
    pub cache_policy: CachePolicy,
    /// Lets TensorRT compute fp32 graphs in half precision.
    pub tensorrt_fp16: bool,
    /// Folder of built TensorRT engines.
    pub tensorrt_engine_cache: Option<PathBuf>,
    /// Folder of measured TensorRT kernel timings.
    pub tensorrt_timing_cache: Option<PathBuf>,
    /// Scratch bytes while TensorRT builds an engine; 0 for its own choice.
    pub tensorrt_workspace_bytes: usize,
    /// Allows building engines at start, which takes minutes; unset, a start without built engines is refused.
    pub tensorrt_build: bool,
}

/// `[repository]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Repository {
    /// Folder of the models; the embedded demo models if unset.
    pub path: Option<PathBuf>,
    /// Seconds between looks at the folder for heads that came, changed or went; 0 to look only when told to.
    pub watch_seconds: u64,
}

/// `[telemetry]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Log filter, as `tracing` writes them.
    pub log: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines, one object a line.
    Json,
}

impl Default for Server {
    fn default() -> Self {
        let server = ServerConfig::default();
        Self {
            listen: server.listen,
            insecure: false,
            lame_duck_seconds: server.lame_duck.as_secs(),
            drain_seconds: server.drain_timeout.as_secs(),
            max_streams: server.max_streams,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let (server, engine) = (ServerConfig::default(), EngineConfig::default());
        Self {
            request_bytes: server.max_request_bytes,
            response_bytes: server.max_response_bytes,
            image_bytes: engine.media.max_bytes,
            image_pixels: engine.media.max_pixels,
            image_side: engine.media.max_side,
            frames: engine.max_frames,
            images_in_flight: engine.admission.images,
            bytes_in_flight: engine.admission.bytes,
            default_deadline_ms: 0,
        }
    }
}

impl Default for Engine {
    fn default() -> Self {
        let engine = EngineConfig::default();
        Self {
            lanes: engine.lanes,
            threads_per_lane: engine.threads_per_lane,
            workers: engine.workers,
            max_batch: engine.max_batch,
            buckets: Buckets::Auto,
            max_queue_delay_ms: 0,
            step_limit_ms: engine.step_limit.as_millis() as u64,
            cache_bytes: engine.cache_bytes,
            share_across_callers: engine.share_across_callers,
            head_weights: engine.head_weights,
            caller_weights: engine.caller_weights,
        }
    }
}

impl Default for Device {
    fn default() -> Self {
        let device = DeviceOptions::default();
        let tensorrt = device.tensorrt;
        Self {
            library: None,
            device: device.device,
            strict: device.strict,
            memory_limit_bytes: device.memory_limit_bytes,
            arena: device.arena,
            conv_search: device.conv_search,
            tf32: device.tf32,
            cuda_graphs: device.cuda_graphs,
            prefer_nhwc: device.prefer_nhwc,
            cache_bytes: device.cache_bytes,
            cache_policy: device.cache_policy,
            tensorrt_fp16: tensorrt.fp16,
            tensorrt_engine_cache: tensorrt.engine_cache,
            tensorrt_timing_cache: tensorrt.timing_cache,
            tensorrt_workspace_bytes: tensorrt.workspace_bytes,
            tensorrt_build: tensorrt.build,
        }
    }
}

impl Default for Repository {
    fn default() -> Self {
        Self {
            path: None,
            watch_seconds: 2,
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log: "info,ort=warn".to_owned(),
            format: LogFormat::Text,
        }
    }
}

impl Config {
    /// The device's part.
    #[must_use]
    pub fn device(&self) -> DeviceOptions {
        let device = &self.device;
        DeviceOptions {
            device: device.device,
            strict: device.strict,
            memory_limit_bytes: device.memory_limit_bytes,
            arena: device.arena,
            conv_search: device.conv_search,
            tf32: device.tf32,
            cuda_graphs: device.cuda_graphs,
            prefer_nhwc: device.prefer_nhwc,
            cache_bytes: device.cache_bytes,
            cache_policy: device.cache_policy,
            tensorrt: TensorRtOptions {
                fp16: device.tensorrt_fp16,
                engine_cache: device.tensorrt_engine_cache.clone(),
                timing_cache: device.tensorrt_timing_cache.clone(),
                workspace_bytes: device.tensorrt_workspace_bytes,
                build: device.tensorrt_build,
            },
            ..DeviceOptions::default()
        }
    }

    /// The engine's part.
    #[must_use]
    pub fn engine(&self) -> EngineConfig {
        EngineConfig {
            lanes: self.engine.lanes,
            threads_per_lane: self.engine.threads_per_lane,
            workers: self.engine.workers,
            max_batch: self.engine.max_batch,
            buckets: match &self.engine.buckets {
                Buckets::Auto => None,
                Buckets::Sizes(sizes) => Some(sizes.clone()),
            },
            max_queue_delay: Duration::from_millis(self.engine.max_queue_delay_ms),
            step_limit: Duration::from_millis(self.engine.step_limit_ms),
            cache_bytes: self.engine.cache_bytes,
            share_across_callers: self.engine.share_across_callers,
            head_weights: self.engine.head_weights.clone(),
            caller_weights: self.engine.caller_weights.clone(),
            admission: AdmissionLimits {
                images: self.limits.images_in_flight,
                bytes: self.limits.bytes_in_flight,
            },
            media: media::Limits {
                max_bytes: self.limits.image_bytes,
                max_pixels: self.limits.image_pixels,
                max_side: self.limits.image_side,
            },
            max_frames: self.limits.frames,
        }
    }

    /// The server's part.
    #[must_use]
    pub fn server(&self) -> ServerConfig {
        ServerConfig {
            listen: self.server.listen,
            max_request_bytes: self.limits.request_bytes,
            max_response_bytes: self.limits.response_bytes,
            drain_timeout: Duration::from_secs(self.server.drain_seconds),
            lame_duck: Duration::from_secs(self.server.lame_duck_seconds),
            default_deadline: match self.limits.default_deadline_ms {
                0 => None,
                millis => Some(Duration::from_millis(millis)),
            },
            max_streams: self.server.max_streams,
        }
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let at_least_one = [
            ("limits.request_bytes", self.limits.request_bytes),
            ("limits.response_bytes", self.limits.response_bytes),
            ("limits.image_bytes", self.limits.image_bytes),
            ("limits.frames", self.limits.frames),
            ("limits.images_in_flight", self.limits.images_in_flight),
            ("limits.bytes_in_flight", self.limits.bytes_in_flight),
            ("engine.threads_per_lane", self.engine.threads_per_lane),
            ("engine.max_batch", self.engine.max_batch),
        ];
        if let Some((path, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err((path, "is 0, but must be at least 1".to_owned()));
        }
        for (path, value) in [
            ("engine.lanes", self.engine.lanes),
            ("engine.workers", self.engine.workers),
        ] {
            if value > 256 {
                return Err((path, format!("is {value}, but must be at most 256")));
            }
        }
        if self.engine.max_batch > 1024 {
            let detail = format!("is {}, but must be at most 1024", self.engine.max_batch);
            return Err(("engine.max_batch", detail));
        }
        if let Buckets::Sizes(sizes) = &self.engine.buckets {
            let most = self.engine.max_batch;
            if sizes.is_empty() || sizes.iter().any(|size| !(1..=most).contains(size)) {
                let detail =
                    format!("is {sizes:?}, but must hold sizes from 1 to engine.max_batch, {most}");
                return Err(("engine.buckets", detail));
            }
        }
        if self.engine.max_queue_delay_ms > 10_000 {
            let detail = format!(
                "is {}, but must be at most 10000",
                self.engine.max_queue_delay_ms
            );
            return Err(("engine.max_queue_delay_ms", detail));
        }
        for (path, weights) in [
            ("engine.head_weights", &self.engine.head_weights),
            ("engine.caller_weights", &self.engine.caller_weights),
        ] {
            if let Some((name, weight)) = weights.iter().find(|(_, w)| !(0.01..=100.0).contains(*w))
            {
                let detail = format!("gives {name:?} {weight}, but weights are from 0.01 to 100");
                return Err((path, detail));
            }
        }
        if !self.server.listen.ip().is_loopback() && !self.server.insecure {
            let detail = format!(
                "is {}, which others can reach without TLS or authorization: listen on loopback, or set \
                 server.insecure",
                self.server.listen
            );
            return Err(("server.listen", detail));
        }
        Ok(())
    }
}

/// Where a value is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A flag on the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Whether a variable, less its `FROSTLINE_`, is one that Kubernetes sets in every pod for a Service whose name begins
/// with `frostline`: `..._SERVICE_HOST`, `..._SERVICE_PORT[_NAME]`, `..._PORT[_8461_TCP[_ADDR|_PORT|_PROTO]]`.
fn is_service_link(rest: &str, value: &str) -> bool {
    let words: Vec<_> = rest.split('_').collect();
    let port = |w: &[&str]| {
        w[0] == "PORT"
            && w[1].bytes().all(|b| b.is_ascii_digit())
            && ["TCP", "UDP", "SCTP"].contains(&w[2])
    };
    words.windows(3).any(port)
        || words.windows(2).any(|w| w == ["SERVICE", "PORT"])
        || words.ends_with(&["SERVICE", "HOST"])
        || words.ends_with(&["PORT"]) && value.contains("://")
}

/// Path, effective value and origin of every setting.
pub type Listing = Vec<(String, String, Origin)>;

/// Collects values from their sources; later ones win.
#[derive(Debug, Default)]
pub struct Builder {
    values: BTreeMap<String, (toml::Value, Origin)>,
}

impl Builder {
    /// Adds a file.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML.
    pub fn file(&mut self, path: PathBuf) -> Result<(), ConfigError> {
        let fail = |detail: String| ConfigError {
            origin: path.display().to_string(),
            detail,
        };
        let text = std::fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| fail(error.to_string()))?;
        for (section, value) in table {
            match value {
                toml::Value::Table(values) => {
                    for (key, value) in values {
                        let origin = Origin::File(path.clone());
                        self.values
                            .insert(format!("{section}.{key}"), (value, origin));
                    }
                }
                value => {
                    self.values
                        .insert(section, (value, Origin::File(path.clone())));
                }
            }
        }
        Ok(())
    }

    /// Adds the variables that are called `FROSTLINE_<SECTION>_<KEY>`. `FROSTLINE_CONFIG` names the file and is left out.
    pub fn variables(&mut self, variables: impl Iterator<Item = (String, String)>) {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix("FROSTLINE_") else {
                continue;
            };
            if rest == "CONFIG" || is_service_link(rest, &value) {
                continue;
            }
            let path = rest.to_lowercase().replacen('_', ".", 1);
            self.values
                .insert(path, (scalar(&value), Origin::Variable(name)));
        }
    }

    /// Adds one value from a flag.
    pub fn flag(&mut self, flag: &str, path: &str, value: &str) {
        let origin = Origin::Flag(flag.to_owned());
        self.values.insert(path.to_owned(), (scalar(value), origin));
    }

    /// The configuration, checked, and each value with its origin.
    ///
    /// # Errors
    /// An unknown path, a value of the wrong type or out of range, with its origin.
    pub fn build(self) -> Result<(Config, Listing), ConfigError> {
        let mut root = toml::Table::new();
        for (path, (value, origin)) in &self.values {
            // One value at a time, so that an error can say where it comes from.
            let one = nest(path, value.clone());
            if let Err(error) = one.clone().try_into::<Config>() {
                let detail = format!("{path}: {}", error.message().trim());
                return Err(ConfigError {
                    origin: origin.to_string(),
                    detail,
                });
            }
            for (section, value) in one {
                let slot = root
                    .entry(section)
                    .or_insert_with(|| toml::Value::Table(toml::Table::new()));
                if let (toml::Value::Table(into), toml::Value::Table(from)) = (slot, value) {
                    into.extend(from);
                }
            }
        }
        let fail = |origin: String, detail: String| ConfigError { origin, detail };
        let config: Config = root.try_into().map_err(|error: toml::de::Error| {
            fail("configuration".to_owned(), error.to_string())
        })?;
        let origin_of = |path: &str| {
            self.values
                .get(path)
                .map_or(Origin::Default, |(_, origin)| origin.clone())
        };
        config.check().map_err(|(path, detail)| {
            fail(origin_of(path).to_string(), format!("{path} {detail}"))
        })?;
        let shown = toml::Table::try_from(&config)
            .map_err(|error| fail("configuration".to_owned(), error.to_string()))?;
        let mut listing = Vec::new();
        for (section, values) in shown {
            for (key, value) in values.as_table().into_iter().flatten() {
                let path = format!("{section}.{key}");
                let origin = origin_of(&path);
                listing.push((path, value.to_string(), origin));
            }
        }
        Ok((config, listing))
    }
}

fn nest(path: &str, value: toml::Value) -> toml::Table {
    let mut table = toml::Table::new();
    match path.split_once('.') {
        Some((section, key)) => {
            let mut inner = toml::Table::new();
            inner.insert(key.to_owned(), value);
            table.insert(section.to_owned(), toml::Value::Table(inner));
        }
        None => {
            table.insert(path.to_owned(), value);
        }
    }
    table
}

/// A number, boolean, list or table where the text is one, else a string.
fn scalar(text: &str) -> toml::Value {
    if text.starts_with(['[', '{'])
        && let Ok(mut table) = toml::from_str::<toml::Table>(&format!("value = {text}"))
        && let Some(value) = table.remove("value")
    {
        return value;
    }
    if let Ok(value) = text.parse::<bool>() {
        return toml::Value::Boolean(value);
    }
    if let Ok(value) = text.parse::<i64>() {
        return toml::Value::Integer(value);
    }
    toml::Value::String(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(add: impl FnOnce(&mut Builder)) -> Result<Config, String> {
        let mut builder = Builder::default();
        add(&mut builder);
        builder
            .build()
            .map(|(config, _)| config)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_wins_over_a_variable() {
        let config = build(|builder| {
            let variable = ("FROSTLINE_ENGINE_MAX_BATCH".to_owned(), "4".to_owned());
            builder.variables([variable].into_iter());
            builder.flag("--set", "engine.max_batch", "2");
        });
        assert_eq!(config.map(|c| c.engine.max_batch), Ok(2));
    }

    #[test]
    fn what_kubernetes_sets_for_a_service_is_not_ours() {
        let links = "SERVICE_HOST SERVICE_PORT SERVICE_PORT_GRPC PORT PORT_8461_TCP PORT_8461_TCP_ADDR PORT_8461_TCP_PORT \
                     PORT_8461_TCP_PROTO HEADLESS_SERVICE_HOST HEADLESS_PORT_8461_TCP";
        let links = links
            .split(' ')
            .map(|l| (format!("FROSTLINE_{l}"), "tcp://10.0.0.1:1".to_owned()));
        assert!(build(|builder| builder.variables(links)).is_ok());
        let typo = ("FROSTLINE_SERVR_LISTEN".to_owned(), "1".to_owned());
        assert!(build(|builder| builder.variables([typo].into_iter())).is_err());
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_origin() {
        let error = build(|builder| builder.flag("--set", "engine.max_bach", "2")).err();
        let error = error.unwrap_or_default();
        assert!(
            error.contains("flag --set") && error.contains("max_bach"),
            "{error}"
        );
    }

    #[test]
    fn an_address_that_others_reach_needs_a_word() {
        let listen = |builder: &mut Builder| builder.flag("--listen", "server.listen", "0.0.0.0:1");
        assert!(build(listen).is_err());
        let allowed = build(|builder| {
            listen(builder);
            builder.flag("--set", "server.insecure", "true");
        });
        assert!(allowed.is_ok());
    }

    #[test]
    fn defaults_are_valid_and_listed_with_their_origin() {
        let listing = Builder::default()
            .build()
            .map(|(_, listing)| listing)
            .unwrap_or_default();
        assert!(listing.iter().any(|(path, _, origin)| {
            path == "limits.images_in_flight" && *origin == Origin::Default
        }));
    }
}
