//! The door: what is inside is bounded by count and by bytes, and no one user of it can fill it.
//!
//! A flow (one caller's use of one head) may hold at most `SHARE` times what is still free, and a caller with all of its
//! flows `SHARE_OF_ALL` times: a lone flow gets all but a small part, several settle at equal shares, and one that comes
//! anew finds a place (the dynamic thresholds of Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory
//! packet switches", 1998).

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use super::sched::{
    rank::Flow,
    tuning::{SHARE, SHARE_OF_ALL},
};
use crate::error::{Error, Kind, Result};

/// Bounds on what is inside the engine at once.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionLimits {
    /// Images and frames.
    pub images: usize,
    /// Bytes of images as they came.
    pub bytes: usize,
    /// Bytes that decoding holds at once, all threads together; an image that needs more is refused.
    pub decode_bytes: u64,
    /// Bytes of features and results, from a call's beginning to its answer.
    pub result_bytes: u64,
    /// What a call's images may cost to decode whatever their bytes, in pixels of a plain JPEG.
    pub free_pixels: u64,
    /// And for each byte of them beyond that.
    pub pixels_per_byte: u64,
}

impl AdmissionLimits {
    /// What a call's images of so many bytes together may cost to decode, in pixels of a plain JPEG.
    #[must_use]
    pub fn most_pixels(&self, bytes: u64) -> u64 {
        let more = bytes.saturating_mul(self.pixels_per_byte);
        self.free_pixels.saturating_add(more)
    }
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self {
            images: 512,
            bytes: 256 << 20,
            decode_bytes: 512 << 20,
            result_bytes: 320 << 20,
            free_pixels: 8_000_000,
            pixels_per_byte: 2000,
        }
    }
}

#[derive(Debug, Default)]
struct Held {
    images: usize,
    bytes: usize,
    flows: HashMap<Flow, usize>,
    callers: HashMap<Arc<str>, usize>,
}

/// Counts what is inside.
#[derive(Debug)]
pub(super) struct Admission {
    limits: AdmissionLimits,
    held: Arc<Mutex<Held>>,
}

/// A place inside, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    flow: Flow,
    images: usize,
    bytes: usize,
    held: Arc<Mutex<Held>>,
}

impl Admission {
    pub(super) fn new(limits: AdmissionLimits) -> Self {
        Self {
            limits,
            held: Arc::default(),
        }
    }

    /// The head of `heads` that `caller` already uses most: whoever asks for several pays from that one's share.
    pub(super) fn flow(
        &self,
        caller: &Arc<str>,
        heads: impl Iterator<Item = Arc<str>>,
    ) -> Option<Flow> {
        let held = self.held.lock();
        heads
            .map(|head| Flow {
                caller: Arc::clone(caller),
                head,
            })
            .max_by_key(|flow| held.flows.get(flow).copied().unwrap_or(0))
    }

