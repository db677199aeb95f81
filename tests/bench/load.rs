//! Load: closed loops and open ones, and what came of the calls.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use frostline::{
    client::{self, Client},
    media, proto,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinSet,
};
use tonic::{Code, Request, Status};

/// Side of the network's input.
pub(crate) const SIDE: u32 = 128;

/// Pixels that no other call has: nothing is shared.
pub(crate) fn pixels() -> Bytes {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static BASE: Vec<u8> = (0..SIDE * SIDE * 3)
            .map(|i| ((i / 3 % SIDE) * 3 + i / (3 * SIDE) + i % 3 * 80) as u8)
            .collect();
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    let mut rgb = BASE.with(Clone::clone);
    rgb[..8].copy_from_slice(&count);
    rgb.into()
}

/// The same as a JPEG of a tenth of the bytes, with a comment that no other has.
pub(crate) fn jpeg() -> Bytes {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static BASE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let image = media::Image::from_raw(SIDE, SIDE, pixels().to_vec()).unwrap();
        media::encode_jpeg(&image, 90).unwrap()
    });
    let count = COUNT.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    let (start, rest) = BASE.split_at(2);
    [start, &[0xff, 0xfe, 0, 10], &count, rest].concat().into()
}

/// Of one head, on one image.
pub(crate) fn request(head: &str, image: proto::Image) -> proto::AnalyzeRequest {
    proto::AnalyzeRequest {
        input: Some(proto::analyze_request::Input::Image(image)),
        heads: vec![head.to_owned()],
        ..Default::default()
    }
}

/// Whether the head has answered.
pub(crate) fn check(answer: &proto::AnalyzeResponse) -> Result<(), Status> {
    match answer.results.first().and_then(|r| r.outcome.as_ref()) {
        Some(proto::head_result::Outcome::Error(error)) => {
            Err(Status::new(Code::from(error.code), error.message.clone()))
        }
        Some(_) => Ok(()),
        None => Err(Status::internal("no result")),
    }
}

/// A call of one head on raw pixels of the network's size, as most clients make it.
pub(crate) async fn analyze(
    client: &Client,
    head: &str,
    deadline: Option<Duration>,
) -> Result<(), Status> {
    let mut request = Request::new(request(head, client::raw(SIDE, SIDE, pixels())));
    if let Some(deadline) = deadline {
        request.set_timeout(deadline);
    }
    let answer = client.vision.clone().analyze(request).await;
    // This client's own clock says so when it ends a call.
    let ended_here = |status: &Status| status.code() == Code::Cancelled && deadline.is_some();
    let answer = answer.map_err(|status| match ended_here(&status) {
        true => Status::deadline_exceeded(status.message()),
        false => status,
    })?;
    check(answer.get_ref())
}

/// What came of a closed loop.
pub(crate) struct Closed {
    /// Calls answered per second while all callers called: neither before the first answers nor after the last calls.
    pub(crate) rate: f64,
    /// Each call's milliseconds, ascending.
    pub(crate) times: Vec<f64>,
}

/// What a loop needs to be in its stride.
const RAMP: Duration = Duration::from_millis(100);

/// `concurrency` callers, each calling again as soon as it has its answer, for `turn`. Any failure ends it.
pub(crate) async fn closed<F>(
    concurrency: usize,
    turn: Duration,
    call: impl Fn() -> F + Send + Sync + 'static,
) -> anyhow::Result<Closed>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let (call, started) = (Arc::new(call), Instant::now());
    let mut callers = JoinSet::new();
    for _ in 0..concurrency {
        let call = Arc::clone(&call);
        callers.spawn(async move {
            let (mut times, mut counted) = (Vec::new(), 0);
            while started.elapsed() < turn {
                let begun = Instant::now();
                call().await?;
                times.push(millis(begun.elapsed()));
                counted += usize::from((RAMP..turn).contains(&started.elapsed()));
            }
            anyhow::Ok((times, counted))
        });
    }
    let (mut times, mut counted) = (Vec::new(), 0);
    while let Some(caller) = callers.join_next().await {
        let (its, count) = caller??;
        times.extend(its);
        counted += count;
    }
    let rate = counted as f64 / (turn - RAMP).as_secs_f64();
    times.sort_by(f64::total_cmp);
    Ok(Closed { rate, times })
}

