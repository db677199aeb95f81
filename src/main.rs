//! The `frostline` command.

use std::{process::ExitCode, thread, time::Duration};

/// Requests allocate and free on different threads, which it is quick at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How often memory that nobody uses goes back to the system.
const INTERVAL: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    give_back();
    frostline::cli::main()
}

/// Starts a thread that gives free memory back. By itself the allocator does so only while it is called: a server that
/// falls idle would keep what its last busy second took.
fn give_back() {
    let started = thread::Builder::new().name("memory".into()).spawn(|| {
        loop {
            thread::sleep(INTERVAL);
            #[allow(unsafe_code)]
            // SAFETY: asks nothing of its caller. What other threads hold stays theirs.
            unsafe {
                libmimalloc_sys::mi_collect(true);
            }
        }
    });
    // Without the thread all works, with more memory.
    drop(started);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Resident memory, MiB.
    fn resident() -> u64 {
        let process = procfs::process::Process::myself().unwrap();
        (process.statm().unwrap().resident * procfs::page_size()) >> 20
    }

    #[test]
    fn memory_is_given_back_while_nothing_is_allocated() {
        give_back();
        let before = resident();
        let images: Vec<_> = (0..2000).map(|_| vec![1_u8; 48 << 10]).collect();
        let full = resident();
        assert!(full > before + 80, "{before} and {full} MiB");
        drop(images);
        let until = Instant::now() + Duration::from_secs(60);
        while resident() > before + 20 {
            assert!(Instant::now() < until, "{} MiB of {full}", resident());
            thread::sleep(INTERVAL / 10);
        }
    }
}
