//! What the kernel tells of this process.

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
    let resident = Process::myself().and_then(|process| process.stat());
    let machine = procfs::Meminfo::current().map(|memory| memory.mem_total);
    let group = ["memory.max", "memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|file| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok())
        .and_then(|text| text.trim().parse::<u64>().ok());
    let used = resident.ok().map(|stat| stat.rss_bytes().get());
    let total = machine.ok().into_iter().chain(group).min();
    for (kind, bytes) in [("used", used), ("total", total)] {
        if let Some(bytes) = bytes {
            let labels = vec![("kind", kind.to_owned())];
            out.labelled("frostline_device_memory_bytes", labels, bytes as f64);
        }
    }
}
