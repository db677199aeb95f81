//! File descriptors: how many this process may have open, and how many of them connections may take.

use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are kept for all but calls: probes, files of models and keys that are read again, the exporter of
/// traces.
const KEPT: u64 = 64;

/// Raises the number of files that this process may open as far as it is allowed to; what that number is then, if there is
/// a bound.
pub(crate) fn raise() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, soft = limit.current, hard = limit.maximum, "the limit on open files stays as it is");
    }
    getrlimit(Resource::Nofile).current
}

/// How many of `limit` descriptors are left for connections, beside those that are open now and those that are kept.
///
/// # Errors
/// Where the open ones cannot be counted.
pub(crate) fn left(limit: u64) -> io::Result<u64> {
    // One of them reads the folder.
    let open = fs::read_dir("/proc/self/fd")?.count() as u64;
    Ok(limit.saturating_sub(open).saturating_sub(KEPT))
}
