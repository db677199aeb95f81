//! The trial at the start: which provider and precision serve this repository's backbone fastest on this CPU, among those
//! that are installed and answer as fp32 does.
//!
//! Every way takes turns with the others, each with every lane busy, so that a moment in which the machine is slow does not
//! decide. ONNX Runtime's own provider is what others are held against: one has to be clearly faster, and its features and
//! every head's results on them must agree ([`gate`]). The outcome is remembered ([`recall`]).

mod gate;
mod recall;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{EngineConfig, warm::every_lane};
use crate::{
    backend::{
        Backbone, BackendError, DeviceChoice, DeviceOptions, Precision, Runtime, SessionOptions,
    },
    cores,
    repository::Repository,
};

/// Another way than ONNX Runtime's own has to serve this much more: what is near to it is not worth another library.
const WORTH: f64 = 1.03;
/// Turns of each way.
const ROUNDS: usize = 7;
/// Turns that tell enough where there is no time for more.
const LEAST_ROUNDS: usize = 3;
/// How long a lane goes on in a turn.
const TURN: Duration = Duration::from_millis(25);
/// Batch sizes that are tried beside single images, where they are used at all.
const LARGER: usize = 4;

/// How the trial is made.
#[derive(Debug, Clone, Default)]
pub struct TrialOptions {
    /// After so long nothing more is begun; zero for no trial at all.
    pub budget: Duration,
    /// Where the outcome is remembered; nowhere if unset.
    pub file: Option<PathBuf>,
}

/// One way to run the backbone, and what was found of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// The device in the configuration's words.
    pub device: DeviceChoice,
    /// What it computes in.
    pub precision: Precision,
    /// Images per second of all lanes together, and the batch size that served them; none where it was not run.
    pub rate: Option<(f64, usize)>,
    /// Times as many images as the first way that ran.
    pub ratio: f64,
    /// Why it was chosen, or was not.
    pub verdict: String,
}

/// What a trial found.
#[derive(Debug, Clone, Default)]
pub struct Trial {
    /// Every way, in the order they were tried in.
    pub tried: Vec<Tried>,
    /// Whether an earlier start found it.
    pub remembered: bool,
    /// How long it took.
    pub took: Duration,
}

/// A way that runs.
struct Way {
    runtime: Runtime,
    backbone: Backbone,
    /// Where it is in the table.
    at: usize,
    /// Images per second in each round, for each batch size.
    rates: Vec<(usize, Vec<f64>)>,
}

/// The runtime that serves `repository` best, of those that the device and precision that `runtime` was opened with leave
/// open, and the table. `None`: they leave nothing open.
///
/// # Errors
/// None of the ways that are left can be used.
pub fn choose(
    runtime: &Runtime,
    repository: &Repository,
    config: &EngineConfig,
    options: &TrialOptions,
) -> Result<(Runtime, Option<Trial>), BackendError> {
    let asked = runtime.device().options().clone();
    let ways = open(&asked);
    if ways.is_empty() || runtime.device().is_resident() {
        return Ok((runtime.clone(), None));
    }
    if options.budget.is_zero() {
        tracing::info!("there is no trial of providers: device.trial_ms is 0");
        return Ok((runtime.clone(), None));
    }
    let begun = Instant::now();
    let lanes = match config.lanes {
        0 => cores::count(config.cores),
        lanes => lanes,
    };
    let threads = config.threads_per_lane.max(1);
    let sessions = SessionOptions { lanes, threads };
    let key = recall::key(runtime, repository, sessions, &config.candidates());
    if let Some(tried) = options
        .file
        .as_deref()
        .and_then(|file| recall::read(file, &key))
        && let Some(chosen) = tried.iter().position(|one| one.verdict.starts_with(CHOSEN))
        && let Ok(runtime) =
            runtime.on(&with(&asked, tried[chosen].device, tried[chosen].precision))
    {
        let trial = Trial {
            tried,
            remembered: true,
            took: begun.elapsed(),
        };
        return Ok((runtime, Some(trial)));
    }
    let (mut trial, usable) = open_each(runtime, &asked, ways);
    if let [(at, runtime)] = &usable[..] {
        trial.tried[*at].verdict = ALONE.to_owned();
        trial.took = begun.elapsed();
        // To find out that a plugin is of no use here took a moment, and memory that it keeps.
        if let (Some(file), true) = (&options.file, runtime.has_plugin()) {
            recall::write(file, &key, &trial.tried);
        }
        return Ok((runtime.clone(), Some(trial)));
    }
    let mut running = Vec::new();
    for (at, runtime) in usable {
        let late = begun.elapsed() > options.budget && !running.is_empty();
        let loaded = match late {
            true => Err("there was no time to try it: device.trial_ms allows more".to_owned()),
            false => load(runtime, repository, config, sessions),
        };
        match loaded {
            Ok((runtime, backbone, rates)) => running.push(Way {
                runtime,
                backbone,
                at,
                rates,
            }),
            Err(why) => trial.tried[at].verdict = why,
        }
    }
    let chosen = compare(&mut running, &mut trial.tried, begun, options, repository)?;
    trial.took = begun.elapsed();
    if let Some(file) = &options.file {
        recall::write(file, &key, &trial.tried);
    }
    Ok((chosen, Some(trial)))
}

