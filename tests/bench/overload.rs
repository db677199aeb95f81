//! Tail latency near the highest held load, and what is left of it at three times that.

use std::time::{Duration, Instant};

use frostline::{client, slice};
use tonic::{Code, Status};

use crate::{
    common::process::{Process, own_cpu},
    load::{Closed, closed, jpeg, median, millis, open, quantile},
    report::{Bar, Report},
    wire::Wire,
};

const HEAD: &str = "objects";
const PEAK: Duration = Duration::from_secs(5);
/// What tells the machine's speed at the moment.
const BRIEF: Duration = Duration::from_millis(1500);
/// Windows of each load.
const WINDOWS: usize = 5;
/// Windows in each of which a load has to be held: for one of them, luck can hold what is too much.
const TRIES: usize = 3;
const LONG: Duration = Duration::from_secs(60);
/// The deadline of calls that bring none.
const CONFIGURED: Duration = Duration::from_secs(3);
/// The deadline that impatient callers bring.
const IMPATIENT: Duration = Duration::from_millis(250);
/// A load is held while its p99 is less than this many times a lone caller's median.
const HELD: f64 = 20.0;
/// How far apart an open loop that sends more than can be carried wakes.
const TICK: Duration = Duration::from_millis(4);
/// Connections that an open loop is spread over.
const CONNECTIONS: usize = 4;

struct Site {
    server: Process,
    clients: Vec<Wire>,
}

impl Site {
    async fn new() -> anyhow::Result<Self> {
        let deadline = format!("limits.default_deadline_ms={}", CONFIGURED.as_millis());
        let server = Process::start(None, &[&deadline])?;
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(Wire::connect(&server.address).await?);
        }
        // The generator runs on this thread, and a call is to leave when it is due. The server would have inherited it.
        slice::shorten();
        Ok(Self { server, clients })
    }

    async fn closed(&self, concurrency: usize, turn: Duration) -> anyhow::Result<Closed> {
        let client = self.clients[0].clone();
        closed(concurrency, turn, move || {
            let client = client.clone();
            async move { Ok(call(&client, None).await?) }
        })
        .await
    }

    async fn open(
        &self,
        rate: f64,
        turn: Duration,
        tick: Duration,
        deadline: Option<Duration>,
    ) -> anyhow::Result<crate::load::Open> {
        open(rate, turn, tick, |number| {
            let client = self.clients[number % CONNECTIONS].clone();
            async move { call(&client, deadline).await }
        })
        .await
    }
}

/// Small images, so that the load generator, which shares the cores, leaves most of them to the server.
async fn call(client: &Wire, deadline: Option<Duration>) -> Result<(), Status> {
    client
        .analyze(HEAD, client::encoded(jpeg()), deadline)
        .await
}

/// p99 of an open loop at nine tenths of the highest load, against the median of a lone caller.
///
/// The machine's speed changes: the highest load is found as a share of what a closed loop carries, and every window is
/// sized by, and compared with, a closed loop and a lone caller right before it.
pub(crate) async fn tail(report: &mut Report) -> anyhow::Result<()> {
    let site = Site::new().await?;
    let alone = async || anyhow::Ok(quantile(&site.closed(1, BRIEF).await?.times, 0.5));
    let peak = async || anyhow::Ok(site.closed(32, BRIEF).await?.rate);
    alone().await?;
    // The highest load that is held: no call fails, and the last ones wait no longer than the first.
    let (mut share, mut held) = (1.0, 0);
    while held < TRIES {
        let (alone, peak) = (alone().await?, peak().await?);
        let tried = site.open(peak * share, PEAK, Duration::ZERO, None).await?;
        held += 1;
        if !tried.failed.is_empty() || quantile(&tried.times, 0.99) >= HELD * alone {
            (share, held) = (share * 0.95, 0);
        }
        anyhow::ensure!(share > 0.25, "no load is held");
    }
    report.note(
        "tail: highest load held / closed loop of 32",
        share,
        "ratio",
    );
    // Where the tail begins: for information.
    for part in [0.5, 0.7, 0.9] {
        let (mut ratios, mut medians, mut ends) = (vec![], vec![], vec![]);
        let (mut lone, mut late) = (vec![], vec![]);
        for _ in 0..WINDOWS {
            let (alone, peak) = (alone().await?, peak().await?);
            let rate = peak * share * part;
            let sent = site.open(rate, PEAK, Duration::ZERO, None).await?;
            let p99 = quantile(&sent.times, 0.99);
            ratios.push(p99 / alone);
            medians.push(quantile(&sent.times, 0.5));
            late.push(quantile(&sent.late, 0.99));
            ends.push(p99);
            lone.push(alone);
        }
        let at = format!("at {:.0} % of the highest load", part * 100.0);
        report.note("tail: median of a lone caller", median(lone), "ms");
        report.note(format!("tail: median {at}"), median(medians), "ms");
        report.note(format!("tail: p99 {at}"), median(ends), "ms");
        let name = format!("tail: calls that left late {at}, p99");
        report.note(name, median(late), "ms");
        let name = format!("tail: p99 {at} / median of a lone caller");
        match part {
            0.9 => report.held(name, median(ratios), "ratio", Bar::AtMost(3.0)),
            _ => report.note(name, median(ratios), "ratio"),
        }
    }
    Ok(())
}

