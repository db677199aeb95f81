//! From an image as it came to the pixels that the backbone takes, as long as somebody waits for it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Shared, Source, flight::Flight, queue::Ready};
use crate::{
    error::{Error, Kind, Result},
    media::{self, RgbView},
};

/// Decodes an image to the backbone's input; nothing if it cannot be, which its callers are told.
pub(super) fn decode(shared: &Shared, flight: &Arc<Flight>) -> Option<Ready> {
    // A decoder that panics on a hostile file must cost one image, not a thread.
    let begun = Instant::now();
    let pixels = catch_unwind(AssertUnwindSafe(|| pixels(shared, flight))).unwrap_or_else(|_| {
        Err(Error::new(
            Kind::InvalidImage,
            "the image cannot be decoded",
        ))
    });
    match pixels {
        Ok(pixels) => {
            let work = flight.cost.work;
            let caller = flight.rank().flow.caller;
            let known = shared.costs.decoding(work);
            known.add(&caller, work.size, begun.elapsed());
            Some(Ready {
                flight: Arc::clone(flight),
                pixels,
                decoded: true,
            })
        }
        // Nobody waits for it any more, which its callers know.
        Err(_) if flight.is_done() => None,
        Err(error) => {
            flight.fail(&error);
            None
        }
    }
}

fn pixels(shared: &Shared, flight: &Flight) -> Result<Bytes> {
    let preprocess = &flight.preprocess;
    let keep = || flight.wanted(Instant::now(), Duration::ZERO);
    let begun = Instant::now();
    let mut row = vec![0; preprocess.height as usize * preprocess.width as usize * 3];
    let geometry = match &flight.source {
        Source::Encoded(bytes) => {
            let image = media::decode_while(bytes, &shared.config.media, &keep)?;
            media::preprocess_while(image.view(), preprocess, &mut row, &keep)?
        }
        Source::Raw { width, height, rgb } => {
            let view = RgbView::new(*width, *height, rgb)?;
            media::preprocess_while(view, preprocess, &mut row, &keep)?
        }
    };
    flight.set_decoded(geometry, begun.elapsed());
    Ok(row.into())
}
