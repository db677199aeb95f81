//! Whether graphs take and give what their manifests say, and how that is told: what is there and what must be, in the
//! same words, with the tensor and the key.

use ort::value::{Outlet, ValueType};

use super::{
    BackendError, Element, FeatureRow, HeadBatch, TensorRow,
    features::{element, type_name},
};
use crate::repository::{BackboneManifest, HeadManifest, LABELS};

/// A graph's input or output in words, such as `float32 [N, 3, 128, 128]`; a free dimension has its name.
pub(super) fn words(kind: &ValueType) -> String {
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = kind
    else {
        return "no tensor".to_owned();
    };
    let dims = shape.iter().enumerate().map(|(axis, &dim)| {
        let symbol = dimension_symbols.get(axis).map_or("", String::as_str);
        match (dim, symbol) {
            (0.., _) => dim.to_string(),
            (_, "") => "?".to_owned(),
            (_, symbol) => symbol.chars().take(32).collect(),
        }
    });
    let dims: Vec<_> = dims.collect();
    format!("{} [{}]", type_name(*ty), dims.join(", "))
}

/// `[N, 3, 4]`: a shape of one row, behind the batch.
fn batched(shape: impl IntoIterator<Item = impl ToString>) -> String {
    let dims = shape.into_iter().map(|dim| dim.to_string());
    let dims: Vec<_> = std::iter::once("N".to_owned()).chain(dims).collect();
    format!("[{}]", dims.join(", "))
}

/// The declared shape of a tensor of `element`s; `None` for anything else.
fn declared(kind: &ValueType, of: Element) -> Option<&[i64]> {
    match kind {
        ValueType::Tensor { ty, shape, .. } if element(*ty) == Some(of) => Some(shape),
        _ => None,
    }
}

/// Whether a declared shape allows any batch of rows of `shape`; free dimensions allow all, and so does a shape that is
/// left out.
fn allows(declared: Option<&[i64]>, shape: &[usize]) -> bool {
    let Some(declared) = declared else {
        return false;
    };
    let [batch, dims @ ..] = declared else {
        return true;
    };
    let fits = |(&dim, &wanted): (&i64, &usize)| dim < 0 || usize::try_from(dim) == Ok(wanted);
    *batch < 0 && dims.len() == shape.len() && dims.iter().zip(shape).all(fits)
}

/// What to add where the first dimension is a number.
fn batch_hint(declared: Option<&[i64]>) -> &'static str {
    match declared.and_then(|dims| dims.first()) {
        Some(0..) => "; the first dimension is the batch, which must be free",
        _ => "",
    }
}

/// Checks the backbone's input and its outputs' names.
pub(super) fn check_backbone(
    graph: &str,
    (inputs, outputs): (&[Outlet], &[Outlet]),
    manifest: &BackboneManifest,
) -> Result<(), BackendError> {
    let fail = |field: &str, reason: String| Err(BackendError::contract(graph, field, reason));
    let name = &manifest.input.name;
    let [input] = inputs else {
        let names: Vec<_> = inputs.iter().map(Outlet::name).collect();
        let reason = format!("the graph's inputs are {names:?}, but must be one, {name:?}");
        return fail("input.name", reason);
    };
    if input.name() != name {
        let reason = format!("is {name:?}, but the graph's input is {:?}", input.name());
        return fail("input.name", reason);
    }
    for &[height, width] in &manifest.input.sizes {
        let shape = [height as usize, width as usize, 3];
        let declared = declared(input.dtype(), Element::U8);
        if !allows(declared, &shape) {
            let reason = format!(
                "is {} in the graph, but must be uint8 {}, by input.sizes{}",
                words(input.dtype()),
                batched(shape),
                batch_hint(declared)
            );
            return fail(&format!("input {name:?}"), reason);
        }
    }
    let names: Vec<_> = outputs.iter().map(Outlet::name).collect();
    for (index, feature) in manifest.features.iter().enumerate() {
        if !names.contains(&feature.name.as_str()) {
            let name = &feature.name;
            let reason = format!("is {name:?}, but the graph's outputs are {names:?}");
            return fail(&format!("features[{index}].name"), reason);
        }
    }
    Ok(())
}

