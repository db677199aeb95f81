//! What each batch size costs, measured before the first request as it will be while serving.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use super::{EngineConfig, cost::Curve};
use crate::{
    backend::{Backbone, BackendError, Fault},
    media::{self, Filter, Image, Preprocess, ResizeMode},
};

/// Each tries every batch size once: a moment in which the machine is slow then does not hit one size alone.
const ROUNDS: usize = 5;
/// A batch that takes longer than this is run once.
const LONG: Duration = Duration::from_millis(500);
/// A batch size whose runs took longer than this together is run twice.
const ENOUGH: Duration = Duration::from_millis(100);

/// Runs every candidate batch size on every lane at once, as under load, and notes how long it takes.
///
/// Where lanes decode, each does so before a batch: the batch then finds the processor's caches full of pixels and reads
/// all weights anew, which costs a small batch more for each image than a large one. Measured without it all sizes look
/// alike.
pub(super) fn curves(
    backbone: &Backbone,
    config: &EngineConfig,
) -> Result<Vec<Curve>, BackendError> {
    let photo = (config.workers == 0).then(photo).flatten();
    let sizes = backbone.manifest().input.sizes.iter();
    let curve = |&size| curve(backbone, config, size, photo.as_deref());
    sizes.map(curve).collect()
}

/// One batch size's runs.
struct Point {
    rows: usize,
    input: Vec<u8>,
    best: f64,
    last: Duration,
    spent: Duration,
}

fn curve(
    backbone: &Backbone,
    config: &EngineConfig,
    size: [u32; 2],
    photo: Option<&[u8]>,
) -> Result<Curve, BackendError> {
    let row = size[0] as usize * size[1] as usize * 3;
    let point = |rows| Point {
        rows,
        input: vec![127; row * rows],
        best: f64::INFINITY,
        last: Duration::ZERO,
        spent: Duration::ZERO,
    };
    let mut points: Vec<_> = config.candidates().into_iter().map(point).collect();
    for point in &points {
        backbone.prepare(size, point.rows)?;
    }
    for round in 0..ROUNDS {
        let mut at = 0;
        while let Some(point) = points.get_mut(at) {
            at += 1;
            if point.last > LONG || (round >= 2 && point.spent > ENOUGH) {
                continue;
            }
            let measure = |lane: usize| -> Result<f64, BackendError> {
                decode(photo, size);
                let begun = Instant::now();
                let features = backbone.run(lane, size, &point.input, point.rows)?;
                backbone.device().synchronize()?;
                let took = features.device_time().unwrap_or(begun.elapsed());
                Ok(took.as_secs_f64())
            };
            let seconds = if backbone.device().is_resident() {
                // ONNX Runtime keeps memory on a device for each thread that ran there: no threads for a moment.
                measure(0)
            } else {
                every_lane(backbone.lanes(), measure)
            };
            match seconds {
                Ok(seconds) => {
                    point.best = point.best.min(seconds);
                    point.last = Duration::from_secs_f64(seconds);
                    point.spent += point.last;
                }
                Err(error) if error.fault() == Fault::OutOfMemory && at > 1 => {
                    let rows = point.rows;
                    tracing::warn!(%error, rows, "no memory for batches of this size; they are left out");
                    backbone.release();
                    points.truncate(at - 1);
                }
                Err(error) => return Err(error),
            }
        }
    }
    let points = points.iter().map(|point| (point.rows, point.best));
    Ok(Curve {
        size,
        points: points.collect(),
    })
}

/// Measures on every lane at once; the mean of what they say.
pub(super) fn every_lane(
    lanes: usize,
    measure: impl Fn(usize) -> Result<f64, BackendError> + Sync,
) -> Result<f64, BackendError> {
    let measure = &measure;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..lanes)
            .map(|lane| scope.spawn(move || measure(lane)))
            .collect();
        let mut all = Vec::with_capacity(running.len());
        for handle in running {
            let panicked = || BackendError::Library("warming up panicked".to_owned());
            all.push(handle.join().unwrap_or_else(|_| Err(panicked()))?);
        }
        Ok(all.iter().sum::<f64>() / all.len().max(1) as f64)
    })
}

/// An image as cameras send them, encoded.
fn photo() -> Option<Vec<u8>> {
    const WIDTH: u32 = 640;
    const HEIGHT: u32 = 480;
    // Slopes with some grain.
    let level = |i: u32| {
        let slope = i / 3 % WIDTH / 3 + i / (3 * WIDTH) / 4;
        (slope + (i.wrapping_mul(0x9e37_79b9) >> 28)) as u8
    };
    let pixels = (0..WIDTH * HEIGHT * 3).map(level).collect();
    let image = Image::from_raw(WIDTH, HEIGHT, pixels).ok()?;
    media::encode_jpeg(&image, 90).ok()
}

fn decode(photo: Option<&[u8]>, [height, width]: [u32; 2]) {
    let Some(photo) = photo else {
        return;
    };
    let how = Preprocess {
        mode: ResizeMode::Letterbox,
        filter: Filter::Bilinear,
        pad: 0,
        height,
        width,
    };
    let mut row = vec![0; height as usize * width as usize * 3];
    if let Ok(image) = media::decode(photo, &media::Limits::default()) {
        black_box(media::preprocess_into(image.view(), &how, &mut row).is_ok());
    }
    black_box(row);
}
