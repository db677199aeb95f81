//! The backbone: pixels to features.

use std::sync::Arc;

use ort::{
    session::{Session, SessionInputValue},
    value::ValueType,
};

use super::{
    BackendError, Device, FeatureBatch, FeatureRow, Placement, Runtime, SessionOptions,
    binding::{self, Pool},
    contract,
    device::Place,
    features::{BatchTensor, element},
    fixed::Fixed,
    session::{Role, Sessions},
};
use crate::repository::{BackboneManifest, Feature, Graph};

/// The frozen backbone, with a session for each lane.
pub struct Backbone {
    // Slots hold bindings of the sessions: they go first.
    pool: Arc<Pool>,
    graphs: Graphs,
    device: Arc<Device>,
    graph: String,
    identity: String,
    input: String,
    outputs: Vec<Arc<str>>,
    manifest: BackboneManifest,
    /// The features of [`sample_images`] for each input size, which new heads are tried on.
    samples: Vec<([u32; 2], [FeatureRow; 2])>,
}

/// What runs it.
enum Graphs {
    /// Sessions that take any batch.
    Free(Sessions),
    /// One batch size each.
    Fixed(Fixed),
}

impl Backbone {
    /// Builds the sessions and checks them against the manifest with a dry run at every input size.
    ///
    /// # Errors
    /// A graph that does not load, or is not what its manifest says.
    pub fn load(
        runtime: &Runtime,
        manifest: &BackboneManifest,
        graph: &Graph,
        options: SessionOptions,
    ) -> Result<Self, BackendError> {
        let names = manifest.features.iter().map(|f| Arc::from(f.name.as_str()));
        let outputs: Vec<Arc<str>> = names.collect();
        let device = Arc::clone(runtime.device());
        let graphs = match device.place() {
            Place::OpenVino(openvino) => {
                let (input, sizes) = (manifest.input.name.as_str(), &manifest.input.sizes[..]);
                let sides = (input, &outputs[..], sizes);
                Graphs::Fixed(Fixed::new(runtime, openvino, graph, sides, options)?)
            }
            _ => Graphs::Free(Sessions::open(runtime, graph, options, Role::Backbone)?),
        };
        let check = |session: &Session| {
            let sides = (session.inputs(), session.outputs());
            contract::check_backbone(&graph.name, sides, manifest)
        };
        match &graphs {
            Graphs::Free(sessions) => check(&sessions.lane(0))?,
            Graphs::Fixed(fixed) => fixed.look(check).unwrap_or(Ok(()))?,
        }
        let precision = device.precision().map(|precision| format!("+{precision}"));
        let identity = manifest.sha256.clone() + &precision.unwrap_or_default();
        let mut backbone = Self {
            pool: Arc::new(Pool::new(&device)),
            graphs,
            device,
            graph: graph.name.clone(),
            identity,
            input: manifest.input.name.clone(),
            outputs,
            manifest: manifest.clone(),
            samples: Vec::new(),
        };
        for &size in &manifest.input.sizes {
            let pixels = sample_images(size);
            // On every device the first run is an unbound one: it may give other shapes than the manifest's.
            let batch = Arc::new(backbone.run_host(0, size, &pixels, 2)?);
            let mut rows = [0, 1].map(|index| FeatureRow::new(&batch, index));
            if backbone.device().is_resident() {
                let none = || BackendError::run(&graph.name, "Failed to allocate memory for a row");
                for (row, image) in rows.iter_mut().zip(pixels.chunks(row_bytes(size))) {
                    let batch = Arc::new(backbone.run(0, size, image, 1)?);
                    backbone.device().synchronize()?;
                    // A copy, so that a slot is not held for ever.
                    *row = FeatureRow::new(&batch, 0).detached().ok_or_else(none)?;
                }
            }
            backbone.samples.push((size, rows));
        }
        Ok(backbone)
    }

    /// What it runs on.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What its features are of: the manifest's hash, and what they are computed in where that is not what the graph
    /// says, such as `1f…+bf16`. Features of different identities are not the same.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Which provider each node runs on; `None` on a CPU, where there is one.
    #[must_use]
    pub fn placement(&self) -> Option<Placement> {
        match &self.graphs {
            Graphs::Free(sessions) => sessions.placement().cloned(),
            Graphs::Fixed(fixed) => fixed.placement(),
        }
    }

