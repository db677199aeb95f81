//! Freed memory, of which every thread keeps some for itself.

use std::{
    cell::{Cell, OnceCell},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// How often a thread gives back what it keeps.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// How long threads are kept awake for others that rest to wake as well.
const TOGETHER: Duration = Duration::from_millis(5);

thread_local! {
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    static OWN: OnceCell<Arc<Rest>> = const { OnceCell::new() };
}

/// The executor's threads.
static THREADS: LazyLock<Mutex<Vec<Arc<Rest>>>> = LazyLock::new(Mutex::default);
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// One thread's rest.
#[derive(Debug, Default)]
struct Rest {
    /// Since when, in milliseconds after the origin, plus one; 0 while it works.
    since: AtomicU64,
    /// Whether it went to rest with memory that it has freed since it gave back some.
    keeps: AtomicBool,
}

/// Gives back what the calling thread keeps of its freed memory, about once in [`INTERVAL`] however often it is called;
/// whether it did. Nobody else can do it: a thread that rests has to wake for it. Nothing where another allocator is in
/// use.
pub(crate) fn tidy() -> bool {
    let now = Instant::now();
    let due = |last: Instant| now.duration_since(last) >= INTERVAL / 2;
    let due = LAST.get().is_none_or(due);
    if due {
        LAST.set(Some(now));
        #[allow(unsafe_code)]
        // SAFETY: asks nothing of its caller. What is in use, or other threads hold, stays.
        unsafe {
            libmimalloc_sys::mi_collect(true);
        }
    }
    due
}

fn millis() -> u64 {
    u64::try_from(ORIGIN.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
}

/// A thread of the executor goes to rest.
pub(crate) fn rests() {
    let keeps = !tidy();
    OWN.with(|own| {
        let own = own.get_or_init(|| {
            let rest = Arc::<Rest>::default();
            THREADS.lock().push(Arc::clone(&rest));
            rest
        });
        own.keeps.store(keeps, Ordering::Relaxed);
        own.since.store(millis(), Ordering::Release);
    });
}

/// A thread of the executor wakes.
pub(crate) fn wakes() {
    OWN.with(|own| {
        if let Some(own) = own.get() {
            own.since.store(0, Ordering::Release);
        }
    });
}

/// Whether a thread has been at rest for a while with memory to give back.
fn is_kept() -> bool {
    let long = INTERVAL.as_millis() as u64 / 2;
    let since = millis().saturating_sub(long);
    let mut threads = THREADS.lock();
    // Those of an executor that is gone.
    threads.retain(|rest| Arc::strong_count(rest) > 1);
    threads.iter().any(|rest| {
        let rests = rest.since.load(Ordering::Acquire);
        rests > 0 && rests < since && rest.keeps.load(Ordering::Relaxed)
    })
}

/// Wakes, on the executor that it runs on, whichever of its `threads` rest with memory to give back: they do when they go
/// to rest again. Runs for ever.
///
/// Which thread takes a task is the executor's choice, mostly that which rested last: so as many tasks are spawned as
/// there are threads, and each holds its thread until all have woken.
pub(crate) async fn wake_resting(threads: usize) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if !is_kept() {
            continue;
        }
        for _ in 0..threads {
            tokio::spawn(async {
                let until = Instant::now() + TOGETHER;
                while is_kept() && Instant::now() < until {
                    std::thread::sleep(TOGETHER / 20);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_that_rests_is_woken_to_give_back_what_it_keeps() {
        const THREADS: usize = 4;
        let executor = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .on_thread_park(rests)
            .on_thread_unpark(wakes)
            .enable_all()
            .build()
            .expect("threads can be started");
        // Each has tidied up, and then rests at once with what came after.
        let busy: Vec<_> = (0..THREADS)
            .map(|_| executor.spawn(async { std::thread::sleep(Duration::from_millis(50)) }))
            .collect();
        executor.block_on(async {
            for one in busy {
                one.await.expect("it sleeps");
            }
            let kept = || {
                super::THREADS
                    .lock()
                    .iter()
                    .any(|r| r.keeps.load(Ordering::Relaxed))
            };
            super::THREADS
                .lock()
                .iter()
                .for_each(|r| r.keeps.store(true, Ordering::Relaxed));
            tokio::spawn(wake_resting(THREADS));
            let limit = Duration::from_secs(60);
            let given_back = async {
                while kept() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            assert!(tokio::time::timeout(limit, given_back).await.is_ok());
        });
    }
}
