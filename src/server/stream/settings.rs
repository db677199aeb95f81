//! What a stream's settings mean, and whether they hold.

use std::{sync::Arc, time::Duration};

use super::super::{call::Call, convert};
use crate::{
    engine::{Engine, Head, Options, Priority},
    error::{Error, Kind, Result},
    proto::{
        self, ClassificationOptions, DetectionOptions, FramePolicy, SegmentationOptions,
        stream_head::{Hop, Stride},
    },
    repository::Task,
    stream::{Load, Policy, Rules, Shape},
};

/// Most frames that may wait.
const MOST_WAITING: u32 = 64;
/// Frames that wait where nothing is said.
const WAITING: u32 = 4;
/// Most frames between a clip's first and last.
const MOST_SPAN: i64 = 1024;
/// Longest of all times but that between two messages of status.
const LONGEST: Duration = Duration::from_secs(3600);
/// Frames that are begun and not done, beside those that lanes may hold.
const RUNNING: usize = 4;
/// Pixels of a frame that is counted with before any has come: 1280 x 720.
const PIXELS: u64 = 1280 * 720;

/// What a stream does.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) heads: Vec<Wanted>,
    pub(super) rules: Rules,
    pub(super) priority: Priority,
    /// What its promise takes.
    pub(super) load: Load,
    /// Longest time between two messages of status.
    pub(super) status: Duration,
    /// The same as a message.
    pub(super) message: proto::StreamSettings,
}

/// A head of a stream.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: Arc<str>,
    pub(super) every: u64,
    pub(super) options: Options,
    /// What is shown of what it finds, if it tracks: it is then asked for more.
    pub(super) track: Option<Shown>,
    /// How its clips are made, if it reads clips.
    pub(super) clips: Option<Clips>,
}

/// Which detections are shown of those that are tracked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    pub(super) score: f32,
    pub(super) most: usize,
}

/// Score down to which detections go on with an object (ByteTrack's second stage).
const DOUBTFUL: f32 = 0.1;

/// How clips are made of a stream's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clips {
    pub(super) shape: Shape,
    pub(super) unit: Unit,
}

/// What positions are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Frames,
    Nanoseconds,
}

impl Settings {
    /// Those of a stream that has not begun.
    pub(super) fn none() -> Self {
        Self {
            heads: Vec::new(),
            rules: Rules::default(),
            priority: Priority::default(),
            load: Load::default(),
            status: Duration::from_secs(1),
            message: proto::StreamSettings::default(),
        }
    }

    /// Reads the settings of a call's stream; errors name the field below the settings.
    pub(super) fn read(
        message: Option<proto::StreamSettings>,
        call: &Call,
        engine: &Engine,
    ) -> Result<Self> {
        let mut message = message.unwrap_or_default();
        let rules = rules(&mut message, engine)?;
        let priority = convert::priority(message.priority)?;
        let status = duration(message.status_interval, "status_interval")?;
        let status = status.unwrap_or(Duration::from_secs(1));
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&status) {
            let text = format!("is {status:?}, but must be from 0.1 to 60 seconds");
            return Err(Error::invalid("status_interval", text));
        }
        message.status_interval = prost_types::Duration::try_from(status).ok();
        let (heads, loaded) = heads(&mut message, call, engine)?;
        let load = load(&message, call, engine, &loaded, &heads)?;
        Ok(Self {
            heads,
            rules,
            priority,
            load,
            status,
            message,
        })
    }
}

fn rules(message: &mut proto::StreamSettings, engine: &Engine) -> Result<Rules> {
    let policy = FramePolicy::try_from(message.policy).map_err(|_| {
        let text = format!(
            "is {}, but must be one of FramePolicy's values, 0 to 3",
            message.policy
        );
        Error::invalid("policy", text)
    })?;
    if message.queue_length > MOST_WAITING {
        let text = format!(
            "is {}, but must be at most {MOST_WAITING}",
            message.queue_length
        );
        return Err(Error::invalid("queue_length", text));
    }
    let length = match message.queue_length {
        0 => WAITING,
        length => length,
    };
    let (config, lanes) = (engine.config(), engine.load().lanes);
    let most_batch = config.max_batch.max(1);
    let (policy, ahead) = match policy {
        FramePolicy::Unspecified | FramePolicy::Latest => {
            message.policy = FramePolicy::Latest.into();
            message.queue_length = 0;
            (Policy::Latest, 1)
        }
        FramePolicy::Queue => {
            message.queue_length = length;
            let length = length as usize;
            (Policy::Queue(length), length.min(most_batch))
        }
        FramePolicy::Wait => {
            message.queue_length = length;
            (Policy::Wait(length as usize), most_batch)
        }
    };
    let max_age = duration(message.max_age, "max_age")?;
    if max_age.is_some_and(|age| age.is_zero()) {
        return Err(Error::invalid("max_age", "is 0: no frame is that young"));
    }
    message.every = message.every.max(1);
    Ok(Rules {
        policy,
        every: u64::from(message.every),
        max_age,
        ahead,
        running: ahead + lanes + RUNNING,
    })
}

