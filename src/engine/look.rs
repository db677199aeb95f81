//! What the headers of a call's images tell before anything is decoded: whether it may come in at all, what it costs its
//! caller, and how much room its results take.

use std::sync::Arc;

use super::{
    AdmissionLimits, Engine, EngineConfig, Head, Options, Request, Shared, Source,
    request::{self, Looked, Looks},
};
use crate::{
    backend::TensorSpec,
    error::{Error, Kind, Result},
    media,
};

/// What a call is altogether.
#[derive(Debug, Default)]
struct Whole<'a> {
    /// Bytes of its image files.
    bytes: u64,
    /// What they cost, in pixels of a plain JPEG.
    decoded: u64,
    /// The same with what comes as pixels.
    pixels: u64,
    /// Bytes of features and results.
    results: u64,
    /// The field of the image that costs most, and how much.
    worst: Option<(&'a str, u64)>,
}

impl Whole<'_> {
    /// Refuses images that cost more than their bytes let expect: a few bytes may stand for any number of pixels.
    fn check(&self, limits: &AdmissionLimits) -> Result<()> {
        let (bytes, decoded) = (self.bytes, self.decoded);
        let most = limits.most_pixels(bytes);
        if decoded <= most {
            return Ok(());
        }
        let message = "it takes more to decode than images of so few bytes may take in all (limits.free_pixels, limits.pixels_per_byte)";
        let error = Error::new(Kind::LimitExceeded, message)
            .with("value", decoded)
            .with("limit", most)
            .with("bytes", bytes);
        Err(match self.worst {
            Some((field, _)) => error.at(field),
            None => error,
        })
    }
}

impl Engine {
    /// Looks at the requests of one call: checks their images' headers, holds them to what a call may cost, charges their
    /// caller, and takes the room that their results need. [`Engine::run`] does so for a request that comes by itself.
    ///
    /// # Errors
    /// Images that cannot be read or are over a limit, a caller that is over its quota, no room now.
    pub fn look(&self, requests: &mut [Request]) -> Result<()> {
        let shared = &self.shared;
        let (mut whole, mut all) = (Whole::default(), Vec::with_capacity(requests.len()));
        for request in &*requests {
            let images = check(request, &shared.config)?;
            shared.weigh(request, &images, &mut whole)?;
            all.push(images);
        }
        let too_large = |error: &Error| {
            if error.kind() == Kind::LimitExceeded {
                shared.turned_away("too_large");
            }
        };
        whole
            .check(&shared.config.admission)
            .inspect_err(too_large)?;
        let Some(first) = requests.first() else {
            return Ok(());
        };
        let (weight, _) = shared.config.weights(&first.caller, "");
        let wait = || shared.queue.backlog();
        let room = shared
            .rooms
            .take(&first.caller, weight, whole.results, wait);
        let room = room.inspect_err(|error| match error.kind() {
            Kind::LimitExceeded => too_large(error),
            _ => shared.turned_away("full"),
        })?;
        if let Some(meter) = &first.meter {
            meter.charge(whole.pixels)?;
        }
        for (request, images) in requests.iter_mut().zip(all) {
            let room = Arc::clone(&room);
            request.looked = Some(Looked { images, room });
        }
        Ok(())
    }
}

