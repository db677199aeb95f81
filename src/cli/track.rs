//! `frostline track`: ids for the detections of frames that come as lines of JSON.

use std::{
    collections::BTreeMap,
    io::{BufRead, Read, Write},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    task::{Detection, Rle},
    track::{Options, Tracker},
};

/// Longest line that is read, bytes.
const MOST_BYTES: u64 = 64 << 20;
/// Most heads that are tracked apart.
const MOST_HEADS: usize = 64;

/// Give the detections of frames ids that stay with an object: lines of JSON in, the same lines with a `track_id` for
/// each detection out.
///
/// A line is what `frostline detect --json` prints for a frame, or {"time": SECONDS, "detections": [{"box": [x0, y0, x1, y1],
/// "score": S, "class_index": N}]}; `time`, `class_index` and `mask` ({"size": [h, w], "counts": COCO}) may be left out. Detections that
/// belong to no object for sure have the id null. A line that is not later than the one before it is passed on with
/// nothing but nulls and says so in `untracked`.
#[derive(Debug, Args)]
pub(super) struct Track {
    /// Frames a second of lines without a time.
    #[arg(long, value_name = "N", default_value_t = 30.0)]
    fps: f64,
    /// Least score of what is looked at first.
    #[arg(long, value_name = "SCORE", default_value_t = Options::default().high_score)]
    high_score: f32,
    /// Least score of what may go on with an object.
    #[arg(long, value_name = "SCORE", default_value_t = Options::default().low_score)]
    low_score: f32,
    /// Least score of what begins an object.
    #[arg(long, value_name = "SCORE", default_value_t = Options::default().new_score)]
    new_score: f32,
    /// How long an object that is not seen is remembered.
    #[arg(long, value_name = "SECONDS", default_value_t = Options::default().lost.as_secs_f64())]
    lost: f64,
    /// Let an object change its class.
    #[arg(long)]
    any_class: bool,
}

#[derive(Debug, Deserialize)]
struct Given {
    #[serde(rename = "box")]
    sides: [f32; 4],
    score: f32,
    #[serde(default)]
    class_index: u32,
    #[serde(default)]
    mask: Option<GivenMask>,
}

#[derive(Debug, Deserialize)]
struct GivenMask {
    size: [u32; 2],
    counts: String,
}

impl Given {
    fn detection(self) -> anyhow::Result<Detection> {
        let read = |mask: GivenMask| {
            let [height, width] = mask.size;
            let rle = Rle::from_coco_string(height, width, mask.counts.as_bytes());
            rle.context("mask")
        };
        Ok(Detection {
            bbox: self.sides,
            score: self.score,
            label: self.class_index,
            mask: self.mask.map(read).transpose()?,
        })
    }
}

/// Reads standard input to its end.
///
/// # Errors
/// A line that is not as described, by its number; an option out of its range.
pub(super) fn track(command: &Track) -> anyhow::Result<()> {
    let options = command.options()?;
    let mut trackers = Trackers {
        options,
        of: BTreeMap::new(),
    };
    let mut input = std::io::stdin().lock();
    let mut output = std::io::stdout().lock();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = input.by_ref().take(MOST_BYTES + 1);
        if { read }.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        ensure!(
            line.len() as u64 <= MOST_BYTES,
            "line {number}: is longer than {MOST_BYTES} bytes"
        );
        if line.trim_ascii().is_empty() {
            continue;
        }
        let otherwise = (number - 1) as f64 / command.fps;
        let tracked = tracked(&line, otherwise, &mut trackers);
        let tracked = tracked.with_context(|| format!("line {number}"))?;
        // Whoever reads it may wait for each frame's line.
        writeln!(output, "{tracked}")?;
        output.flush()?;
    }
    Ok(())
}

impl Track {
    fn options(&self) -> anyhow::Result<Options> {
        ensure!(
            self.fps.is_finite() && self.fps > 0.0,
            "--fps: is {}, but must be above 0",
            self.fps
        );
        let lost = Duration::try_from_secs_f64(self.lost).context("--lost")?;
        let options = Options {
            high_score: self.high_score,
            low_score: self.low_score,
            new_score: self.new_score,
            lost,
            per_class: !self.any_class,
            ..Options::default()
        };
        Tracker::new(options)?;
        Ok(options)
    }
}

/// A tracker for each head.
struct Trackers {
    options: Options,
    of: BTreeMap<String, Tracker>,
}

/// The line with its tracks; `otherwise` is its time in seconds, if it says none.
fn tracked(line: &[u8], otherwise: f64, trackers: &mut Trackers) -> anyhow::Result<Value> {
    let mut object: Map<String, Value> = serde_json::from_slice(line)?;
    let time = match object.get("time") {
        None => otherwise,
        Some(time) => time.as_f64().context("time: is no number")?,
    };
    ensure!(
        (0.0..=1e12).contains(&time),
        "time: is {time}, but must be from 0 to 1e12 seconds"
    );
    let time = (time * 1e6).round() as u64;
    let mut refused = None;
    let mut found = false;
    if object.contains_key("detections") {
        found = true;
        refused = trackers.apply("", time, &mut object)?;
    }
    if let Some(Value::Object(heads)) = object.get_mut("heads") {
        for (name, head) in heads {
            if let Some(head) = head
                .as_object_mut()
                .filter(|head| head.contains_key("detections"))
            {
                found = true;
                let why = trackers.apply(name, time, head);
                refused = why.with_context(|| format!("heads.{name}"))?;
            }
        }
    }
    ensure!(found, "has no detections");
    if let Some(why) = refused {
        object.insert("untracked".to_owned(), why.into());
    }
    Ok(object.into())
}

impl Trackers {
    /// Gives the detections of `object` their tracks; why not, where the frame cannot be looked at.
    fn apply(
        &mut self,
        head: &str,
        time: u64,
        object: &mut Map<String, Value>,
    ) -> anyhow::Result<Option<String>> {
        let Some(Value::Array(rows)) = object.get_mut("detections") else {
            bail!("detections: is no list");
        };
        let given = rows.iter().enumerate().map(|(index, row)| {
            let read = Given::deserialize(row).map_err(anyhow::Error::from);
            let detection = read.and_then(Given::detection);
            detection.with_context(|| format!("detections[{index}]"))
        });
        let detections = given.collect::<anyhow::Result<Vec<_>>>()?;
        if !self.of.contains_key(head) {
            ensure!(
                self.of.len() < MOST_HEADS,
                "there are more than {MOST_HEADS} heads"
            );
            self.of.insert(head.to_owned(), Tracker::new(self.options)?);
        }
        let Some(tracker) = self.of.get_mut(head) else {
            return Ok(None);
        };
        let (ids, why) = match tracker.update(time, &detections) {
            Ok(ids) => (ids, None),
            Err(error) => (vec![None; detections.len()], Some(error.to_string())),
        };
        for (row, id) in rows.iter_mut().zip(ids) {
            row["track_id"] = id.into();
        }
        Ok(why)
    }
}