    /// Makes batches of `rows` images of `[height, width]` run as such; where sessions take any batch there is nothing to
    /// do. A batch that was not prepared is run in parts or with blank rows.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn prepare(&self, size: [u32; 2], rows: usize) -> Result<(), BackendError> {
        match &self.graphs {
            Graphs::Free(_) => Ok(()),
            Graphs::Fixed(fixed) => fixed.prepare(size, rows),
        }
    }

    /// Lets go of what was prepared for other batch sizes than these, and of what more would be made of.
    pub fn settle(&self, wanted: impl Fn([u32; 2]) -> Vec<usize>) {
        if let Graphs::Fixed(fixed) = &self.graphs {
            for &size in &self.manifest.input.sizes {
                fixed.keep(size, &wanted(size));
            }
            fixed.seal();
        }
    }

    /// What the manifest says.
    #[must_use]
    pub fn manifest(&self) -> &BackboneManifest {
        &self.manifest
    }

    /// Lanes that can run it at once.
    #[must_use]
    pub fn lanes(&self) -> usize {
        match &self.graphs {
            Graphs::Free(sessions) => sessions.len(),
            Graphs::Fixed(fixed) => fixed.lanes(),
        }
    }

    /// The features of a black image of `[height, width]`; `None` for a size that the manifest does not name.
    #[must_use]
    pub fn blank(&self, size: [u32; 2]) -> Option<&FeatureRow> {
        self.samples(size).map(|[blank, _]| blank)
    }

    /// The features of a black image and of a busy one, of `[height, width]`.
    pub(super) fn samples(&self, size: [u32; 2]) -> Option<&[FeatureRow; 2]> {
        let mut samples = self.samples.iter();
        samples.find(|(s, _)| *s == size).map(|(_, rows)| rows)
    }

    /// Computes the features of `rows` images of `[height, width]` on `lane`; `input` holds them one after another, NHWC
    /// RGB. On a device it returns once that is enqueued, and [`Device::synchronize`] waits.
    ///
    /// # Errors
    /// What ONNX Runtime says, or an output of an unexpected shape.
    pub fn run(
        &self,
        lane: usize,
        size: [u32; 2],
        input: &[u8],
        rows: usize,
    ) -> Result<FeatureBatch, BackendError> {
        self.run_images(lane, size, &[input], rows)
    }

    /// As [`Backbone::run`], of images that lie apart; what is missing to `rows` is blank.
    ///
    /// # Errors
    /// As [`Backbone::run`].
    pub fn run_images(
        &self,
        lane: usize,
        size: [u32; 2],
        images: &[&[u8]],
        rows: usize,
    ) -> Result<FeatureBatch, BackendError> {
        let device = &self.device;
        device.strike(&self.graph, rows)?;
        let bytes = row_bytes(size) * rows;
        if images.iter().map(|image| image.len()).sum::<usize>() > bytes {
            let detail = format!("the images are more than {rows} of {size:?}");
            return Err(BackendError::run(&self.graph, detail));
        }
        if !device.is_resident() {
            return match images {
                [whole] if whole.len() == bytes => self.run_host(lane, size, whole, rows),
                _ => {
                    let mut input = Vec::with_capacity(bytes);
                    images
                        .iter()
                        .for_each(|image| input.extend_from_slice(image));
                    input.resize(bytes, 0);
                    self.run_host(lane, size, &input, rows)
                }
            };
        }
        let Graphs::Free(sessions) = &self.graphs else {
            return Err(BackendError::run(
                &self.graph,
                "is not in a device's memory",
            ));
        };
        let mut session = sessions.lane(lane);
        let mut lease = match self.pool.take(size, rows)? {
            Some(lease) => lease,
            None => {
                let slot = self.slot(&session, size, rows)?;
                Pool::lend(&self.pool, size, rows, slot)
            }
        };
        lease.run(&mut session, &self.graph, images)?;
        let maps = self.outputs.iter().zip(&self.manifest.features);
        let maps = maps
            .zip(lease.outputs())
            .map(|((name, feature), (element, buffer))| {
                let row_shape = feature.row_shape(size);
                BatchTensor::in_buffer(name, element, row_shape.to_vec(), buffer)
            });
        Ok(FeatureBatch {
            maps: maps.collect(),
            rows,
            lease: Some(lease),
            device: Some(Arc::clone(device)),
        })
    }

    /// Frees memory that no batch uses at the moment.
    pub fn release(&self) {
        self.pool.clear();
    }

    /// Memory for a batch of this shape, bound to the session.
    fn slot(
        &self,
        session: &ort::session::Session,
        size: [u32; 2],
        rows: usize,
    ) -> Result<binding::Slot, BackendError> {
        let shape = [rows, size[0] as usize, size[1] as usize, 3];
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for (name, feature) in self.outputs.iter().zip(&self.manifest.features) {
            let kind = match super::session::output_type(session, name) {
                Some(ValueType::Tensor { ty, .. }) => element(*ty),
                _ => None,
            };
            let kind = kind.ok_or_else(|| {
                let field = format!("output {name:?}");
                BackendError::contract(&self.graph, field, "is of an unsupported type")
            })?;
            let mut shape = vec![rows];
            shape.extend(feature.row_shape(size));
            outputs.push((name.as_ref(), kind, shape));
        }
        binding::Slot::new(
            session,
            &self.device,
            &self.graph,
            (&self.input, &shape),
            &outputs,
        )
    }

    /// A run with its input and outputs in host memory.
    fn run_host(
        &self,
        lane: usize,
        size: [u32; 2],
        input: &[u8],
        rows: usize,
    ) -> Result<FeatureBatch, BackendError> {
        let sessions = match &self.graphs {
            Graphs::Free(sessions) => sessions,
            Graphs::Fixed(fixed) => return self.run_fixed(fixed, lane, (size, rows), input),
        };
        let graph = self.graph.as_str();
        let failed = |error: ort::Error| BackendError::run(graph, error);
        let shape = [rows, size[0] as usize, size[1] as usize, 3];
        let tensor = ort::value::TensorRef::from_array_view((shape, input)).map_err(failed)?;
        let inputs: [(&str, SessionInputValue<'_>); 1] = [(&self.input, tensor.into())];
        let mut session = sessions.lane(lane);
        let options = binding::unbound().map_err(failed)?;
        let mut outputs = match self.device.is_gpu() {
            true => session.run_with_options(Vec::from(inputs), &options),
            false => session.run(Vec::from(inputs)),
        }
        .map_err(failed)?;
        let mut maps = Vec::with_capacity(self.outputs.len());
        for (name, feature) in self.outputs.iter().zip(&self.manifest.features) {
            let value = outputs
                .remove(&**name)
                .ok_or_else(|| BackendError::run(graph, format!("gave no output {name:?}")))?
                .downcast()
                .map_err(failed)?;
            let map = BatchTensor::new(graph, name, value, rows)?;
            self.expect(&map, feature, size)?;
            maps.push(map);
        }
        Ok(in_host_memory(maps, rows))
    }

    /// As [`Backbone::run_host`], where each batch size is a graph of its own: in as many runs as it takes.
    fn run_fixed(
        &self,
        fixed: &Fixed,
        lane: usize,
        (size, rows): ([u32; 2], usize),
        input: &[u8],
    ) -> Result<FeatureBatch, BackendError> {
        let shapes = self.manifest.features.iter().map(|f| f.row_shape(size));
        let (rows, values) = fixed.run(lane, size, (input, rows), &shapes.collect::<Vec<_>>())?;
        let named = self.outputs.iter().zip(values);
        let maps = named.map(|(name, value)| BatchTensor::new(&self.graph, name, value, rows));
        Ok(in_host_memory(maps.collect::<Result<_, _>>()?, rows))
    }

    /// Whether an output is what the manifest says for images of `size`.
    fn expect(
        &self,
        map: &BatchTensor,
        feature: &Feature,
        size: [u32; 2],
    ) -> Result<(), BackendError> {
        let expected = feature.row_shape(size);
        if map.row_shape == expected {
            return Ok(());
        }
        let reason = format!(
            "is {:?} for an image of {size:?}, but must be {expected:?} by its stride {}, channels {} and layout {:?} in \
             the manifest",
            map.row_shape, feature.stride, feature.channels, feature.layout
        );
        let field = format!("output {:?}", map.name);
        Err(BackendError::contract(&self.graph, field, reason))
    }
}

fn in_host_memory(maps: Vec<BatchTensor>, rows: usize) -> FeatureBatch {
    FeatureBatch {
        maps,
        rows,
        lease: None,
        device: None,
    }
}

/// Bytes of one input image of `[height, width]`.
pub(super) fn row_bytes([height, width]: [u32; 2]) -> usize {
    height as usize * width as usize * 3
}

/// The images that new heads are tried on: a black one, and one whose upper half is a gradient and whose lower half is
/// noise, so that heads find more than nothing.
fn sample_images([height, width]: [u32; 2]) -> Vec<u8> {
    let bytes = row_bytes([height, width]);
    let mut images = vec![0; bytes];
    let mut noise = 0x9e37_79b9_u32;
    images.extend((0..bytes).map(|at| {
        if at < bytes / 2 {
            let column = at / 3 % width as usize;
            return (column * 255 / width as usize) as u8;
        }
        // Xorshift: any generator will do.
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        (noise >> 24) as u8
    }));
    images
}