/// Three times the capacity, first from patient callers, then from impatient ones.
pub(crate) async fn overload(report: &mut Report) -> anyhow::Result<()> {
    let site = Site::new().await?;
    let alone = quantile(&site.closed(1, PEAK / 2).await?.times, 0.5);
    // The machine's speed changes: each load is compared with the mean of what was carried before and after it.
    let capacity = async || anyhow::Ok(site.closed(32, PEAK).await?.rate);
    let first = capacity().await?;
    // The server's memory is at its height once it has been full.
    site.open(first * 3.0, PEAK, TICK, None).await?;
    let memory = site.server.resident()?;
    // What is answered of an open loop at best, whatever it sends.
    let peak = async || {
        let mut best = 0.0_f64;
        for part in [0.9, 1.0, 1.1, 1.25] {
            let sent = site.open(first * part, PEAK / 2, TICK, None).await?;
            best = best.max(sent.rate_within(f64::INFINITY));
        }
        anyhow::Ok(best)
    };
    let peak_before = peak().await?;
    let before = capacity().await?;
    let (generator, began) = (own_cpu()?, Instant::now());
    let flood = site.open(before * 3.0, LONG, TICK, None).await?;
    let generator = (own_cpu()? - generator).as_secs_f64() / began.elapsed().as_secs_f64();
    let normal = normal_again(&site, alone).await?;
    let memory = site.server.resident()? / memory;
    let between = capacity().await?;
    let peak_after = peak().await?;
    let impatient = site
        .open(between * 3.0, LONG / 3, TICK, Some(IMPATIENT))
        .await?;
    let after = capacity().await?;

    let refusals = [Code::ResourceExhausted, Code::DeadlineExceeded];
    let name = "overload: capacity, closed loop of 32";
    report.note(name, (before + between + after) / 3.0, "images/s");
    let peak = (peak_before + peak_after) / 2.0;
    let name = "overload: peak of an open loop's goodput";
    report.note(name, peak, "images/s");
    let name = "overload: cores that the load generator takes at 3 x capacity";
    report.note(name, generator, "cores");
    let goodput = flood.rate_within(f64::INFINITY);
    let name = "overload, 3 x capacity for 60 s: goodput / peak";
    report.held(name, goodput / peak, "ratio", Bar::AtLeast(0.95));
    // A closed loop's generator takes less of the cores.
    let name = "overload, 3 x capacity for 60 s: goodput / capacity";
    report.note(name, goodput / ((before + between) / 2.0), "ratio");
    let name = "overload: failures that are neither refusal nor deadline";
    let odd = flood.failed_otherwise(&refusals) + impatient.failed_otherwise(&refusals);
    report.held(name, odd as f64, "calls", Bar::Exactly(0.0));
    let name = "overload: accepted p99 / configured deadline";
    let p99 = quantile(&flood.times, 0.99) / millis(CONFIGURED);
    report.held(name, p99, "ratio", Bar::AtMost(1.0));
    let name = "overload: memory after / before";
    report.held(name, memory, "ratio", Bar::AtMost(1.05));
    let name = "overload: back to normal after";
    report.held(name, normal, "s", Bar::AtMost(1.0));
    let name = "overload, 250 ms deadlines: useful replies / capacity";
    let useful = impatient.rate_within(millis(IMPATIENT)) / ((between + after) / 2.0);
    report.held(name, useful, "ratio", Bar::AtLeast(0.9));
    Ok(())
}

/// Seconds until a lone caller's calls take no more than twice what they did before.
async fn normal_again(site: &Site, alone: f64) -> anyhow::Result<f64> {
    let ended = Instant::now();
    loop {
        let begun = Instant::now();
        let answer = call(&site.clients[0], None).await;
        if answer.is_ok() && millis(begun.elapsed()) <= 2.0 * alone {
            return Ok(ended.elapsed().as_secs_f64());
        }
        anyhow::ensure!(ended.elapsed() < LONG, "the server does not recover");
    }
}
