//! The configuration: a TOML file, environment variables over it, flags over those.
//!
//! Every value is known by its path (`engine.max_batch`), so that all three sources speak of the same thing: a file's
//! `[engine] max_batch = 4`, the variable `FROSTLINE_ENGINE_MAX_BATCH=4`, the flag `--set engine.max_batch=4`. Unknown
//! paths are errors.

mod buckets;
mod device;
mod limits;
mod listen;
mod memory;
mod repository;
mod security;
mod sources;
mod stream;
mod telemetry;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    cores,
    engine::{AdmissionLimits, EngineConfig},
    media,
    server::{Life, ServerConfig, TransportLimits},
    trace::Tracer,
};

pub use buckets::Buckets;
pub use device::Device;
pub use limits::Limits;
pub use listen::Listen;
pub use memory::WorstCase;
pub use repository::Repository;
pub use security::{Auth, Tls};
pub use sources::{Builder, Listing, Origin};
pub use stream::Stream;
pub use telemetry::{LogFormat, Telemetry};

/// Why a configuration is refused.
#[derive(Debug, Error)]
#[error("{origin}: {detail}")]
pub struct ConfigError {
    origin: String,
    detail: String,
}

impl ConfigError {
    /// Settings that cannot be used, each with why.
    #[must_use]
    pub fn settings(wrong: &[(&'static str, String)]) -> Self {
        let one = |(setting, detail): &(&str, String)| format!("{setting}: {detail}");
        Self {
            origin: "configuration".to_owned(),
            detail: wrong.iter().map(one).collect::<Vec<_>>().join("; "),
        }
    }
}

/// The whole configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How the server listens.
    pub server: Server,
    /// Certificates.
    pub tls: Tls,
    /// Who may call.
    pub auth: Auth,
    /// Bounds on requests.
    pub limits: Limits,
    /// How the machine is used.
    pub engine: Engine,
    /// Where graphs run.
    pub device: Device,
    /// Which models are served.
    pub repository: Repository,
    /// Bounds on streams of frames.
    pub stream: Stream,
    /// What is told of the server's work.
    pub telemetry: Telemetry,
}

/// `[server]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address and port, or a list of them; a host's name stands for all its addresses, `unix:/PATH` is a socket in the file
    /// system. Counts for nothing where systemd has opened the sockets.
    pub listen: Listen,
    /// Allows an address other than loopback while there is neither TLS nor authorization.
    pub insecure: bool,
    /// Threads that read calls and write answers; 0 for one per four cores: the lanes and workers need the others.
    pub threads: usize,
    /// Seconds between telling the health check that the server drains and refusing new calls.
    pub lame_duck_seconds: u64,
    /// Seconds that calls under way get to finish after that.
    pub drain_seconds: u64,
    /// Most calls at once on one connection.
    pub max_streams: u32,
    /// Whether messages may come packed with gzip or zstd, and answers leave so where that is asked for.
    pub compression: bool,
    /// Most connections; beyond, the one that has been idle longest makes room. Never more than open files are left for.
    pub max_connections: usize,
    /// Seconds for a connection to finish its TLS handshake and its HTTP/2 preface.
    pub handshake_seconds: u64,
    /// Seconds after which a silent connection is asked for a sign of life; 0 for never.
    pub keepalive_seconds: u64,
    /// Seconds that it has to give one.
    pub keepalive_timeout_seconds: u64,
    /// Age in seconds at which a connection is told to move its next calls elsewhere; 0 for none.
    pub max_connection_age_seconds: u64,
    /// Seconds that its calls then have to finish.
    pub max_connection_age_grace_seconds: u64,
    /// Largest sum of a call's headers in bytes.
    pub header_bytes: u32,
    /// Calls that a connection may have cancelled before they are taken up; one more ends it.
    pub max_pending_resets: usize,
}

