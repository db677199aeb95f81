//! What each kind of model can give, and what of it a call wants.

use super::{
    Model,
    parameters::{Value, shown},
    tensor::{Datatype, dimension},
};
use crate::{
    backend::TensorSpec,
    engine::Engine,
    error::{Error, Result},
    proto::inference::model_infer_request::InferRequestedOutputTensor,
    repository::Task,
};

/// An output that a model can give.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) datatype: Datatype,
    /// Dimensions, the batch first; -1 where they vary.
    pub(super) shape: Vec<i64>,
    /// Whether it comes where a call names no outputs.
    usual: bool,
}

/// An output that a call wants.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// As this many labels in text, instead of the numbers.
    pub(super) classes: Option<usize>,
}

/// What `model` can give.
pub(super) fn outputs(model: &Model, engine: &Engine) -> Vec<Output> {
    let output = |name: &str, datatype, shape: &[i64], usual| Output {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
        usual,
    };
    let of_spec = |spec: &TensorSpec| {
        let dimensions = spec.shape.iter().map(|&d| dimension(d));
        let shape: Vec<i64> = std::iter::once(-1).chain(dimensions).collect();
        output(&spec.name, spec.element.into(), &shape, true)
    };
    let head = match model {
        Model::Head(head) => head,
        Model::Backbone => {
            let sizes = &engine.backbone().input.sizes;
            let specs = engine.features(sizes[0]).unwrap_or_default();
            let mut outputs: Vec<_> = specs.iter().map(of_spec).collect();
            // A map's height and width follow the input's; which axes they are is what differs between two sizes.
            for other in sizes.iter().filter_map(|&size| engine.features(size)) {
                for (output, spec) in outputs.iter_mut().zip(&other) {
                    for (dim, &value) in output.shape[1..].iter_mut().zip(&spec.shape) {
                        if *dim != dimension(value) {
                            *dim = -1;
                        }
                    }
                }
            }
            return outputs;
        }
    };
    use Datatype::{Bytes, Fp32, Int32, Int64, Uint8, Uint16};
    match head.manifest.task {
        Task::Detection => {
            let mut outputs = vec![
                output("num_detections", Int32, &[-1], true),
                output("boxes", Fp32, &[-1, -1, 4], true),
                output("scores", Fp32, &[-1, -1], true),
                output("labels", Int64, &[-1, -1], true),
                output("label_names", Bytes, &[-1, -1], true),
            ];
            if head.manifest.postprocess.detection.mask.is_some() {
                outputs.push(output("masks", Bytes, &[-1, -1], true));
                outputs.push(output("masks_dense", Uint8, &[-1, -1, -1, -1], false));
            }
            outputs
        }
        Task::Segmentation => vec![
            output("label_map", Uint16, &[-1, -1, -1], true),
            output("label_map_png", Bytes, &[-1], false),
        ],
        Task::Action | Task::Classification => {
            let classes = dimension(head.manifest.labels.len());
            vec![
                output("probabilities", Fp32, &[-1, classes], true),
                output("labels", Int64, &[-1, -1], true),
                output("label_names", Bytes, &[-1, -1], true),
            ]
        }
        Task::Keypoints => {
            let points = dimension(head.manifest.labels.len());
            vec![
                output("num_detections", Int32, &[-1], true),
                output("keypoints", Fp32, &[-1, -1, points, 3], true),
                output("scores", Fp32, &[-1, -1], true),
            ]
        }
        Task::Embedding | Task::Tensor => head.outputs().iter().map(of_spec).collect(),
    }
}

/// What a call wants: the outputs it names, or the usual ones.
///
/// # Errors
/// An output that the model does not have or that is named twice, or an unknown parameter.
pub(super) fn wanted(
    requested: &[InferRequestedOutputTensor],
    outputs: &[Output],
) -> Result<Vec<Wanted>> {
    if requested.is_empty() {
        let usual = outputs.iter().filter(|output| output.usual);
        let wanted = usual.map(|output| Wanted {
            name: output.name.clone(),
            classes: None,
        });
        return Ok(wanted.collect());
    }
    let mut wanted = Vec::with_capacity(requested.len());
    for (index, request) in requested.iter().enumerate() {
        let field = format!("outputs[{index}].name");
        if !outputs.iter().any(|output| output.name == request.name) {
            let known: Vec<_> = outputs.iter().map(|o| o.name.as_str()).collect();
            let got = shown(&request.name);
            let message = format!("{got:?} is not among the model's outputs {known:?}");
            return Err(Error::invalid(field, message));
        }
        if requested[..index].iter().any(|r| r.name == request.name) {
            return Err(Error::invalid(field, "is named twice"));
        }
        wanted.push(Wanted {
            name: request.name.clone(),
            classes: classes(request, index)?,
        });
    }
    Ok(wanted)
}

/// The `classification` parameter of a requested output.
fn classes(request: &InferRequestedOutputTensor, index: usize) -> Result<Option<usize>> {
    let mut names: Vec<_> = request.parameters.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    let mut classes = None;
    for (name, value) in names {
        let field = format!("outputs[{index}].parameters[{}]", shown(name));
        match name.as_str() {
            "classification" if request.name == "probabilities" => {
                let value = Value {
                    choice: value.parameter_choice.as_ref(),
                    field: &field,
                };
                classes = Some(value.count(100_000)? as usize);
            }
            "classification" => {
                let message = "has a meaning only for the output \"probabilities\"";
                return Err(Error::invalid(field, message));
            }
            // Clients of the protocol's HTTP side set it, and gateways pass it on; it has no meaning here.
            "binary_data" => {}
            _ => return Err(Error::invalid(field, "is not a parameter of this server")),
        }
    }
    Ok(classes)
}

/// Whether one of `wanted` is called `name`.
pub(super) fn wants(wanted: &[Wanted], name: &str) -> bool {
    wanted.iter().any(|output| output.name == name)
}

/// Whether one of `wanted` has the images' own height and width.
pub(super) fn needs_sizes(wanted: &[Wanted]) -> bool {
    wants(wanted, "label_map") || wants(wanted, "masks_dense")
}