/// Opens each way; those that can be used, with their place in the table. What cannot be used at all costs no time.
fn open_each(
    runtime: &Runtime,
    asked: &DeviceOptions,
    ways: Vec<(DeviceChoice, Precision)>,
) -> (Trial, Vec<(usize, Runtime)>) {
    let mut trial = Trial::default();
    let mut usable = Vec::new();
    for (device, precision) in ways {
        let opened = runtime.on(&with(asked, device, precision));
        usable.extend(
            opened
                .as_ref()
                .ok()
                .map(|runtime| (trial.tried.len(), runtime.clone())),
        );
        trial.tried.push(Tried {
            device,
            precision,
            rate: None,
            ratio: 0.0,
            verdict: opened
                .err()
                .map_or_else(String::new, |error| error.to_string()),
        });
    }
    (trial, usable)
}

/// How the verdict on the way that is taken begins.
const CHOSEN: &str = "chosen";
const ALONE: &str = "chosen: nothing else can be used";

impl Trial {
    /// The way that was taken.
    #[must_use]
    pub fn chosen(&self) -> Option<&Tried> {
        let mut tried = self.tried.iter();
        tried.find(|one| one.verdict.starts_with(CHOSEN))
    }
}

impl Tried {
    /// The way in a few words, such as `openvino:cpu in bf16`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.device {
            DeviceChoice::OpenVino => format!("{} in {}", self.device, self.precision),
            device => device.to_string(),
        }
    }
}

/// The ways that the configuration leaves open: none where there is but one.
fn open(asked: &DeviceOptions) -> Vec<(DeviceChoice, Precision)> {
    use DeviceChoice::{Auto, Cpu, OpenVino};
    use Precision::{Bf16, Fp32};
    if asked.emulate {
        return Vec::new();
    }
    match (asked.device, asked.precision) {
        (Auto, Precision::Auto) => vec![(Cpu, Fp32), (OpenVino, Bf16), (OpenVino, Fp32)],
        (Auto, Fp32) => vec![(Cpu, Fp32), (OpenVino, Fp32)],
        (Auto, Bf16) => vec![(OpenVino, Bf16)],
        (OpenVino, Precision::Auto) => vec![(OpenVino, Fp32), (OpenVino, Bf16)],
        _ => Vec::new(),
    }
}

fn with(asked: &DeviceOptions, device: DeviceChoice, precision: Precision) -> DeviceOptions {
    DeviceOptions {
        device,
        precision,
        ..asked.clone()
    }
}

type Loaded = (Runtime, Backbone, Vec<(usize, Vec<f64>)>);

/// Loads the backbone, with the batch sizes that are tried.
fn load(
    runtime: Runtime,
    repository: &Repository,
    config: &EngineConfig,
    sessions: SessionOptions,
) -> Result<Loaded, String> {
    let said = |error: BackendError| error.to_string();
    let (manifest, graph) = (&repository.backbone, &repository.graph);
    let backbone = Backbone::load(&runtime, manifest, graph, sessions).map_err(said)?;
    let sizes = config.candidates();
    let first = sizes.first().copied();
    let larger = sizes.iter().rfind(|&&rows| rows <= LARGER).copied();
    let larger = larger.filter(|&rows| Some(rows) != first);
    let mut rates = Vec::new();
    for rows in first.into_iter().chain(larger) {
        if let Some(&size) = manifest.input.sizes.first() {
            backbone.prepare(size, rows).map_err(said)?;
        }
        rates.push((rows, Vec::new()));
    }
    Ok((runtime, backbone, rates))
}

