//! What the engine's threads and its callers share.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::{
    Counters, Curve, EngineConfig, Head,
    admission::Admission,
    busy::Busy,
    cache::Cache,
    cost::Costs,
    flight::{Flight, Flights},
    mean::Trials,
    queue::Queue,
    room::Rooms,
    steps::Steps,
};
use crate::{
    backend::{Backbone, Runtime, SessionOptions},
    error::Error,
    repository::{Location, Stamp},
};

/// What the threads and the callers share.
pub(super) struct Shared {
    pub(super) runtime: Runtime,
    pub(super) location: Location,
    pub(super) options: SessionOptions,
    pub(super) backbone: Backbone,
    pub(super) heads: RwLock<BTreeMap<String, Arc<Head>>>,
    /// Why the newest version of a head does not serve, where it does not.
    pub(super) faults: RwLock<BTreeMap<String, Arc<str>>>,
    /// How the heads' files looked before they were read at the start.
    pub(super) stamps: BTreeMap<String, Stamp>,
    pub(super) loading: Mutex<()>,
    /// Tells whoever follows them that the heads have changed.
    pub(super) changes: watch::Sender<()>,
    pub(super) admission: Admission,
    pub(super) rooms: Rooms,
    /// Bytes of one image's features in the host's memory, by input size.
    pub(super) features_bytes: Vec<([u32; 2], u64)>,
    pub(super) flights: Flights,
    pub(super) cache: Cache,
    pub(super) queue: Queue,
    pub(super) costs: Costs,
    pub(super) trials: Trials,
    pub(super) curves: Vec<Curve>,
    pub(super) lanes: usize,
    pub(super) steps: Steps,
    pub(super) hash_key: [u64; 4],
    pub(super) counters: Mutex<Counters>,
    /// Time that lanes spent.
    pub(super) on_lanes: Busy,
    /// Time that threads beside them spent.
    pub(super) on_workers: Busy,
    pub(super) config: EngineConfig,
}

impl Shared {
    /// Lets go of images that left the queue without being computed.
    pub(super) fn drop_flights(&self, dropped: &mut Vec<Arc<Flight>>) {
        if dropped.is_empty() {
            return;
        }
        self.counters.lock().abandoned += dropped.len() as u64;
        for flight in dropped.drain(..) {
            self.flights.remove(&flight);
        }
    }

    /// Images that will never be computed fail with `error` and give back their places.
    pub(super) fn give_up(&self, flights: &[Arc<Flight>], error: &Error) {
        for flight in flights {
            self.flights.remove(flight);
            flight.fail(error);
        }
    }

    /// The engine is over: everything that waits is told `error`.
    pub(super) fn fail(&self, error: &Error) {
        let (flights, jobs) = self.queue.fail(error);
        self.give_up(&flights, error);
        jobs.iter().for_each(|job| job.finish(Err(error.clone())));
    }
}