/// A time that is not negative, and not longer than an hour.
fn duration(given: Option<prost_types::Duration>, field: &str) -> Result<Option<Duration>> {
    let Some(given) = given else {
        return Ok(None);
    };
    let duration = Duration::try_from(given)
        .ok()
        .filter(|duration| *duration <= LONGEST);
    let bad = || Error::invalid(field, "must be a time from 0 to 3600 seconds");
    duration.map(Some).ok_or_else(bad)
}

fn heads(
    message: &mut proto::StreamSettings,
    call: &Call,
    engine: &Engine,
) -> Result<(Vec<Wanted>, Vec<Arc<Head>>)> {
    if message.heads.is_empty() {
        let all = call.heads(engine, &[], true)?;
        let named = all.iter().map(|head| proto::StreamHead {
            name: head.manifest.name.clone(),
            ..Default::default()
        });
        message.heads = named.collect();
    }
    let names: Vec<_> = message.heads.iter().map(|head| head.name.clone()).collect();
    let loaded = call.heads(engine, &names, true).map_err(|error| {
        // `heads[0]` is a message here.
        match error.field().map(str::to_owned) {
            Some(field) => error.at(format!("{field}.name")),
            None => error,
        }
    })?;
    let every = message.every;
    let mut wanted = Vec::with_capacity(loaded.len());
    for (index, (asked, head)) in message.heads.iter_mut().zip(&loaded).enumerate() {
        let field = |name: &str| format!("heads[{index}].{name}");
        asked.every = asked.every.max(1);
        check_fits(asked, head, &field)?;
        let mut options = options(asked, &format!("heads[{index}]"))?;
        let fields = [field("max_detections"), field("top_k")];
        let fields = [fields[0].as_str(), fields[1].as_str()];
        convert::check_bounds(&options, std::slice::from_ref(head), fields)?;
        let clips = match head.manifest.task {
            Task::Action => Some(clips(asked, head, every, &field)?),
            _ => None,
        };
        wanted.push(Wanted {
            name: head.manifest.name.as_str().into(),
            every: u64::from(asked.every),
            track: asked.track.then(|| doubt(&mut options, head)),
            options,
            clips,
        });
    }
    Ok((wanted, loaded))
}

/// Refuses options for another task than the head's.
fn check_fits(
    asked: &proto::StreamHead,
    head: &Head,
    field: &dyn Fn(&str) -> String,
) -> Result<()> {
    let task = head.manifest.task;
    let (detects, acts) = (task == Task::Detection, task == Task::Action);
    let scores = acts || task == Task::Classification;
    let table = [
        ("score_threshold", asked.score_threshold.is_some(), detects),
        ("max_detections", asked.max_detections.is_some(), detects),
        ("omit_masks", asked.omit_masks, detects),
        (
            "label_map_format",
            asked.label_map_format != 0,
            task == Task::Segmentation,
        ),
        ("every", asked.every > 1, !acts),
        ("track", asked.track, detects),
        ("top_k", asked.top_k.is_some(), scores),
        ("stride", asked.stride.is_some(), acts),
        ("hop", asked.hop.is_some(), acts),
    ];
    match table.iter().find(|(_, set, fits)| *set && !fits) {
        Some((name, ..)) => {
            let name_ = &head.manifest.name;
            let text = format!("is not for the head {name_:?}, which does {task}");
            Err(Error::new(Kind::WrongTask, text).at(field(name)))
        }
        None => Ok(()),
    }
}

/// Asks for doubtful detections as well; what is then shown of them.
fn doubt(options: &mut Options, head: &Head) -> Shown {
    let manifest = &head.manifest.postprocess.detection;
    let score = options
        .score_threshold
        .unwrap_or_else(|| manifest.score_threshold());
    let most = options
        .max_detections
        .unwrap_or_else(|| manifest.max_detections());
    options.score_threshold = Some(score.min(DOUBTFUL));
    options.max_detections = Some(manifest.max_detections());
    Shown { score, most }
}

