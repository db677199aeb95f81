//! The backbone: pixels to features.

use std::sync::Arc;

use ort::{session::SessionInputValue, value::ValueType};

use super::{
    BackendError, Element, FeatureBatch, FeatureRow, Runtime, SessionOptions,
    features::{BatchTensor, element},
    session::Sessions,
};
use crate::repository::{BackboneManifest, Graph};

/// The frozen backbone, with a session for each lane.
pub struct Backbone {
    sessions: Sessions,
    graph: String,
    input: String,
    outputs: Vec<Arc<str>>,
    manifest: BackboneManifest,
    /// One blank image's features for each input size, which new heads are tried on.
    blank: Vec<([u32; 2], FeatureRow)>,
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
        let sessions = Sessions::open(runtime, graph, options)?;
        check(&sessions, manifest, graph)?;
        let names = manifest.features.iter().map(|f| Arc::from(f.name.as_str()));
        let mut backbone = Self {
            sessions,
            graph: graph.name.clone(),
            input: manifest.input.name.clone(),
            outputs: names.collect(),
            manifest: manifest.clone(),
            blank: Vec::new(),
        };
        for &size in &manifest.input.sizes {
            let pixels = vec![0; row_bytes(size)];
            let batch = Arc::new(backbone.run(0, size, &pixels, 1)?);
            backbone.blank.push((size, FeatureRow::new(&batch, 0)));
        }
        Ok(backbone)
    }

    /// What the manifest says.
    #[must_use]
    pub fn manifest(&self) -> &BackboneManifest {
        &self.manifest
    }

    /// Lanes that can run it at once.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.sessions.len()
    }

    /// The features of a black image of `[height, width]`; `None` for a size that the manifest does not name.
    #[must_use]
    pub fn blank(&self, size: [u32; 2]) -> Option<&FeatureRow> {
        self.blank
            .iter()
            .find(|(s, _)| *s == size)
            .map(|(_, row)| row)
    }

    /// Computes the features of `rows` images of `[height, width]` on `lane`; `input` holds them one after another, NHWC
    /// RGB.
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
        let graph = self.graph.as_str();
        let failed = |error: ort::Error| BackendError::run(graph, error);
        let shape = [rows, size[0] as usize, size[1] as usize, 3];
        let tensor = ort::value::TensorRef::from_array_view((shape, input)).map_err(failed)?;
        let inputs: [(&str, SessionInputValue<'_>); 1] = [(&self.input, tensor.into())];
        let mut session = self.sessions.lane(lane);
        let mut outputs = session.run(Vec::from(inputs)).map_err(failed)?;
        let mut maps = Vec::with_capacity(self.outputs.len());
        for (name, feature) in self.outputs.iter().zip(&self.manifest.features) {
            let value = outputs
                .remove(&**name)
                .ok_or_else(|| BackendError::run(graph, format!("gave no output {name:?}")))?
                .downcast()
                .map_err(failed)?;
            let map = BatchTensor::new(graph, name, value, rows)?;
            let expected = feature.row_shape(size);
            if map.row_shape != expected {
                let reason = format!(
                    "is {:?} per image at {size:?}, but the manifest's stride, channels and layout make {expected:?}",
                    map.row_shape
                );
                return Err(BackendError::contract(graph, &**name, reason));
            }
            maps.push(map);
        }
        Ok(FeatureBatch { maps, rows })
    }
}

/// Bytes of one input image of `[height, width]`.
pub(super) fn row_bytes([height, width]: [u32; 2]) -> usize {
    height as usize * width as usize * 3
}

/// Checks inputs and outputs by name and type.
fn check(
    sessions: &Sessions,
    manifest: &BackboneManifest,
    graph: &Graph,
) -> Result<(), BackendError> {
    let session = sessions.lane(0);
    let fail =
        |field: &str, reason: String| Err(BackendError::contract(&graph.name, field, reason));
    match session.inputs() {
        [input] if input.name() == manifest.input.name => match input.dtype() {
            ValueType::Tensor { ty, shape, .. }
                if element(*ty) == Some(Element::U8) && shape.len() == 4 && shape[3] == 3 => {}
            other => {
                let reason = format!("is {other:?}, but must be uint8 [N, H, W, 3]");
                return fail(input.name(), reason);
            }
        },
        inputs => {
            let names: Vec<_> = inputs.iter().map(|input| input.name()).collect();
            let reason = format!(
                "is {:?}, but the graph's inputs are {names:?}",
                manifest.input.name
            );
            return fail("input.name", reason);
        }
    }
    let names: Vec<_> = session.outputs().iter().map(|o| o.name()).collect();
    for feature in &manifest.features {
        if !names.contains(&feature.name.as_str()) {
            let name = &feature.name;
            let reason = format!("{name:?} is not among the graph's outputs {names:?}");
            return fail("features", reason);
        }
    }
    Ok(())
}
