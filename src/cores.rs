//! Processor cores of their own, for threads that are as many as the cores and never rest.

/// The cores that the calling thread may run on, smallest number first; none where the system does not say.
pub(crate) fn allowed() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    return linux::allowed();
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

/// How many cores the system gives this process, and no more than `most` if that is not 0: a share of time in a control
/// group counts as so many.
pub(crate) fn count(most: usize) -> usize {
    let given = std::thread::available_parallelism().map_or(1, usize::from);
    match most {
        0 => given,
        most => given.min(most),
    }
}

/// Whether nobody else is put on the cores of this process: on a node of Kubernetes others are, unless it has a set of its
/// own there, which is not all that the machine has.
pub(crate) fn own() -> bool {
    let pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    !pod || allowed().len() < online().unwrap_or(0)
}

/// The machine's cores.
fn online() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    // Such as 0-3,8.
    let ranges = text.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    });
    ranges.sum()
}

/// Keeps the calling thread on `core`.
///
/// A thread that wakes while every core is taken may be put beside another of its kind, and wait for the whole slice of
/// that one, about three milliseconds, while the core that it left falls idle: too short a rest for the kernel to bring
/// it back. A core that is refused leaves things as they are; one that is taken away later frees the thread.
pub(crate) fn keep_to(core: usize) {
    #[cfg(target_os = "linux")]
    linux::keep_to(core);
    #[cfg(not(target_os = "linux"))]
    let _ = core;
}

#[cfg(target_os = "linux")]
mod linux {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub(super) fn allowed() -> Vec<usize> {
        sched_getaffinity(None).map_or(Vec::new(), |set| {
            let cores = 0..CpuSet::MAX_CPU;
            cores.filter(|core| set.is_set(*core)).collect()
        })
    }

    pub(super) fn keep_to(core: usize) {
        let mut set = CpuSet::new();
        if core < CpuSet::MAX_CPU {
            set.set(core);
        }
        if let Err(error) = sched_setaffinity(None, &set) {
            tracing::debug!(%error, core, "a thread runs wherever it is put");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_to_its_core_and_others_do_not() {
        let before = allowed();
        let core = *before.last().expect("some core");
        let kept = std::thread::spawn(move || {
            keep_to(core);
            allowed()
        });
        assert_eq!(kept.join().ok(), Some(vec![core]));
        assert_eq!(allowed(), before);
    }

    #[test]
    fn a_core_that_there_is_not_changes_nothing() {
        let kept = std::thread::spawn(|| {
            let before = allowed();
            keep_to(1_000_000);
            (before, allowed())
        });
        let (before, after) = kept.join().expect("it runs");
        assert_eq!(before, after);
    }
}
