//! ONNX Runtime in a loop, as one would write it by hand for this device: the measure of what serving adds.
//!
//! Nothing of Frostline's runs here but the reader of the repository's manifests. Input, features and what the heads find
//! stay in the device's memory (the host's on a CPU) and are bound once; heads read the backbone's output values in place;
//! nothing is copied, padded, queued or postprocessed. Of the choices that such a loop has, the best counts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::Context;
use cudarc::driver::{CudaContext, CudaStream};
use frostline::repository::{Graph, Repository};
use ort::{
    environment::Environment,
    ep,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, NoSelectedOutputs, RunOptions, Session},
    value::{DynTensor, DynTensorValueType, Tensor, TensorElementType, ValueType},
};
use serde_json::json;

use super::{Arguments, TURNS, images, quantile, rate};

/// One way to run the loop.
struct Choice {
    name: &'static str,
    /// Loops side by side, each with sessions of its own.
    lanes: usize,
    /// Threads of each session's operators.
    threads: usize,
    /// Whether the backbone's run is captured as a CUDA graph.
    capture: bool,
}

/// A session with all its memory bound: running it takes no arguments.
struct Bound {
    binding: IoBinding,
    session: Session,
    options: RunOptions<NoSelectedOutputs>,
}

/// The backbone and its heads, one after another on one stream.
struct Lane {
    bound: Vec<Bound>,
    stream: Option<Arc<CudaStream>>,
}

/// A choice with what it reached, images/s of each turn.
struct Reached {
    choice: &'static str,
    rates: Vec<f64>,
    /// Bytes of the heads' outputs for each image.
    outputs: usize,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let library = std::env::var_os("ORT_DYLIB_PATH").context("ORT_DYLIB_PATH is not set")?;
    let environment = ort::init_from(PathBuf::from(library))?
        .with_name("bare")
        .with_telemetry(false)
        .build()?;
    let repository = Repository::open(Path::new(&arguments.repository))?;
    let mut best: Option<Reached> = None;
    let mut said = serde_json::Map::new();
    for choice in choices(arguments.gpu()?) {
        match reach(&environment, &repository, arguments, &choice) {
            Ok(reached) => {
                let median = quantile(&mut reached.rates.clone(), 0.5);
                said.insert(choice.name.to_owned(), json!(median));
                let least = best
                    .as_ref()
                    .map_or(0.0, |best| quantile(&mut best.rates.clone(), 0.5));
                if median > least {
                    best = Some(reached);
                }
            }
            // A graph with operators that cannot be captured leaves the other choices.
            Err(error) => {
                said.insert(choice.name.to_owned(), json!(format!("{error:#}")));
            }
        }
    }
    let best = best.with_context(|| format!("no choice runs: {said:?}"))?;
    arguments.say(
        &arguments.device,
        super::merge(
            rate(best.rates),
            json!({
                "choice": best.choice, "choices": said, "outputs_per_image": best.outputs,
                "onnxruntime": ort::info(),
            }),
        ),
    );
    Ok(())
}

fn choices(gpu: Option<usize>) -> Vec<Choice> {
    let choice = |name, lanes, threads, capture| Choice {
        name,
        lanes,
        threads,
        capture,
    };
    if gpu.is_some() {
        return vec![
            choice("one stream", 1, 1, false),
            choice("one stream, CUDA graph", 1, 1, true),
        ];
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all = vec![choice("one session of all threads", 1, cores, false)];
    if cores > 1 {
        all.push(choice("a session for each core", cores, 1, false));
    }
    all
}

/// Opens the choice's sessions, warms them, and takes the turns.
fn reach(
    environment: &Environment,
    repository: &Repository,
    arguments: &Arguments,
    choice: &Choice,
) -> anyhow::Result<Reached> {
    let mut lanes = (0..choice.lanes)
        .map(|_| Lane::open(environment, repository, arguments, choice))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut outputs = 0;
    for lane in &mut lanes {
        for _ in 0..3 {
            lane.step()?;
        }
        outputs = lane.outputs()?;
    }
    let turn = |lanes: &mut [Lane]| turn(lanes, arguments.batch, arguments.seconds);
    let rates = (0..TURNS)
        .map(|_| turn(&mut lanes))
        .collect::<anyhow::Result<_>>()?;
    Ok(Reached {
        choice: choice.name,
        rates,
        outputs: outputs / arguments.batch,
    })
}

/// Images/s of all lanes together.
fn turn(lanes: &mut [Lane], batch: usize, seconds: f64) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let run = move |lane: &mut Lane| {
        let mut steps = 0;
        while begun.elapsed().as_secs_f64() < seconds {
            lane.step()?;
            steps += 1;
        }
        anyhow::Ok(steps)
    };
    let steps = match lanes {
        // A CUDA session stays on one thread: ONNX Runtime keeps memory for each thread that runs it.
        [lane] => run(lane)?,
        lanes => std::thread::scope(|scope| {
            let running: Vec<_> = lanes
                .iter_mut()
                .map(|lane| scope.spawn(move || run(lane)))
                .collect();
            running
                .into_iter()
                .map(|lane| {
                    lane.join()
                        .map_err(|_| anyhow::anyhow!("a lane panicked"))?
                })
                .sum::<anyhow::Result<usize>>()
        })?,
    };
    Ok((steps * batch) as f64 / begun.elapsed().as_secs_f64())
}

