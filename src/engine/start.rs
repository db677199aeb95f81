//! Loading, warming up, and the engine's threads.

use std::{collections::BTreeMap, sync::Arc, thread::JoinHandle};

use parking_lot::{Mutex, RwLock};

use super::{
    Engine, EngineConfig, Head, Shared,
    admission::Admission,
    busy::Busy,
    cache::Cache,
    cost::Costs,
    flight::Flights,
    lane::Thread,
    look::bytes_of,
    mean::Trials,
    queue::{Queue, QueueOptions},
    room::Rooms,
    sched::decide::Role,
    steps::Steps,
    warm,
};
use crate::{
    backend::{Backbone, BackendError, Runtime, SessionOptions},
    cores,
    repository::{OnBadHead, Repository},
};

impl Engine {
    /// Loads every graph of `repository` for every lane, measures and warms the batch sizes, and starts the threads.
    ///
    /// # Errors
    /// A graph that does not load or is not what its manifest says; a head's only where bad heads are refused.
    pub fn start(
        runtime: &Runtime,
        repository: &Repository,
        mut config: EngineConfig,
    ) -> Result<Self, BackendError> {
        let cores = cores::count(config.cores);
        let gpu = runtime.device().is_gpu();
        let lanes = match config.lanes {
            _ if gpu => 1,
            0 => cores,
            lanes => lanes,
        };
        // A GPU's one lane has no time to decode.
        if gpu && config.workers == 0 {
            config.workers = cores;
        }
        let options = SessionOptions {
            lanes,
            threads: config.threads_per_lane.max(1),
        };
        let backbone = Backbone::load(runtime, &repository.backbone, &repository.graph, options)?;
        let (heads, faults) = load_heads(runtime, repository, &backbone, options, &config)?;
        let curves = warm::curves(&backbone, &config)?;
        let queue = Queue::new(QueueOptions {
            lanes,
            workers: config.workers,
            ready_limit: config.max_batch.max(1) * (lanes + 1),
            decode_bytes: config.admission.decode_bytes,
            max_batch: config.max_batch.max(1),
            max_delay: config.max_queue_delay,
        });
        // Where a device keeps them they take none of the host's memory.
        let features_bytes = match runtime.device().is_resident() {
            true => Vec::new(),
            false => features_bytes(&backbone),
        };
        let shared = Arc::new(Shared {
            runtime: runtime.clone(),
            location: repository.location.clone(),
            options,
            backbone,
            heads: RwLock::new(heads),
            faults: RwLock::new(faults),
            stamps: repository.stamps.clone(),
            loading: Mutex::default(),
            changes: tokio::sync::watch::Sender::new(()),
            admission: Admission::new(config.admission),
            rooms: Rooms::new(config.admission.result_bytes),
            features_bytes,
            flights: Flights::default(),
            cache: Cache::new(config.cache_bytes, runtime.device()),
            queue,
            costs: Costs::new(&curves, config.buckets.as_deref()),
            trials: Trials::default(),
            curves,
            lanes,
            steps: Steps::new(lanes),
            hash_key: hash_key(),
            counters: Mutex::default(),
            on_lanes: Busy::default(),
            on_workers: Busy::default(),
            config,
        });
        // What is compiled for one batch size is not kept for those that are not run.
        let used = |size| shared.costs.buckets(size);
        shared.backbone.settle(used);
        shared.tell_heads();
        let engine = Self {
            shared,
            threads: Mutex::default(),
        };
        engine.start_lanes()?;
        engine.start_workers()?;
        engine.watch_lanes()?;
        Ok(engine)
    }

    /// Starts the threads that run graphs, and waits until each is warm.
    fn start_lanes(&self) -> Result<(), BackendError> {
        let (shared, workers) = (&self.shared, self.shared.config.workers);
        let (lanes, options) = (shared.lanes, shared.options);
        let device = shared.runtime.device();
        let resident = device.is_resident();
        // As many lanes of one thread as there are cores: no other number could have one each. Where others are put on these
        // cores as well, a lane must be free to go where none of them is.
        let mut cores_of_lanes = cores::allowed();
        let as_many = cores_of_lanes.len() == lanes;
        if device.is_gpu() || options.threads > 1 || !as_many || !cores::own() {
            cores_of_lanes.clear();
        }
        let (warmed, warm) = std::sync::mpsc::channel();
        for lane in 0..lanes {
            let core = cores_of_lanes.get(lane).copied();
            let (device, cpu) = (true, workers == 0);
            let role = Role { device, cpu };
            let warmed = warmed.clone();
            self.spawn(format!("lane-{lane}"), move |shared| {
                core.into_iter().for_each(cores::keep_to);
                let warm = if resident {
                    warm_lane(shared, lane)
                } else {
                    Ok(())
                };
                if warmed.send(warm).is_ok() {
                    let index = lane;
                    Thread { role, lane, index }.run(shared);
                }
            })?;
        }
        drop(warmed);
        // A lane that panicked meanwhile sends nothing.
        let warm: Vec<_> = warm.iter().take(lanes).collect::<Result<_, _>>()?;
        if warm.len() < lanes {
            return Err(BackendError::Library("warming up panicked".to_owned()));
        }
        Ok(())
    }

