//! The door: what is inside is bounded by count and by bytes.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};

/// Bounds on what is inside the engine at once.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionLimits {
    /// Images and frames.
    pub images: usize,
    /// Bytes of images as they came.
    pub bytes: usize,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self {
            images: 512,
            bytes: 512 << 20,
        }
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Held {
    images: usize,
    bytes: usize,
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

    /// Takes places for `images` images of `bytes` bytes together, or refuses at once.
    pub(super) fn admit(&self, images: usize, bytes: usize) -> Result<Arc<Permit>> {
        let limits = self.limits;
        if images > limits.images || bytes > limits.bytes {
            let message = format!(
                "{images} images of {bytes} bytes are more than the server ever takes at once ({} images, {} bytes)",
                limits.images, limits.bytes
            );
            return Err(Error::new(Kind::LimitExceeded, message));
        }
        let mut held = self.held.lock();
        if held.images + images > limits.images || held.bytes + bytes > limits.bytes {
            let message = format!(
                "the server is full: {} of {} images, {} of {} bytes",
                held.images, limits.images, held.bytes, limits.bytes
            );
            let delay = Duration::from_millis(100);
            return Err(Error::new(Kind::Overloaded, message).retry_after(delay));
        }
        held.images += images;
        held.bytes += bytes;
        Ok(Arc::new(Permit {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_when_full_and_takes_again_after_a_permit_is_dropped() {
        let door = Admission::new(AdmissionLimits {
            images: 2,
            bytes: 100,
        });
        let first = door.admit(1, 60).ok();
        assert!(first.is_some());
        let full = door
            .admit(1, 60)
            .err()
            .map(|e| (e.kind(), e.retry_delay().is_some()));
        assert_eq!(full, Some((Kind::Overloaded, true)));
        assert_eq!(
            door.admit(3, 1).err().map(|e| e.kind()),
            Some(Kind::LimitExceeded)
        );
        drop(first);
        assert!(door.admit(2, 100).is_ok());
        assert_eq!(door.held(), 0);
    }
}
