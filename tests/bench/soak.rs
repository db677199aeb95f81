//! Nothing is lost and nothing leaks: cancellations, deadlines, refusals, reloads, signals, a million requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use frostline::{client::Client, proto};
use tokio::task::JoinSet;
use tonic::Code;

use crate::{
    common::{
        graphs::{ECHO, HeadGraph, write_head},
        process::Process,
    },
    load::{SIDE, analyze},
    overhead::echo,
    report::{Bar, Report},
};

const CALLERS: usize = 32;
const RELOADS: u64 = 1000;

/// Numbers that look random, the same in every run (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// What came of the calls of a soak.
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    refused: AtomicU64,
    late: AtomicU64,
    cancelled: AtomicU64,
    wrong: AtomicU64,
    overdue: AtomicU64,
}

impl Tally {
    fn all(&self) -> u64 {
        let counts = [
            &self.answered,
            &self.refused,
            &self.late,
            &self.cancelled,
            &self.wrong,
        ];
        counts.iter().map(|c| c.load(Ordering::Relaxed)).sum()
    }
}

/// Calls after which a caller connects anew: HTTP/2 libraries end a connection on which many calls were given up.
const RECONNECT: u64 = 1000;

/// `count` calls from [`CALLERS`] callers: one in eight is given up, one in eight has a short deadline.
async fn mixed(address: &str, count: u64, tally: &Arc<Tally>) -> anyhow::Result<()> {
    let left = Arc::new(AtomicU64::new(count));
    let mut callers = JoinSet::new();
    for seed in 0..CALLERS as u64 {
        let (address, left, tally) = (address.to_owned(), Arc::clone(&left), Arc::clone(tally));
        callers.spawn(async move {
            let (mut dice, mut calls) = (Dice(seed), 0);
            let mut client = Client::connect(&address).await?;
            let take = |left: u64| left.checked_sub(1);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
            {
                calls += 1;
                if calls % RECONNECT == 0 {
                    client = Client::connect(&address).await?;
                }
                let micros = Duration::from_micros(dice.roll(4000));
                let (patience, deadline) = match dice.roll(8) {
                    0 => (micros, None),
                    1 => (Duration::from_secs(30), Some(micros)),
                    _ => (Duration::from_secs(30), None),
                };
                let call = analyze(&client, "echo", deadline);
                let counter = match tokio::time::timeout(patience, call).await {
                    Ok(Ok(())) => &tally.answered,
                    Ok(Err(status)) => match status.code() {
                        Code::ResourceExhausted => &tally.refused,
                        Code::DeadlineExceeded if deadline.is_some() => &tally.late,
                        _ => &tally.wrong,
                    },
                    Err(_) if patience < Duration::from_secs(30) => &tally.cancelled,
                    Err(_) => &tally.overdue,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(())
}

/// 100 000 requests with everything that can go wrong; then every place at the door has to be free again.
pub(crate) async fn conservation(report: &mut Report) -> anyhow::Result<()> {
    const COUNT: u64 = 100_000;
    let folder = echo();
    // So few places that the callers are refused now and then.
    let server = Process::start(Some(folder.path()), &["limits.images_in_flight=24"])?;
    let client = Client::connect(&server.address).await?;
    let (tally, over) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let reloads = {
        let (mut model, over) = (client.model.clone(), Arc::clone(&over));
        tokio::spawn(async move {
            let mut reloads = 0_u64;
            while !over.load(Ordering::Relaxed) {
                let name = "echo".to_owned();
                model.load_head(proto::LoadHeadRequest { name }).await?;
                reloads += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            anyhow::Ok(reloads)
        })
    };
    mixed(&server.address, COUNT, &tally).await?;
    over.store(true, Ordering::Relaxed);
    let reloads = reloads.await??;
    // As many at once as a lone flow may hold: a place that leaked would show as a refusal.
    let after = Arc::new(Tally::default());
    for _ in 0..50 {
        let mut calls = JoinSet::new();
        for _ in 0..20 {
            let (client, after) = (client.clone(), Arc::clone(&after));
            calls.spawn(async move {
                let counter = match analyze(&client, "echo", None).await {
                    Ok(()) => &after.answered,
                    Err(_) => &after.wrong,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            });
        }
        while let Some(call) = calls.join_next().await {
            call?;
        }
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    report.note("conservation: reloads meanwhile", reloads as f64, "reloads");
    report.note("conservation: answered", count(&tally.answered), "calls");
    report.note("conservation: refused", count(&tally.refused), "calls");
    report.note("conservation: deadline passed", count(&tally.late), "calls");
    report.note(
        "conservation: given up by the caller",
        count(&tally.cancelled),
        "calls",
    );
    let lost = COUNT as f64 - tally.all() as f64 + count(&tally.wrong) + count(&tally.overdue);
    let name = "conservation, 100k requests: without their one proper answer";
    report.held(name, lost, "calls", Bar::Exactly(0.0));
    let name = "conservation: refused afterwards, places that leaked";
    report.held(name, count(&after.wrong), "calls", Bar::Exactly(0.0));
    Ok(())
}

/// A signal under load, 1000 reloads under load.
pub(crate) async fn lifecycle(report: &mut Report) -> anyhow::Result<()> {
    let folder = echo();
    let server = Process::start(Some(folder.path()), &[])?;
    let client = Client::connect(&server.address).await?;
    let over = Arc::new(AtomicBool::new(false));
    let callers = callers(&client, 8, &over);
    let root = folder.path().to_owned();
    let backbone = ECHO.write(&root);
    let (mut model, mut first) = (client.model.clone(), 0.0);
    let begun = Instant::now();
    for reload in 1..=RELOADS {
        let (version, size) = (reload.to_string(), [SIDE, SIDE]);
        write_head(&root, "echo", &version, &backbone, size, &HeadGraph::Echo);
        let name = "echo".to_owned();
        model.load_head(proto::LoadHeadRequest { name }).await?;
        if reload == RELOADS / 10 {
            first = server.resident()?;
        }
    }
    report.note(
        "reloads under load: one takes",
        begun.elapsed().as_secs_f64(),
        "ms",
    );
    let last = server.resident()?;
    over.store(true, Ordering::Relaxed);
    let (calls, failed) = gather(callers).await?;
    report.note(
        "1000 reloads under load: calls meanwhile",
        calls as f64,
        "calls",
    );
    let name = "1000 reloads under load: failed calls";
    report.held(name, failed as f64, "calls", Bar::Exactly(0.0));
    let name = "1000 reloads under load: memory after 1000 / after 100";
    report.held(name, last / first, "ratio", Bar::AtMost(1.05));

    over.store(false, Ordering::Relaxed);
    let callers = self::callers(&client, CALLERS, &over);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // From here on a call may be refused because the server drains; one that was begun before may not.
    over.store(true, Ordering::Relaxed);
    server.signal("TERM")?;
    let (calls, failed) = gather(callers).await?;
    let (status, log) = server.wait(Duration::from_secs(60))?;
    report.note("SIGTERM under load: calls", calls as f64, "calls");
    let name = "SIGTERM under load: failed calls among those accepted";
    report.held(name, failed as f64, "calls", Bar::Exactly(0.0));
    anyhow::ensure!(status.success(), "it ended with {status}:\n{log}");
    Ok(())
}

/// Resident memory after 100k requests and after a million, and between.
pub(crate) async fn million(report: &mut Report) -> anyhow::Result<()> {
    const STEP: u64 = 100_000;
    let folder = echo();
    let server = Process::start(Some(folder.path()), &[])?;
    let tally = Arc::new(Tally::default());
    let mut readings = Vec::new();
    for step in 1..=10 {
        mixed(&server.address, STEP, &tally).await?;
        let reading = settled(&server).await?;
        report.note(
            format!("soak: memory after {step}00k requests"),
            reading,
            "MiB",
        );
        readings.push(reading);
    }
    let name = "soak: memory after 1M requests / after 100k";
    report.held(name, readings[9] / readings[0], "ratio", Bar::AtMost(1.05));
    let wrong = tally.wrong.load(Ordering::Relaxed) + tally.overdue.load(Ordering::Relaxed);
    let name = "soak, 1M requests: without a proper answer";
    report.held(name, wrong as f64, "calls", Bar::Exactly(0.0));
    Ok(())
}

/// Memory once the load is over: what is free goes back to the system every second, and some of it at the next turn.
async fn settled(server: &Process) -> anyhow::Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        least = least.min(server.resident()?);
    }
    Ok(least)
}

type Callers = JoinSet<(u64, u64)>;

/// Callers that call until `over`: how many calls, how many failed.
fn callers(client: &Client, count: usize, over: &Arc<AtomicBool>) -> Callers {
    let mut callers = Callers::new();
    for _ in 0..count {
        let (client, over) = (client.clone(), Arc::clone(over));
        callers.spawn(async move {
            let (mut calls, mut failed) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                calls += 1;
                if let Err(status) = analyze(&client, "echo", None).await {
                    eprintln!("a call failed: {status}");
                    failed += 1;
                }
            }
            (calls, failed)
        });
    }
    callers
}

async fn gather(mut callers: Callers) -> anyhow::Result<(u64, u64)> {
    let mut sum = (0, 0);
    while let Some(caller) = callers.join_next().await {
        let (calls, failed) = caller?;
        sum = (sum.0 + calls, sum.1 + failed);
    }
    Ok(sum)
}
