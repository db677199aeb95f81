//! The section `[telemetry]`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Config;
use crate::{server::AdminAccess, trace::TraceConfig};

/// What `telemetry.audit` says where it goes to the log.
const LOG: &str = "log";

/// `[telemetry]`
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Log filter, as `tracing` writes them.
    pub log: String,
    /// `text` or `json`.
    pub format: LogFormat,
    /// Where it is recorded who changed what: `log`, or a file that gets a JSON object a line in its place.
    pub audit: String,
    /// Address and port for probes, metrics and the log's filter over HTTP, for whoever reaches it; none if unset.
    pub admin: Option<SocketAddr>,
    /// Whether others than this machine may change the log's filter through the admin port.
    pub remote_log: bool,
    /// Names under which the admin port is called, beside addresses, `localhost` and names without a dot; `*.suffix` stands
    /// for all that end so. Requests for other names, and those of pages in a browser, are refused.
    pub admin_hosts: Vec<String>,
    /// File of tokens, one a line, of which the admin port wants one (`Authorization: Bearer …`) for metrics and the log's
    /// filter; whoever reaches it may have those if unset. Probes need none. Read again when it changes.
    pub admin_tokens: Option<PathBuf>,
    /// The collector that traces are sent to, OTLP over gRPC, such as `http://127.0.0.1:4317` or, over TLS,
    /// `https://collector.example:4317`; none if unset.
    pub traces: Option<String>,
    /// File of authorities that the collector's certificate may come from, PEM; the system's if unset.
    pub traces_ca: Option<PathBuf>,
    /// Share of calls that are traced when their caller did not decide, 0 to 1.
    pub trace_ratio: f64,
    /// Most spans that wait to be sent; those beyond are dropped.
    pub trace_queue: usize,
    /// The name under which traces show this server.
    pub service: String,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines, one object a line.
    Json,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            log: "info,ort=warn".to_owned(),
            format: LogFormat::Text,
            audit: LOG.to_owned(),
            admin: None,
            remote_log: AdminAccess::default().remote_log,
            admin_hosts: AdminAccess::default().hosts,
            admin_tokens: None,
            traces: None,
            traces_ca: None,
            trace_ratio: 0.01,
            trace_queue: 2048,
            service: "frostline".to_owned(),
        }
    }
}

impl Config {
    /// Where traces go, if anywhere.
    #[must_use]
    pub fn traces(&self) -> Option<TraceConfig> {
        self.telemetry.traces.as_ref().map(|endpoint| TraceConfig {
            endpoint: endpoint.clone(),
            authorities: self.telemetry.traces_ca.clone(),
            ratio: self.telemetry.trace_ratio,
            queue: self.telemetry.trace_queue,
            interval: Duration::from_secs(1),
            service: self.telemetry.service.clone(),
        })
    }
}

impl Telemetry {
    /// Whom the admin port serves; without its tokens, which are read by whoever serves.
    #[must_use]
    pub fn access(&self) -> AdminAccess {
        AdminAccess {
            remote_log: self.remote_log,
            hosts: self.admin_hosts.clone(),
            tokens: None,
        }
    }

    /// The file of the audit; none if it goes to the log.
    #[must_use]
    pub fn audit_file(&self) -> Option<&Path> {
        (self.audit != LOG).then(|| Path::new(&self.audit))
    }

    /// Whether others than this machine can reach the admin port.
    #[must_use]
    pub fn exposed(&self) -> bool {
        self.admin
            .is_some_and(|address| !address.ip().to_canonical().is_loopback())
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            let detail = format!("is {}, but must be from 0 to 1", self.trace_ratio);
            return Err(("telemetry.trace_ratio", detail));
        }
        if self.audit.is_empty() {
            let detail = "is empty, but must be log or a file".to_owned();
            return Err(("telemetry.audit", detail));
        }
        if !(1..=1 << 20).contains(&self.trace_queue) {
            let detail = format!("is {}, but must be from 1 to 1048576", self.trace_queue);
            return Err(("telemetry.trace_queue", detail));
        }
        if let Some(endpoint) = &self.traces
            && !["http://", "https://"]
                .iter()
                .any(|scheme| endpoint.starts_with(scheme))
        {
            let detail =
                format!("is {endpoint:?}, but must be http://HOST:PORT or https://HOST:PORT");
            return Err(("telemetry.traces", detail));
        }
        if self.traces_ca.is_some()
            && !self
                .traces
                .as_ref()
                .is_some_and(|to| to.starts_with("https://"))
        {
            let detail = "is set, but telemetry.traces is not an address with https://".to_owned();
            return Err(("telemetry.traces_ca", detail));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_port_beyond_loopback_is_known_for_one() {
        let at = |address: &str| Telemetry {
            admin: address.parse().ok(),
            ..Telemetry::default()
        };
        for here in [
            "",
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(!at(here).exposed(), "{here}");
        }
        for reached in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            assert!(at(reached).exposed(), "{reached}");
        }
    }
}