/// Runs each way in turns, as long as there is time for them.
fn take_turns(
    ways: &mut [Way],
    begun: Instant,
    options: &TrialOptions,
    repository: &Repository,
) -> Result<(), BackendError> {
    let size = repository.backbone.input.sizes.first().copied();
    let size = size.unwrap_or_default();
    for round in 0..ROUNDS {
        if round >= LEAST_ROUNDS && begun.elapsed() > options.budget {
            break;
        }
        for way in &mut *ways {
            let backbone = &way.backbone;
            for (rows, rates) in &mut way.rates {
                rates.push(turn(backbone, size, *rows)?);
            }
        }
    }
    Ok(())
}

/// Lets the ways take turns, and says which of them is taken and why each of the others is not.
fn compare(
    ways: &mut [Way],
    tried: &mut [Tried],
    begun: Instant,
    options: &TrialOptions,
    repository: &Repository,
) -> Result<Runtime, BackendError> {
    let Some(first) = ways.first() else {
        let why: Vec<_> = tried.iter().map(|one| one.verdict.as_str()).collect();
        return Err(BackendError::Device(why.join("; ")));
    };
    let runtime = first.runtime.clone();
    if ways.len() == 1 {
        ALONE.clone_into(&mut tried[ways[0].at].verdict);
        return Ok(runtime);
    }
    take_turns(ways, begun, options, repository)?;
    let base: Vec<f64> = best_of_rounds(&ways[0]);
    let base_rate = median(base.clone());
    for way in &*ways {
        let rates = best_of_rounds(way);
        // Rounds that were disturbed can favour either; what is taken is faster in the middle round and by its own rate.
        let overall = median(rates.clone()) / base_rate.max(1e-9);
        let ratios = rates
            .iter()
            .zip(&base)
            .map(|(rate, base)| rate / base.max(1e-9));
        let one = &mut tried[way.at];
        one.ratio = rounded(median(ratios.collect()).min(overall));
        let best = way
            .rates
            .iter()
            .map(|(rows, rates)| (rounded(median(rates.clone())), *rows));
        one.rate = best.max_by(|a, b| a.0.total_cmp(&b.0));
    }
    // The fastest first; the first way is the last resort.
    let mut order: Vec<usize> = (1..ways.len()).collect();
    order.sort_by(|a, b| {
        let ratio = |way: &usize| tried[ways[*way].at].ratio;
        ratio(b).total_cmp(&ratio(a))
    });
    let mut chosen = None;
    for at in order {
        let way = &ways[at];
        let one = &mut tried[way.at];
        one.verdict = if one.ratio < WORTH {
            format!("not {WORTH} times as fast")
        } else if chosen.is_some() {
            "slower than the one that is chosen".to_owned()
        } else {
            match gate::agrees(
                repository,
                (&ways[0].runtime, &ways[0].backbone),
                &way.backbone,
            ) {
                Ok(alike) => {
                    chosen = Some(way.runtime.clone());
                    format!("{CHOSEN}: the fastest, {alike}")
                }
                Err(why) => format!("answers otherwise: {why}"),
            }
        };
    }
    tried[ways[0].at].verdict = match chosen {
        Some(_) => "slower than the one that is chosen".to_owned(),
        None => format!("{CHOSEN}: nothing that agrees with it is {WORTH} times as fast"),
    };
    Ok(chosen.unwrap_or(runtime))
}

/// Images per second of all lanes, each of which runs batches until the turn is over.
fn turn(backbone: &Backbone, size: [u32; 2], rows: usize) -> Result<f64, BackendError> {
    let input = vec![127; size[0] as usize * size[1] as usize * 3 * rows];
    // A change of batch size costs the first run more.
    every_lane(backbone.lanes(), |lane| {
        backbone.run(lane, size, &input, rows).map(|_| 0.0)
    })?;
    let rate = every_lane(backbone.lanes(), |lane| {
        let begun = Instant::now();
        let mut done = 0;
        while done == 0 || begun.elapsed() < TURN {
            backbone.run(lane, size, &input, rows)?;
            done += rows;
        }
        Ok(done as f64 / begun.elapsed().as_secs_f64())
    })?;
    Ok(rate * backbone.lanes() as f64)
}

/// The best batch size's images per second of each round.
fn best_of_rounds(way: &Way) -> Vec<f64> {
    let rounds = way.rates.iter().map(|(_, rates)| rates.len()).min();
    let best = |round: usize| {
        let rates = way.rates.iter().map(|(_, rates)| rates[round]);
        rates.fold(0.0, f64::max)
    };
    (0..rounds.unwrap_or(0)).map(best).collect()
}

/// To the digits that are shown, which a file gives back as they are.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(0.0)
}
