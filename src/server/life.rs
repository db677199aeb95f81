//! Where the server is in its life: one value, told by who serves, followed by probes, health, Open Inference's readiness
//! and the drain.

use tokio::sync::watch;

/// A part of the server's life. They come in this order; the last two end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Loading and warming up.
    Starting,
    /// Taking requests.
    Ready,
    /// Still answering, but no longer asking for new callers: balancers have time to notice.
    Leaving,
    /// Finishing what was accepted.
    Draining,
    /// The device is gone; nothing can be served.
    Failed,
}

impl Phase {
    /// Name for people and probes, to whom leaving is the beginning of the drain.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Leaving | Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// The server's phase. Clones tell of the same server.
#[derive(Debug, Clone)]
pub struct Life(watch::Sender<Phase>);

impl Default for Life {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Starting))
    }
}

impl Life {
    /// The phase now.
    #[must_use]
    pub fn get(&self) -> Phase {
        *self.0.borrow()
    }

    /// Enters a phase. There is no way back: an earlier one than the present changes nothing.
    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                *now = phase;
            }
            later
        });
    }

    /// Follows it.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }

    /// Completes once it has come to `phase`, or past it.
    pub async fn reaches(&self, phase: Phase) {
        // The sender lives in `self`: waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_life_has_no_way_back_and_all_who_follow_it_see_the_same() {
        let life = Life::default();
        let (other, mut followed) = (life.clone(), life.follow());
        assert_eq!(life.get(), Phase::Starting);
        life.enter(Phase::Ready);
        other.enter(Phase::Leaving);
        life.enter(Phase::Ready);
        assert_eq!((life.get(), other.get()), (Phase::Leaving, Phase::Leaving));
        life.reaches(Phase::Ready).await;
        assert_eq!(*followed.borrow_and_update(), Phase::Leaving);
        life.enter(Phase::Leaving);
        assert!(!followed.has_changed().unwrap(), "nothing changed");
        life.enter(Phase::Failed);
        life.enter(Phase::Draining);
        assert_eq!(life.get().name(), "failed");
    }
}
