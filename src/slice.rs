//! Short slices of processor time, for threads that do little at once and must do it soon.

/// Asks the kernel to run the calling thread in slices of a tenth of a millisecond, the shortest there are.
///
/// It gets no more of the processor than before, but sooner: since Linux 6.12 a thread of shorter slices that wakes need
/// not wait until the one that runs, such as a lane in the middle of a graph, has had a slice of its own, which takes
/// about three milliseconds. An older kernel takes no notice, and one that refuses leaves things as they are. Whatever
/// the thread starts inherits it: not for one that starts lanes, which would be changed all the time.
pub fn shorten() {
    #[cfg(target_os = "linux")]
    linux::shorten();
}

#[cfg(target_os = "linux")]
mod linux {
    #![allow(unsafe_code)]

    pub(super) const SLICE_NANOS: u64 = 100_000;

    pub(super) fn shorten() {
        // As `sched_setattr(2)` reads it; under the usual policy `sched_runtime` is the slice.
        let attributes = libc::sched_attr {
            size: size_of::<libc::sched_attr>() as u32,
            sched_policy: libc::SCHED_OTHER as u32,
            sched_flags: 0,
            sched_nice: niceness(),
            sched_priority: 0,
            sched_runtime: SLICE_NANOS,
            sched_deadline: 0,
            sched_period: 0,
        };
        // SAFETY: the call reads `size` bytes from the pointer, which lives until it returns; thread 0 is the caller.
        let answer = unsafe {
            let (thread, flags) = (0 as libc::pid_t, 0 as libc::c_uint);
            libc::syscall(
                libc::SYS_sched_setattr,
                thread,
                &raw const attributes,
                flags,
            )
        };
        if answer != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, "slices stay as they are");
        }
    }

    /// The calling thread's.
    pub(super) fn niceness() -> i32 {
        // SAFETY: takes and gives numbers only.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(unsafe_code)]
mod tests {
    use super::linux::*;

    /// The calling thread's slice in nanoseconds; 0 on kernels that do not say.
    fn slice() -> u64 {
        // SAFETY: plain numbers, for which zeros are values; the call writes at most `size` bytes of them.
        let attributes = unsafe {
            let mut attributes: libc::sched_attr = std::mem::zeroed();
            let size = size_of::<libc::sched_attr>() as libc::c_uint;
            let (thread, flags) = (0 as libc::pid_t, 0 as libc::c_uint);
            libc::syscall(
                libc::SYS_sched_getattr,
                thread,
                &raw mut attributes,
                size,
                flags,
            );
            attributes
        };
        attributes.sched_runtime
    }

    #[test]
    fn a_thread_gets_short_slices_and_stays_as_nice_as_it_was() {
        let seen = std::thread::spawn(|| {
            // SAFETY: takes and gives numbers only.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness() + 3) };
            let before = (niceness(), slice());
            shorten();
            (before, (niceness(), slice()))
        });
        let Ok(((nice, long), after)) = seen.join() else {
            panic!("the thread panicked");
        };
        assert_eq!(after.0, nice);
        if long > 0 {
            assert_eq!(after.1, SLICE_NANOS);
        }
    }
}