/// `[engine]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// Threads that run graphs; 0 for one per core. Where they are as many as the cores, and nobody else is put on these,
    /// each keeps to one of its own.
    pub lanes: usize,
    /// Cores to count on where they are shared, such as a pod's CPU request; 0 for all that the system gives the process.
    pub cores: usize,
    /// Threads that one lane's operators use.
    pub threads_per_lane: usize,
    /// Threads that decode and postprocess beside the lanes; 0: the lanes do it themselves, which suits a CPU.
    pub workers: usize,
    /// Largest backbone batch.
    pub max_batch: usize,
    /// Batch sizes to run, such as `[1, 4, 8]`; `"auto"` for those that warm-up shows to be worthwhile.
    pub buckets: Buckets,
    /// Milliseconds that a batch may wait to become as large as the largest of the batch sizes, and no longer than its
    /// images' deadlines let it; 0 for batches of what is there.
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

impl Default for Server {
    fn default() -> Self {
        let server = ServerConfig::default();
        Self {
            listen: Listen::default(),
            insecure: false,
            threads: 0,
            lame_duck_seconds: server.lame_duck.as_secs(),
            drain_seconds: server.drain_timeout.as_secs(),
            max_streams: server.max_streams,
            compression: server.compression,
            max_connections: server.transport.connections,
            handshake_seconds: server.transport.handshake.as_secs(),
            keepalive_seconds: server.transport.keepalive.as_secs(),
            keepalive_timeout_seconds: server.transport.keepalive_timeout.as_secs(),
            max_connection_age_seconds: server.transport.age.as_secs(),
            max_connection_age_grace_seconds: server.transport.age_grace.as_secs(),
            header_bytes: server.transport.header_bytes,
            max_pending_resets: server.transport.pending_resets,
        }
    }
}