    /// Takes places for `images` images of `bytes` bytes together, or refuses at once; `wait` tells about how long what
    /// is inside takes.
    pub(super) fn admit(
        &self,
        flow: &Flow,
        weight: f64,
        images: usize,
        bytes: usize,
        wait: impl FnOnce() -> Duration,
    ) -> Result<Arc<Permit>> {
        let limits = self.limits;
        if images > limits.images || bytes > limits.bytes {
            let message = format!(
                "the call has more than the server ever takes at once: {} images, {} bytes",
                limits.images, limits.bytes
            );
            let error = Error::new(Kind::LimitExceeded, message);
            return Err(error
                .with("images", images)
                .with("images_limit", limits.images)
                .with("bytes", bytes)
                .with("bytes_limit", limits.bytes));
        }
        let mut held = self.held.lock();
        let refuse = |message: &str, value: usize, held: MutexGuard<'_, Held>| {
            // The door is open again before anything else is asked.
            drop(held);
            let delay = wait().clamp(Duration::from_millis(10), Duration::from_secs(5));
            let error = Error::new(Kind::Overloaded, message).retry_after(delay);
            Err(error.with("value", value).with("limit", limits.images))
        };
        if held.images + images > limits.images || held.bytes + bytes > limits.bytes {
            let images = held.images;
            return refuse("the server is full", images, held);
        }
        let own = held.flows.get(flow).copied().unwrap_or(0);
        let all = held.callers.get(&flow.caller).copied().unwrap_or(0);
        let free = (limits.images - held.images) as f64;
        // A head of more weight takes its caller along.
        if all > 0 && (all + images) as f64 > SHARE_OF_ALL * weight.max(1.0) * free {
            let message =
                "the caller's images that wait are its share of those that the server takes";
            return refuse(message, all, held);
        }
        if own > 0 && (own + images) as f64 > SHARE * weight * free {
            let message = "the caller's images that wait for this head are its share of those that the server takes";
            return refuse(message, own, held);
        }
        held.images += images;
        held.bytes += bytes;
        *held.flows.entry(flow.clone()).or_default() += images;
        *held.callers.entry(Arc::clone(&flow.caller)).or_default() += images;
        Ok(Arc::new(Permit {
            flow: flow.clone(),
            images,
            bytes,
            held: Arc::clone(&self.held),
        }))
    }

    /// Images inside.
    pub(super) fn held(&self) -> usize {
        self.held.lock().images
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        held.images -= self.images;
        held.bytes -= self.bytes;
        if let Some(own) = held.flows.get_mut(&self.flow) {
            *own -= self.images;
            if *own == 0 {
                held.flows.remove(&self.flow);
            }
        }
        if let Some(all) = held.callers.get_mut(&self.flow.caller) {
            *all -= self.images;
            if *all == 0 {
                held.callers.remove(&self.flow.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(head: &str) -> Flow {
        Flow {
            caller: "".into(),
            head: head.into(),
        }
    }

    fn admit(door: &Admission, head: &str, images: usize, bytes: usize) -> Result<Arc<Permit>> {
        door.admit(&flow(head), 1.0, images, bytes, || Duration::ZERO)
    }

    #[test]
    fn refuses_when_full_and_takes_again_after_a_permit_is_dropped() {
        let door = Admission::new(AdmissionLimits {
            images: 2,
            bytes: 100,
            ..AdmissionLimits::default()
        });
        let first = admit(&door, "a", 1, 60).ok();
        assert!(first.is_some());
        let full = admit(&door, "a", 1, 60)
            .err()
            .map(|e| (e.kind(), e.retry_delay().is_some()));
        assert_eq!(full, Some((Kind::Overloaded, true)));
        assert_eq!(
            admit(&door, "a", 3, 1).err().map(|e| e.kind()),
            Some(Kind::LimitExceeded)
        );
        drop(first);
        assert!(admit(&door, "a", 2, 100).is_ok());
        assert_eq!(door.held(), 0);
    }

    #[test]
    fn a_flood_on_many_heads_leaves_places_for_another_caller() {
        let door = Admission::new(AdmissionLimits {
            images: 512,
            ..AdmissionLimits::default()
        });
        let admit = |caller: &str, head: usize| {
            let flow = Flow {
                caller: caller.into(),
                head: head.to_string().into(),
            };
            door.admit(&flow, 1.0, 1, 1, || Duration::ZERO).ok()
        };
        let flood: Vec<_> = (0..5000).filter_map(|n| admit("flood", n % 200)).collect();
        assert!((480..=497).contains(&flood.len()), "{}", flood.len());
        let other: Vec<_> = (0..14).map_while(|_| admit("other", 0)).collect();
        assert_eq!(other.len(), 14);
        drop((flood, other));
        assert!(door.held.lock().callers.is_empty());
    }

    #[test]
    fn a_flood_on_one_head_leaves_places_for_another() {
        let door = Admission::new(AdmissionLimits {
            images: 90,
            bytes: 1 << 20,
            ..AdmissionLimits::default()
        });
        let flood: Vec<_> = (0..200)
            .map_while(|_| admit(&door, "flood", 1, 1).ok())
            .collect();
        assert_eq!(flood.len(), 80, "8/9 of the places");
        let other: Vec<_> = (0..200)
            .map_while(|_| admit(&door, "other", 1, 1).ok())
            .collect();
        assert!(other.len() >= 8, "{} places were left", other.len());
        drop((flood, other));
        assert!(door.held.lock().flows.is_empty());
    }
}