fn options(asked: &proto::StreamHead, field: &str) -> Result<Options> {
    let format = SegmentationOptions {
        format: asked.label_map_format,
    };
    let mut options = Options {
        label_map: convert::label_map_format(format, &format!("{field}.label_map_format"))?,
        ..Options::default()
    };
    let detection = DetectionOptions {
        score_threshold: asked.score_threshold,
        max_detections: asked.max_detections,
        omit_masks: asked.omit_masks,
        ..DetectionOptions::default()
    };
    convert::detection_options(Some(&detection), field, &mut options)?;
    let classification = ClassificationOptions { top_k: asked.top_k };
    convert::classification_options(Some(&classification), field, &mut options)?;
    Ok(options)
}

fn clips(
    asked: &mut proto::StreamHead,
    head: &Head,
    every: u32,
    field: &dyn Fn(&str) -> String,
) -> Result<Clips> {
    let frames = head.manifest.frames();
    let default = head.manifest.postprocess.action.frame_stride;
    let default = default.and_then(|stride| u32::try_from(stride).ok());
    let stride = asked.stride.take().unwrap_or(Stride::StrideFrames(0));
    let (stride, unit) = match stride {
        Stride::StrideFrames(stride) => {
            let stride = match stride {
                0 => default.unwrap_or(1).max(every),
                stride => stride,
            };
            if stride < every {
                let text = format!("is {stride}, but only each frame of {every} is taken (every)");
                return Err(Error::invalid(field("stride_frames"), text));
            }
            asked.stride = Some(Stride::StrideFrames(stride));
            (i64::from(stride), Unit::Frames)
        }
        Stride::StrideTime(time) => {
            asked.stride = Some(Stride::StrideTime(time));
            (nanoseconds(time, &field("stride_time"))?, Unit::Nanoseconds)
        }
    };
    let hop = match (asked.hop, unit) {
        (None | Some(Hop::HopFrames(0)), _) => {
            asked.hop = Some(match asked.stride {
                Some(Stride::StrideTime(time)) => Hop::HopTime(time),
                _ => Hop::HopFrames(u32::try_from(stride).unwrap_or(u32::MAX)),
            });
            stride
        }
        (Some(Hop::HopFrames(hop)), Unit::Frames) => i64::from(hop),
        (Some(Hop::HopTime(time)), Unit::Nanoseconds) => nanoseconds(time, &field("hop_time"))?,
        (Some(_), _) => {
            return Err(Error::invalid(
                field("hop"),
                "must be in the unit of the stride: both in frames, or both in time",
            ));
        }
    };
    let shape = Shape {
        frames,
        stride,
        hop,
    };
    if unit == Unit::Frames && shape.span() > MOST_SPAN {
        let text = format!(
            "is {stride}: with {frames} frames a clip spans {} of them, but the limit is {MOST_SPAN}",
            shape.span()
        );
        return Err(Error::invalid(field("stride_frames"), text));
    }
    Ok(Clips { shape, unit })
}

fn nanoseconds(time: prost_types::Duration, field: &str) -> Result<i64> {
    let time = duration(Some(time), field)?.unwrap_or_default();
    if time < Duration::from_millis(1) {
        let text = format!("is {time:?}, but must be at least a millisecond");
        return Err(Error::invalid(field, text));
    }
    Ok(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
}

/// What the promised frames take of the threads.
fn load(
    message: &proto::StreamSettings,
    call: &Call,
    engine: &Engine,
    loaded: &[Arc<Head>],
    wanted: &[Wanted],
) -> Result<Load> {
    let rate = f64::from(message.frames_per_second);
    if !(0.0..=1000.0).contains(&rate) {
        let text = format!("is {rate}, but must be from 0 to 1000");
        return Err(Error::invalid("frames_per_second", text));
    }
    let taken = rate / f64::from(message.every.max(1));
    let caller = call.identity.name();
    // The backbone and decoding once for each frame, whatever number of heads is due on it.
    let all = engine.frame_seconds(&caller, loaded, PIXELS);
    let mut sum = Load {
        lanes: all.lanes * taken,
        workers: all.workers * taken,
    };
    for (head, wanted) in loaded.iter().zip(wanted) {
        // What a head does not do on frames that it skips.
        let every = match wanted.clips {
            Some(Clips {
                shape,
                unit: Unit::Frames,
            }) => shape.hop as f64,
            Some(Clips { shape, .. }) => (taken * shape.hop as f64 / 1e9).max(1.0),
            None => wanted.every as f64,
        };
        let alone = engine.head_seconds(&caller, head, PIXELS);
        let skipped = (taken - rate / every.max(f64::from(message.every))).max(0.0);
        sum.lanes -= alone.lanes * skipped;
        sum.workers -= alone.workers * skipped;
    }
    Ok(Load {
        lanes: sum.lanes.max(0.0),
        workers: sum.workers.max(0.0),
    })
}
