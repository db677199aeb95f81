//! What the kernel tells of this process.

use std::{
    fs,
    path::{Path, PathBuf},
};

use procfs::{Current, WithCurrentSystemInfo, process::Process};

use super::Sample;

/// Adds the process's numbers; those that the kernel does not tell are left out.
pub(super) fn sample(out: &mut Sample) {
    let Ok(process) = Process::myself() else {
        return;
    };
    if let Ok(stat) = process.stat() {
        let ticks = procfs::ticks_per_second().max(1) as f64;
        let resident = stat.rss_bytes().get() as f64;
        out.add(
            "process_cpu_seconds_total",
            (stat.utime + stat.stime) as f64 / ticks,
        );
        out.add("process_resident_memory_bytes", resident);
        out.add("process_virtual_memory_bytes", stat.vsize as f64);
        out.add("process_threads", stat.num_threads as f64);
        if let Ok(boot) = procfs::boot_time_secs() {
            let started = boot as f64 + stat.starttime as f64 / ticks;
            out.add("process_start_time_seconds", started);
        }
    }
    if let Some(bytes) = memory_limit() {
        out.add("frostline_memory_limit_bytes", bytes as f64);
    }
    if let Ok(open) = process.fd_count() {
        out.add("process_open_fds", open as f64);
    }
    if let Ok(limits) = process.limits()
        && let procfs::process::LimitValue::Value(most) = limits.max_open_files.soft_limit
    {
        out.add("process_max_fds", most as f64);
    }
}

/// Adds memory in use and in all where the device is the CPU: the process's, and its control group's or the machine's.
pub fn host_memory(out: &mut Sample) {
    for (kind, bytes) in [("used", resident()), ("total", memory_limit())] {
        if let Some(bytes) = bytes {
            let labels = vec![("kind", kind.to_owned())];
            out.labelled("frostline_device_memory_bytes", labels, bytes as f64);
        }
    }
}

/// Memory that the process has, bytes.
#[must_use]
pub fn resident() -> Option<u64> {
    let stat = Process::myself().and_then(|process| process.stat());
    stat.ok().map(|stat| stat.rss_bytes().get())
}

/// Most memory that the process may have: the least of the limits of the control groups that it is in, or the machine's.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    let machine = procfs::Meminfo::current().map(|memory| memory.mem_total);
    let mut files = vec![PathBuf::from("/sys/fs/cgroup/memory/memory.limit_in_bytes")];
    // Outside a container the group is a folder below the root, and each one above it bounds it too.
    let groups = Process::myself().and_then(|process| process.cgroups());
    let group = groups.ok().and_then(|groups| {
        let unified = groups.into_iter().find(|group| group.hierarchy == 0)?;
        Some(unified.pathname)
    });
    let group = group.unwrap_or_default();
    let folders = Path::new(group.trim_start_matches('/')).ancestors();
    files.extend(folders.map(|folder| Path::new("/sys/fs/cgroup").join(folder).join("memory.max")));
    let limits = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
    machine.ok().into_iter().chain(limits).min()
}