impl Lane {
    fn open(
        environment: &Environment,
        repository: &Repository,
        arguments: &Arguments,
        choice: &Choice,
    ) -> anyhow::Result<Self> {
        let (gpu, manifest) = (arguments.gpu()?, &repository.backbone);
        let stream = match gpu {
            Some(ordinal) => Some(CudaContext::new(ordinal)?.new_stream()?),
            None => None,
        };
        let open = |graph: &Graph, capture| {
            session(environment, graph, gpu, stream.as_deref(), choice, capture)
        };
        let session = open(&repository.graph, choice.capture)?;
        let (info, allocator) = match gpu {
            Some(ordinal) => {
                let id = i32::try_from(ordinal)?;
                let info = || {
                    let (kind, memory) = (AllocatorType::Device, MemoryType::Default);
                    MemoryInfo::new(AllocationDevice::CUDA, id, kind, memory)
                };
                (info()?, Allocator::new(&session, info()?)?)
            }
            None => {
                let (kind, memory) = (AllocatorType::Device, MemoryType::Default);
                (
                    MemoryInfo::new(AllocationDevice::CPU, 0, kind, memory)?,
                    Allocator::default(),
                )
            }
        };
        let size = manifest.input.sizes[0];
        let shape = [arguments.batch, size[0] as usize, size[1] as usize, 3];
        let host = Tensor::from_array((shape, images(size, arguments.batch).concat()))?;
        let mut input = DynTensor::new(&allocator, TensorElementType::Uint8, shape)?;
        host.upcast().copy_into(&mut input)?;
        let mut binding = session.create_binding()?;
        binding.bind_input(&manifest.input.name, &input)?;
        let mut features = Vec::new();
        for feature in &manifest.features {
            let output = session
                .outputs()
                .iter()
                .find(|output| output.name() == feature.name);
            let Some(ValueType::Tensor { ty, .. }) = output.map(|output| output.dtype()) else {
                anyhow::bail!("the backbone has no tensor {:?}", feature.name);
            };
            let mut shape = vec![arguments.batch];
            shape.extend(feature.row_shape(size));
            let mut map = DynTensor::new(&allocator, *ty, shape)?;
            binding.bind_output(&feature.name, &mut map)?;
            features.push((feature.name.clone(), map));
        }
        let options = enqueued(gpu.is_some(), choice.capture.then_some(1))?;
        let mut bound = vec![Bound {
            binding,
            session,
            options,
        }];
        let wanted =
            |entry: &&frostline::repository::HeadEntry| arguments.runs(&entry.manifest.name);
        for entry in repository.heads.iter().filter(wanted) {
            let session = open(&entry.graph, false)?;
            let mut binding = session.create_binding()?;
            for (name, map) in &features {
                if session.inputs().iter().any(|input| input.name() == name) {
                    binding.bind_input(name, map)?;
                }
            }
            for output in session.outputs() {
                binding.bind_output_to_device(output.name(), &info)?;
            }
            let options = enqueued(gpu.is_some(), None)?;
            bound.push(Bound {
                binding,
                session,
                options,
            });
        }
        Ok(Self { bound, stream })
    }

    /// One batch, waited for.
    fn step(&mut self) -> anyhow::Result<()> {
        for Bound {
            binding,
            session,
            options,
        } in &mut self.bound
        {
            session.run_binding_with_options(binding, options)?;
        }
        if let Some(stream) = &self.stream {
            stream.synchronize()?;
        }
        Ok(())
    }

    /// Bytes of what the heads find in a batch.
    fn outputs(&mut self) -> anyhow::Result<usize> {
        let mut bytes = 0;
        for Bound {
            binding,
            session,
            options,
        } in &mut self.bound[1..]
        {
            let outputs = session.run_binding_with_options(binding, options)?;
            for (_, value) in outputs.iter() {
                let value = value.downcast::<DynTensorValueType>()?;
                let elements = value.shape().num_elements();
                bytes += value.data_type().byte_size(elements).unwrap_or(0);
            }
        }
        Ok(bytes)
    }
}

fn session(
    environment: &Environment,
    graph: &Graph,
    gpu: Option<usize>,
    stream: Option<&CudaStream>,
    choice: &Choice,
    capture: bool,
) -> anyhow::Result<Session> {
    let mut builder = Session::builder(environment)?
        .with_intra_threads(choice.threads)
        .map_err(ort::Error::<()>::from)?;
    if let (Some(ordinal), Some(stream)) = (gpu, stream) {
        let provider = ep::CUDA::default()
            .with_device_id(i32::try_from(ordinal)?)
            .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Exhaustive)
            .with_cuda_graph(capture);
        // SAFETY: the stream outlives the session: the lane holds both and drops the sessions first.
        #[allow(unsafe_code)]
        let provider = unsafe { provider.with_compute_stream(stream.cu_stream().cast()) };
        builder = builder
            .with_execution_providers([provider.build().error_on_failure()])
            .map_err(ort::Error::<()>::from)?;
    }
    if let Some(weights) = &graph.weights {
        let bytes = Arc::clone(&weights.bytes);
        builder = builder
            .with_external_initializer_file_in_memory(&weights.name, bytes)
            .map_err(ort::Error::<()>::from)?;
    }
    Ok(builder.commit_from_memory(&graph.bytes)?)
}

/// Options of a run; on a GPU it ends when it is enqueued.
fn enqueued(gpu: bool, capture: Option<i32>) -> ort::Result<RunOptions<NoSelectedOutputs>> {
    let mut options = RunOptions::new()?;
    if gpu {
        options.disable_device_sync()?;
        options.set("gpu_graph_id", capture.unwrap_or(-1).to_string())?;
    }
    Ok(options)
}