/// Checks a head's inputs against the backbone's feature maps, of which `sample` is one image's.
pub(super) fn check_inputs(
    graph: &str,
    inputs: &[Outlet],
    manifest: &HeadManifest,
    sample: &FeatureRow,
) -> Result<(), BackendError> {
    let mut names: Vec<_> = inputs.iter().map(Outlet::name).collect();
    let mut wanted: Vec<_> = manifest.features.iter().map(String::as_str).collect();
    names.sort_unstable();
    wanted.sort_unstable();
    if names != wanted {
        let reason = format!(
            "are {wanted:?}, but the graph's inputs are {names:?}; each must have the name of the feature map that it reads"
        );
        return Err(BackendError::contract(graph, "features", reason));
    }
    for input in inputs {
        let maps = &sample.batch.maps;
        let Some(map) = maps.iter().find(|map| *map.name == *input.name()) else {
            continue;
        };
        let mut shape = Vec::new();
        if manifest.task.spec().clip {
            shape.push(manifest.frames());
        }
        shape.extend(&map.row_shape);
        let declared = declared(input.dtype(), map.element);
        if !allows(declared, &shape) {
            let frames = match manifest.task.spec().clip {
                true => " and postprocess.frames",
                false => "",
            };
            let reason = format!(
                "is {} in the graph, but must be {} {}, as the backbone gives it at the input_size {:?}{frames}{}",
                words(input.dtype()),
                map.element.name(),
                batched(shape),
                manifest.input_size,
                batch_hint(declared)
            );
            let field = format!("input {:?}", input.name());
            return Err(BackendError::contract(graph, field, reason));
        }
    }
    Ok(())
}

/// Checks a dry run's outputs by name, type and shape against the task's.
pub(super) fn check_outputs(
    graph: &str,
    manifest: &HeadManifest,
    outputs: &HeadBatch,
) -> Result<(), BackendError> {
    let tensors = || outputs.tensors.iter().map(|tensor| tensor.row(0));
    // Sizes that are known by now, each with where it is from.
    let labels = format!("the manifest has {} labels", manifest.labels.len());
    let mut sizes = vec![(LABELS, manifest.labels.len(), labels)];
    for output in manifest.outputs(tensors().map(|tensor| tensor.name)) {
        let task = manifest.task;
        let wanted = format!("{} {}", output.element, batched(output.shape));
        let fail = |reason: String| {
            let field = format!("output {:?}", output.name);
            Err(BackendError::contract(graph, field, reason))
        };
        let Some(tensor) = tensors().find(|tensor| tensor.name == output.name) else {
            let names: Vec<_> = tensors().map(|tensor| tensor.name.to_owned()).collect();
            return fail(format!(
                "is missing: the task {task} needs {wanted}, but the graph's outputs are {names:?}"
            ));
        };
        let found = described(&tensor);
        let same_rank = tensor.shape.len() == output.shape.len();
        if tensor.element.name() != output.element || !same_rank {
            return fail(format!(
                "is {found}, but must be {wanted} for the task {task}"
            ));
        }
        for (&name, &size) in output.shape.iter().zip(tensor.shape) {
            if let Ok(number) = name.parse::<usize>() {
                if number != size {
                    return fail(format!(
                        "is {found}, but must be {wanted} for the task {task}"
                    ));
                }
            } else if let Some((_, known, whence)) = sizes.iter().find(|known| known.0 == name) {
                if *known != size {
                    return fail(format!("is {found}, but must be {wanted}, and {whence}"));
                }
            } else {
                let whence = format!("{name} is {size} in the output {:?}", output.name);
                sizes.push((name, size, whence));
            }
        }
    }
    if manifest.task.spec().floats {
        check_floats(graph, tensors())?;
    }
    Ok(())
}

/// Embeddings are vectors of floats, whatever they are called.
fn check_floats<'a>(
    graph: &str,
    tensors: impl Iterator<Item = TensorRow<'a>>,
) -> Result<(), BackendError> {
    for tensor in tensors {
        if !matches!(tensor.element, Element::F32 | Element::F16) {
            let reason = format!(
                "is {}, but the outputs of an embedding must be float32 or float16",
                described(&tensor)
            );
            let field = format!("output {:?}", tensor.name);
            return Err(BackendError::contract(graph, field, reason));
        }
    }
    Ok(())
}

fn described(tensor: &TensorRow<'_>) -> String {
    format!("{} {}", tensor.element.name(), batched(tensor.shape))
}