impl Shared {
    /// Adds a request to what its call is.
    fn weigh<'a>(
        &self,
        request: &'a Request,
        images: &[Looks],
        whole: &mut Whole<'a>,
    ) -> Result<()> {
        let limit = self.config.admission.decode_bytes;
        let mut read = vec![false; images.len()];
        let mut features = 0;
        for size in request::sizes(request) {
            let frames = request::frames_read(request, size);
            features += frames.len() as u64 * self.features_bytes(size);
            for index in frames {
                let (Some((source, field)), Some(looks)) =
                    (request.images.get(index), images.get(index))
                else {
                    continue;
                };
                let cost = looks.work.pixels();
                whole.pixels += cost;
                if let Source::Encoded(bytes) = source {
                    if looks.held > limit {
                        self.turned_away("too_large");
                        let held = looks.held;
                        let message = format!(
                            "decoding it takes more than {limit} bytes (limits.decode_bytes)"
                        );
                        let error = Error::new(Kind::LimitExceeded, message).at(field);
                        return Err(error.with("value", held).with("limit", limit));
                    }
                    whole.decoded += cost;
                    if !std::mem::replace(&mut read[index], true) {
                        whole.bytes += bytes.len() as u64;
                    }
                    if whole.worst.is_none_or(|(_, most)| cost > most) {
                        whole.worst = Some((field, cost));
                    }
                }
            }
        }
        let results = images.last().map_or(0, |last| {
            let heads = request.heads.iter().enumerate();
            let of = |(index, head): (usize, &Arc<Head>)| {
                head.result_bytes(last, &request.options_of(index))
            };
            heads.map(of).sum::<u64>()
        });
        // One after the other: features are let go of when their heads have run.
        whole.results += features.max(results);
        if let Some(size) = request.features {
            // As they are, and as they leave.
            whole.results += 2 * self.features_bytes(size);
        }
        Ok(())
    }

    /// Bytes of the host's memory that the features of one image take.
    fn features_bytes(&self, size: [u32; 2]) -> u64 {
        let known = self.features_bytes.iter().find(|(s, _)| *s == size);
        known.map_or(0, |(_, bytes)| *bytes)
    }
}

/// Bytes of tensors of these shapes.
pub(super) fn bytes_of(specs: impl IntoIterator<Item = TensorSpec>) -> u64 {
    let of = |spec: TensorSpec| spec.shape.iter().product::<usize>() * spec.element.size();
    specs.into_iter().map(of).sum::<usize>() as u64
}

impl Head {
    /// Most bytes that its result on such an image takes, from the graph's output to the message, masks of detections not
    /// counted.
    pub(super) fn result_bytes(&self, image: &Looks, options: &Options) -> u64 {
        let (manifest, outputs) = (&self.manifest, bytes_of(self.outputs().iter().cloned()));
        let (spec, labels) = (manifest.task.spec(), manifest.labels.len());
        let result = spec.bytes(&manifest.postprocess, options, labels, image.pixels());
        outputs + result.unwrap_or(outputs)
    }
}

/// Refuses what the headers alone show to be wrong; what they tell of each image.
fn check(request: &Request, config: &EngineConfig) -> Result<Vec<Looks>> {
    if request.images.is_empty() {
        return Err(Error::invalid("clip.frames", "has no frame"));
    }
    let (frames, most) = (request.images.len(), config.max_frames);
    if frames > most {
        let message = format!("has more than {most} frames");
        let error = Error::new(Kind::LimitExceeded, message).at("clip.frames");
        return Err(error.with("value", frames).with("limit", most));
    }
    let mut all = Vec::with_capacity(frames);
    let mut first = None;
    for (source, field) in &request.images {
        let looks = probe(source, &config.media).map_err(|e| e.at(field))?;
        let (width, height) = (looks.width, looks.height);
        all.push(looks);
        let (w, h) = *first.get_or_insert((width, height));
        if (w, h) != (width, height) {
            let error = Error::invalid(field, "is not of the size of the clip's first frame");
            return Err(error
                .with("value", format!("{width}x{height}"))
                .with("limit", format!("{w}x{h}")));
        }
    }
    Ok(all)
}

/// What an image is, from its header alone.
fn probe(source: &Source, limits: &media::Limits) -> Result<Looks> {
    match source {
        Source::Encoded(bytes) => {
            let header = media::probe(bytes, limits)?;
            Ok(Looks {
                width: header.width,
                height: header.height,
                work: media::Work::of(&header, bytes),
                held: header.held,
            })
        }
        Source::Raw { width, height, rgb } => {
            limits.check_size(*width, *height)?;
            media::RgbView::new(*width, *height, rgb)?;
            Ok(Looks {
                width: *width,
                height: *height,
                work: media::Work::raw(*width, *height),
                held: 0,
            })
        }
    }
}