/// What came of an open loop.
#[derive(Default)]
pub(crate) struct Open {
    /// Milliseconds of each call that was answered, from when it was due, ascending.
    pub(crate) times: Vec<f64>,
    /// The same of those that were answered while calls were still sent.
    meanwhile: Vec<f64>,
    /// Calls that failed, by code.
    pub(crate) failed: BTreeMap<i32, u64>,
    /// Milliseconds by which each call left after it was due, ascending.
    pub(crate) late: Vec<f64>,
    /// How long calls were sent.
    pub(crate) lasted: Duration,
}

impl Open {
    /// Calls answered per second while calls were sent, if within `limit` milliseconds. What waited at the end, and was
    /// answered after it, does not count.
    pub(crate) fn rate_within(&self, limit: f64) -> f64 {
        let useful = self.meanwhile.iter().filter(|&&t| t <= limit).count();
        useful as f64 / self.lasted.as_secs_f64()
    }

    /// Calls that failed with other codes than those given.
    pub(crate) fn failed_otherwise(&self, codes: &[Code]) -> u64 {
        let other = |code: i32| codes.iter().all(|&c| c as i32 != code);
        let failed = self.failed.iter().filter(|(code, _)| other(**code));
        failed.map(|(_, count)| count).sum()
    }
}

/// `rate` calls per second for `turn`, whether earlier ones are answered or not: at even distances, or, where `tick` is
/// longer than those, those that have become due together. To wake for each call costs as much as to send it.
pub(crate) async fn open<F>(
    rate: f64,
    turn: Duration,
    tick: Duration,
    call: impl Fn(usize) -> F,
) -> anyhow::Result<Open>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let started = Instant::now();
    let mut calls: JoinSet<(f64, Result<(), Status>)> = JoinSet::new();
    let mut open = Open::default();
    let note = |open: &mut Open, (time, result): (f64, Result<(), Status>)| match result {
        Ok(()) => open.times.push(time),
        Err(status) => *open.failed.entry(status.code() as i32).or_default() += 1,
    };
    // Up, so that no tick comes before its call is due.
    let apart = Duration::from_nanos((1e9 / rate).ceil() as u64);
    let clock = Clock::start(tick.max(apart))?;
    let (mut sent, all) = (0, 1 + (rate * turn.as_secs_f64()) as usize);
    while sent < all {
        clock.tick().await?;
        let count = all.min(1 + (rate * started.elapsed().as_secs_f64()) as usize);
        for number in sent..count {
            let due = started + Duration::from_secs_f64(number as f64 / rate);
            open.late.push(millis(due.elapsed()));
            let work = call(number);
            calls.spawn(async move {
                let result = work.await;
                (millis(due.elapsed()), result)
            });
        }
        sent = count;
        while let Some(done) = calls.try_join_next() {
            note(&mut open, done?);
        }
    }
    open.lasted = started.elapsed();
    while let Some(done) = calls.try_join_next() {
        note(&mut open, done?);
    }
    open.meanwhile = open.times.clone();
    while let Some(done) = calls.join_next().await {
        note(&mut open, done?);
    }
    open.times.sort_by(f64::total_cmp);
    open.late.sort_by(f64::total_cmp);
    Ok(open)
}

/// Ticks to the nanosecond: tokio's timers count milliseconds, between which more than one call would be due.
struct Clock(AsyncFd<OwnedFd>);

impl Clock {
    /// One that ticks now, and from then on every `interval`.
    fn start(interval: Duration) -> anyhow::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let spec = Itimerspec {
            it_value: Duration::from_nanos(1).try_into()?,
            it_interval: interval.try_into()?,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &spec)?;
        #[allow(unsafe_code)]
        // SAFETY: the timer stays open, and the same, for as long as it is owned, which the result does.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE)? };
        Ok(Self(timer))
    }

    /// Waits for the next tick; those that were missed count as one.
    async fn tick(&self) -> anyhow::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = |timer: &AsyncFd<OwnedFd>| Ok(rustix::io::read(timer, &mut [0; 8])?);
            if let Ok(read) = ready.try_io(read) {
                read?;
                return Ok(());
            }
        }
    }
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The value below which the part `of` of the ascending `values` lies.
pub(crate) fn quantile(values: &[f64], of: f64) -> f64 {
    let last = values.len().saturating_sub(1);
    let at = (last as f64 * of).round() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}
