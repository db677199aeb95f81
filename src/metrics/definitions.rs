//! Every metric's name, kind, labels and meaning.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size; also its `_sum` and `_count`.
    Histogram,
}

impl Kind {
    /// As the text format calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// As scraped.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

const fn of(
    kind: Kind,
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Definition {
    Definition {
        name,
        kind,
        labels,
        help,
    }
}

use Kind::{Counter, Gauge, Histogram};

/// All metrics, in the order of the reference page.
pub const DEFINITIONS: &[Definition] = &[
    // === calls ===
    of(
        Histogram,
        "frostline_call_duration_seconds",
        &["method", "code"],
        "From a gRPC call's headers to its last byte, by full method name and gRPC code",
    ),
    of(
        Counter,
        "frostline_calls_total",
        &["service", "code"],
        "gRPC calls by service and gRPC code; every service has all codes from the start",
    ),
    of(
        Gauge,
        "frostline_calls_in_flight",
        &[],
        "gRPC calls under way",
    ),
    of(
        Gauge,
        "frostline_transport_bytes",
        &[],
        "Bytes of requests in arrival and of answers that wait for their readers, of limits.transport_bytes",
    ),
    of(
        Histogram,
        "frostline_stage_duration_seconds",
        &["stage", "head", "code"],
        "Each stage of each head's part of a request: queue, decode, backbone, head, postprocess, total; code is OK or the error's reason, and failed parts have only a total",
    ),
    of(
        Counter,
        "frostline_refused_total",
        &["reason"],
        "Requests refused before any work: full, deadline (cannot be met), too_large, bytes (of requests in arrival and unread answers); by a limit on their caller: rate, concurrency, pixels; connections that only make work: flood; connections without a place: connections; streams without a place or beyond what can be promised: streams; what is no gRPC: not_grpc",
    ),
    of(
        Gauge,
        "frostline_connections",
        &[],
        "Open connections, those included that have not said yet what they are",
    ),
    of(
        Counter,
        "frostline_connections_ended_total",
        &["reason"],
        "Connections that the server ended: handshake (TLS failed), handshake_timeout, not_grpc, evicted (idle longest when another came), refused (no place); all there from the start",
    ),
    of(
        Counter,
        "frostline_resets_total",
        &[],
        "Calls that their callers gave up by resetting the stream: deadlines that passed at the caller's, cancelled calls",
    ),
    // === sharing ===
    of(
        Counter,
        "frostline_backbone_images_total",
        &[],
        "Images that the backbone ran on",
    ),
    of(
        Counter,
        "frostline_backbone_runs_saved_total",
        &["reason"],
        "Backbone runs that sharing saved: multi_head (further heads of a request), in_flight (an equal image was under way), cache",
    ),
    of(
        Counter,
        "frostline_images_dropped_total",
        &[],
        "Images dropped before the backbone because their callers left or could not be answered in time",
    ),
    of(
        Counter,
        "frostline_cache_hits_total",
        &[],
        "Images whose features were in the cache",
    ),
    of(
        Counter,
        "frostline_cache_misses_total",
        &[],
        "Images whose features were looked for in the cache in vain",
    ),
    of(
        Counter,
        "frostline_cache_evictions_total",
        &[],
        "Features that the cache let go of for others",
    ),
    of(
        Gauge,
        "frostline_cache_bytes",
        &[],
        "Bytes of features in the cache",
    ),
    of(
        Gauge,
        "frostline_cache_limit_bytes",
        &[],
        "Bytes that the cache may hold",
    ),
    // === batches and queues ===
    of(
        Histogram,
        "frostline_batch_images",
        &[],
        "Images in a backbone batch, padding left out",
    ),
    of(
        Counter,
        "frostline_batch_padding_total",
        &[],
        "Rows of backbone batches that held no image",
    ),
    of(
        Gauge,
        "frostline_batch_cost_seconds",
        &["height", "width", "images", "used"],
        "What a backbone batch of a size cost at warm-up with every lane busy, and whether the size is used",
    ),
    of(
        Gauge,
        "frostline_queued_images",
        &[],
        "Images that wait for a lane, decoded or not",
    ),
    of(
        Gauge,
        "frostline_queued_work_seconds",
        &[],
        "About how long the images that wait take",
    ),
    of(
        Gauge,
        "frostline_images_in_flight",
        &[],
        "Images accepted and not yet answered",
    ),
    of(
        Gauge,
        "frostline_images_in_flight_limit",
        &[],
        "Most images that are accepted at once",
    ),
    // === device ===
    of(Gauge, "frostline_lanes", &[], "Threads that run graphs"),
    of(
        Counter,
        "frostline_lane_busy_seconds_total",
        &["work"],
        "Time that lanes spent, over all lanes, by kind of work (decode, graphs, results); the rate of all kinds over frostline_lanes is the busy share",
    ),
    of(
        Gauge,
        "frostline_workers",
        &[],
        "Threads that decode and make results beside the lanes; 0 where the lanes do that work, as on a CPU",
    ),
    of(
        Counter,
        "frostline_worker_busy_seconds_total",
        &["work"],
        "The same time of these threads, over all of them",
    ),
    of(
        Counter,
        "frostline_device_seconds_total",
        &["stage", "head", "identity"],
        "Time in graphs (backbone, head) by head and by whom it was for; the first 100 callers by name, the others as other, callers without a name as an empty one",
    ),
    of(
        Counter,
        "frostline_device_copy_bytes_total",
        &["direction"],
        "Bytes copied between host and device (to_device, to_host); none on a CPU",
    ),
    of(
        Gauge,
        "frostline_device_memory_bytes",
        &["kind"],
        "Memory of the device in use and in all (used, total); on a CPU the process's resident memory and what the machine or its control group has",
    ),
    // === models and process ===
    of(
        Gauge,
        "frostline_ready",
        &[],
        "1 while requests are taken, 0 while warming up, draining or after the device died",
    ),
    of(
        Gauge,
        "frostline_head_info",
        &["head", "version", "task"],
        "1 for each loaded head",
    ),
    of(
        Counter,
        "frostline_head_loads_total",
        &["head", "result"],
        "Heads loaded or replaced while serving (loaded, failed); both are there from a head's first sight",
    ),
    of(
        Gauge,
        "frostline_head_current",
        &["head"],
        "Whether a head's newest version in the repository serves: 0 while it does not load; nothing for a head that was unloaded or is gone",
    ),
    of(
        Gauge,
        "frostline_files_current",
        &["files"],
        "Whether all of what files say is in use (keys, jwks, certificates, repository, admin_tokens): 0 while they cannot be read, do not hold or hold in part",
    ),
    of(
        Counter,
        "frostline_reloads_total",
        &["files", "result"],
        "Changes of these files while serving, by what became of them (done, failed: not or only in part taken over)",
    ),
    of(
        Gauge,
        "frostline_certificate_not_before_seconds",
        &["usage", "name"],
        "From when a certificate in use holds (server, chain, client_ca), seconds since 1970",
    ),
    of(
        Gauge,
        "frostline_certificate_not_after_seconds",
        &["usage", "name"],
        "Until when a certificate in use holds, seconds since 1970; less time(), over 86400, are the days left",
    ),
    of(
        Gauge,
        "frostline_build_info",
        &["version", "backbone", "backbone_version", "fingerprint"],
        "1, with the versions of the server and of its backbone",
    ),
    of(
        Counter,
        "process_cpu_seconds_total",
        &[],
        "User and system time of the process",
    ),
    of(
        Gauge,
        "process_resident_memory_bytes",
        &[],
        "Resident memory of the process",
    ),
    of(
        Gauge,
        "process_virtual_memory_bytes",
        &[],
        "Virtual memory of the process",
    ),
    of(
        Gauge,
        "frostline_memory_limit_bytes",
        &[],
        "Memory that the process may have: its control group's limit, or the machine's memory",
    ),
    of(Gauge, "process_threads", &[], "Threads of the process"),
    of(Gauge, "process_open_fds", &[], "Open file descriptors"),
    of(
        Gauge,
        "process_max_fds",
        &[],
        "Most file descriptors that may be open",
    ),
    of(
        Gauge,
        "process_start_time_seconds",
        &[],
        "When the process started, seconds since 1970",
    ),
];

/// The metric called `name`.
pub(super) fn named(name: &str) -> Option<&'static Definition> {
    DEFINITIONS
        .iter()
        .find(|definition| definition.name == name)
}