    /// Starts the threads that decode and postprocess beside the lanes.
    fn start_workers(&self) -> Result<(), BackendError> {
        let lanes = self.shared.lanes;
        for worker in 0..self.shared.config.workers {
            let (device, cpu) = (false, true);
            let role = Role { device, cpu };
            self.spawn(format!("worker-{worker}"), move |shared| {
                let (lane, index) = (0, lanes + worker);
                Thread { role, lane, index }.run(shared)
            })?;
        }
        Ok(())
    }

    pub(super) fn spawn(
        &self,
        name: String,
        body: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<(), BackendError> {
        let shared = Arc::clone(&self.shared);
        let thread: JoinHandle<()> = std::thread::Builder::new()
            .name(name)
            .spawn(move || body(&shared))
            .map_err(|error| {
                BackendError::Library(format!("a thread cannot be started: {error}"))
            })?;
        self.threads.lock().push(thread);
        Ok(())
    }
}

/// Bytes of one image's features, by input size.
fn features_bytes(backbone: &Backbone) -> Vec<([u32; 2], u64)> {
    let sizes = backbone.manifest().input.sizes.iter();
    let of = |&size: &[u32; 2]| {
        let maps = backbone.blank(size)?.maps();
        Some((size, bytes_of(maps.map(|map| map.spec()))))
    };
    sizes.filter_map(of).collect()
}

type Heads = BTreeMap<String, Arc<Head>>;
type Faults = BTreeMap<String, Arc<str>>;

/// Loads the heads of `repository`, all at once; why each does not serve of those that do not.
fn load_heads(
    runtime: &Runtime,
    repository: &Repository,
    backbone: &Backbone,
    options: SessionOptions,
    config: &EngineConfig,
) -> Result<(Heads, Faults), BackendError> {
    let refused = repository.refused.iter();
    let mut faults: Faults = refused
        .map(|(name, reason)| (name.clone(), reason.as_str().into()))
        .collect();
    let loaded: Vec<_> = std::thread::scope(|scope| {
        let load = |entry| Head::load(runtime, entry, backbone, options);
        let loading: Vec<_> = repository
            .heads
            .iter()
            .map(|entry| (entry, scope.spawn(move || load(entry))))
            .collect();
        let joined = loading.into_iter().map(|(entry, handle)| {
            let panicked = || BackendError::Library("loading a head panicked".to_owned());
            let loaded = handle.join().unwrap_or_else(|_| Err(panicked()));
            (entry.manifest.name.clone(), loaded)
        });
        joined.collect()
    });
    let mut heads = Heads::new();
    for (name, head) in loaded {
        match head {
            Ok(head) => drop(heads.insert(name, Arc::new(head))),
            // What the machine cannot do is no head's fault.
            Err(error) if config.on_bad_head == OnBadHead::ServeOthers && error.refuses_graph() => {
                faults.insert(name, error.to_string().into());
            }
            Err(error) => return Err(error),
        }
    }
    Ok((heads, faults))
}

/// Runs every batch size in use on the thread that will serve them: a device keeps captured graphs and scratch memory
/// for each thread.
fn warm_lane(shared: &Shared, lane: usize) -> Result<(), BackendError> {
    let backbone = &shared.backbone;
    for &size in &backbone.manifest().input.sizes {
        for rows in shared.costs.buckets(size) {
            backbone.run_images(lane, size, &[], rows)?;
            backbone.device().synchronize()?;
            for head in shared.heads.read().values() {
                let manifest = &head.manifest;
                let calls = rows / manifest.frames().max(1);
                if manifest.input_size == size && calls > 0 {
                    head.model.dry_run(lane, backbone, size, calls)?;
                }
            }
        }
    }
    Ok(())
}

/// A key that callers cannot know: equal keys then mean equal images, not an attack on the cache.
fn hash_key() -> [u64; 4] {
    use std::hash::{BuildHasher, RandomState};
    std::array::from_fn(|_| RandomState::new().hash_one(0_u8))
}