impl Default for Engine {
    fn default() -> Self {
        let engine = EngineConfig::default();
        Self {
            lanes: engine.lanes,
            cores: engine.cores,
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

impl Engine {
    fn check(&self) -> Result<(), (&'static str, String)> {
        for (path, value) in [
            ("engine.lanes", self.lanes),
            ("engine.workers", self.workers),
        ] {
            if value > 256 {
                return Err((path, format!("is {value}, but must be at most 256")));
            }
        }
        if self.max_batch > 1024 {
            let detail = format!("is {}, but must be at most 1024", self.max_batch);
            return Err(("engine.max_batch", detail));
        }
        if let Buckets::Sizes(sizes) = &self.buckets {
            let most = self.max_batch;
            if sizes.is_empty() || sizes.iter().any(|size| !(1..=most).contains(size)) {
                let detail =
                    format!("is {sizes:?}, but must hold sizes from 1 to engine.max_batch, {most}");
                return Err(("engine.buckets", detail));
            }
        }
        if self.max_queue_delay_ms > 10_000 {
            let detail = format!("is {}, but must be at most 10000", self.max_queue_delay_ms);
            return Err(("engine.max_queue_delay_ms", detail));
        }
        for (path, weights) in [
            ("engine.head_weights", &self.head_weights),
            ("engine.caller_weights", &self.caller_weights),
        ] {
            if let Some((name, weight)) = weights.iter().find(|(_, w)| !(0.01..=100.0).contains(*w))
            {
                let detail = format!("gives {name:?} {weight}, but weights are from 0.01 to 100");
                return Err((path, detail));
            }
        }
        Ok(())
    }
}

impl Config {
    /// The engine's part.
    #[must_use]
    pub fn engine(&self) -> EngineConfig {
        EngineConfig {
            lanes: self.engine.lanes,
            cores: self.engine.cores,
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
                decode_bytes: self.limits.decode_bytes,
                result_bytes: self.limits.result_bytes,
                free_pixels: self.limits.free_pixels,
                pixels_per_byte: self.limits.pixels_per_byte,
            },
            media: media::Limits {
                max_bytes: self.limits.image_bytes,
                max_pixels: self.limits.image_pixels,
                max_side: self.limits.image_side,
            },
            max_frames: self.limits.frames,
            on_bad_head: self.repository.on_bad_head.unwrap_or_default(),
            required_heads: self.repository.required_heads.clone(),
            metrics: Arc::default(),
            tracer: Tracer::default(),
        }
    }

    /// Threads that read calls and write answers.
    #[must_use]
    pub fn server_threads(&self) -> usize {
        match self.server.threads {
            0 => (cores::count(self.engine.cores) / 4).max(1),
            threads => threads,
        }
    }

    /// The server's part.
    #[must_use]
    pub fn server(&self) -> ServerConfig {
        ServerConfig {
            max_request_bytes: self.limits.request_bytes,
            max_response_bytes: self.limits.response_bytes,
            drain_timeout: Duration::from_secs(self.server.drain_seconds),
            lame_duck: Duration::from_secs(self.server.lame_duck_seconds),
            default_deadline: match self.limits.default_deadline_ms {
                0 => None,
                millis => Some(Duration::from_millis(millis)),
            },
            max_streams: self.server.max_streams,
            compression: self.server.compression,
            life: Life::default(),
            transport: TransportLimits {
                connections: self.server.max_connections,
                calls: self.limits.calls_in_flight,
                bytes: self.limits.transport_bytes,
                handshake: Duration::from_secs(self.server.handshake_seconds),
                keepalive: Duration::from_secs(self.server.keepalive_seconds),
                keepalive_timeout: Duration::from_secs(self.server.keepalive_timeout_seconds),
                age: Duration::from_secs(self.server.max_connection_age_seconds),
                age_grace: Duration::from_secs(self.server.max_connection_age_grace_seconds),
                header_bytes: self.server.header_bytes,
                pending_resets: self.server.max_pending_resets,
                read: Duration::from_secs(self.limits.read_seconds),
                write: Duration::from_secs(self.limits.write_seconds),
            },
            tls: self.tls.server(),
            auth: self.auth.server(),
            stream: self.stream.limits(),
        }
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let at_least_one = [
            ("server.max_streams", self.server.max_streams as usize),
            ("server.max_connections", self.server.max_connections),
            (
                "server.handshake_seconds",
                self.server.handshake_seconds as usize,
            ),
            (
                "server.keepalive_timeout_seconds",
                self.server.keepalive_timeout_seconds as usize,
            ),
            ("server.max_pending_resets", self.server.max_pending_resets),
            ("engine.threads_per_lane", self.engine.threads_per_lane),
            ("engine.max_batch", self.engine.max_batch),
        ];
        if let Some((path, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err((path, "is 0, but must be at least 1".to_owned()));
        }
        self.engine.check()?;
        self.limits.check()?;
        self.stream.check()?;
        self.telemetry.check()?;
        // Beyond an hour or so times are mistakes, and beyond some thousand years they overflow.
        for (path, seconds) in [
            ("server.handshake_seconds", self.server.handshake_seconds),
            ("server.keepalive_seconds", self.server.keepalive_seconds),
            ("auth.leeway_seconds", self.auth.leeway_seconds),
        ] {
            if seconds > 86_400 {
                return Err((path, format!("is {seconds}, but must be at most 86400")));
            }
        }
        if self.server.header_bytes < 1024 {
            let detail = format!("is {}, but must be at least 1024", self.server.header_bytes);
            return Err(("server.header_bytes", detail));
        }
        self.tls.check()?;
        self.auth.check(&self.tls)?;
        let listen = &self.server.listen;
        let listens = listen.check().and_then(|()| match listen.exposed() {
            true => self.check_exposed(listen),
            false => Ok(()),
        });
        listens.map_err(|detail| ("server.listen", detail))
    }

    /// Whether others may reach `address`, as the configuration has it.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn check_exposed(&self, address: &dyn fmt::Display) -> Result<(), String> {
        let lacks = match (self.tls.cert.is_some(), self.auth.on()) {
            _ if self.server.insecure => return Ok(()),
            (true, true) => return Ok(()),
            (true, false) => "without authorization",
            (false, true) => "without TLS",
            (false, false) => "without TLS or authorization",
        };
        Err(format!(
            "is {address}, which others can reach {lacks}: listen on loopback, set [tls] and [auth], or set \
             server.insecure"
        ))
    }
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
