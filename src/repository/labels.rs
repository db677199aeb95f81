//! How many labels a head's graph can give, where that can be read off it.
//!
//! A dry run sees the labels of a picture or two. A graph mostly says more: labels are the place of a maximum along an
//! axis of known length, the rest of a division by a constant, or are looked up in a table. What comes in between moves
//! values about and leaves them as they are.

use std::{cell::Cell, collections::HashMap};

use prost::Message;

use super::{HeadManifest, RepositoryError};

/// Longest way back from an output, in operators.
const MOST_STEPS: usize = 64;
/// Most operators that are looked at, each as often as a way leads over it.
const MOST_VISITS: u32 = 10_000;
/// Longest table of labels, in entries.
const MOST_ENTRIES: usize = 1 << 20;

// The part of ONNX that leads from an output to what it is made of; field numbers from `onnx.proto`.

#[derive(Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
}

#[derive(Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "13")]
    value_info: Vec<ValueInfo>,
}

#[derive(Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(message, optional, tag = "5")]
    t: Option<Tensor>,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
}

#[derive(Message)]
struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(float, repeated, tag = "4")]
    float_data: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    int32_data: Vec<i32>,
    #[prost(int64, repeated, tag = "7")]
    int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<TypeProto>,
}

#[derive(Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

#[derive(Message)]
struct TensorType {
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dim>,
}

#[derive(Message)]
struct Dim {
    #[prost(int64, optional, tag = "1")]
    value: Option<i64>,
}

impl Tensor {
    /// Its values, if they are whole numbers and not many.
    fn ints(&self) -> Option<Vec<i64>> {
        const FLOAT: i32 = 1;
        const INT32: i32 = 6;
        const INT64: i32 = 7;
        let count = self.dims.iter().try_fold(1_usize, |count, &dim| {
            count.checked_mul(usize::try_from(dim).ok()?)
        })?;
        let values: Vec<i64> = match self.data_type {
            _ if count > MOST_ENTRIES => return None,
            INT64 if !self.int64_data.is_empty() => self.int64_data.clone(),
            INT32 if !self.int32_data.is_empty() => {
                self.int32_data.iter().copied().map(i64::from).collect()
            }
            FLOAT => {
                let raw = self.raw_data.as_chunks::<4>().0.iter();
                let raw = raw.map(|b| f32::from_le_bytes(*b));
                let values = self.float_data.iter().copied().chain(raw);
                // Beyond this, floats are no counts any more.
                let whole = |value: f32| value.fract() == 0.0 && value.abs() < 16_777_216.0;
                values
                    .map(|value| whole(value).then_some(value as i64))
                    .collect::<Option<_>>()?
            }
            INT64 => (self.raw_data.as_chunks::<8>().0.iter())
                .map(|b| i64::from_le_bytes(*b))
                .collect(),
            INT32 => (self.raw_data.as_chunks::<4>().0.iter())
                .map(|b| i64::from(i32::from_le_bytes(*b)))
                .collect(),
            _ => return None,
        };
        (values.len() == count).then_some(values)
    }
}

impl Node {
    fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attribute.iter().find(|a| a.name == name)
    }

    fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).map(|attribute| attribute.i)
    }

    /// Whether it gives its first input's values, in another shape, order or type, or some of them.
    fn carries(&self) -> bool {
        const CARRIERS: [&str; 14] = [
            "Identity",
            "Cast",
            "Squeeze",
            "Unsqueeze",
            "Reshape",
            "Flatten",
            "Transpose",
            "Slice",
            "Expand",
            "Tile",
            "Gather",
            "GatherElements",
            "GatherND",
            "Split",
        ];
        CARRIERS.contains(&&*self.op_type)
    }
}

/// A graph's tensors by name.
struct Tensors<'a> {
    makers: HashMap<&'a str, &'a Node>,
    constants: HashMap<&'a str, &'a Tensor>,
    shapes: HashMap<&'a str, Vec<Option<i64>>>,
    /// Operators that may still be looked at.
    left: Cell<u32>,
}

impl<'a> Tensors<'a> {
    fn of(graph: &'a GraphProto) -> Self {
        let outputs = |node: &'a Node| node.output.iter().map(move |name| (name.as_str(), node));
        let mut constants: HashMap<&str, &Tensor> = HashMap::new();
        constants.extend(graph.initializer.iter().map(|t| (t.name.as_str(), t)));
        for node in graph.node.iter().filter(|node| node.op_type == "Constant") {
            let value = node.attribute("value").and_then(|a| a.t.as_ref());
            constants.extend(node.output.first().map(String::as_str).zip(value));
        }
        let infos = graph.value_info.iter();
        let infos = infos.chain(&graph.input).chain(&graph.output);
        let shape = |info: &'a ValueInfo| {
            let shape = info.kind.as_ref()?.tensor.as_ref()?.shape.as_ref()?;
            let dims = shape.dim.iter().map(|dim| dim.value).collect();
            Some((info.name.as_str(), dims))
        };
        Self {
            makers: graph.node.iter().flat_map(outputs).collect(),
            constants,
            shapes: infos.filter_map(shape).collect(),
            left: Cell::new(MOST_VISITS),
        }
    }

    /// One more step; `None` where the way has become too long.
    fn step(&self, steps: usize) -> Option<usize> {
        self.left.set(self.left.get().checked_sub(1)?);
        steps.checked_sub(1)
    }

    /// The one value of a constant.
    fn scalar(&self, name: &str) -> Option<i64> {
        let values = self.constants.get(name)?.ints()?;
        match values[..] {
            [value] => Some(value),
            _ => None,
        }
    }

    /// The greatest value of `name` that there can be.
    fn most(&self, name: &str, steps: usize) -> Option<i64> {
        let steps = self.step(steps)?;
        if let Some(constant) = self.constants.get(name) {
            return constant.ints()?.into_iter().max();
        }
        let node = self.makers.get(name)?;
        let input = |index: usize| node.input.get(index).map(String::as_str);
        match &*node.op_type {
            "ArgMax" | "ArgMin" => {
                let shape = self.shape(input(0)?, steps)?;
                let axis = node.int("axis").unwrap_or(0);
                let axis =
                    usize::try_from(axis.rem_euclid(i64::try_from(shape.len().max(1)).ok()?));
                shape.get(axis.ok()?).copied()??.checked_sub(1)
            }
            "Mod" => self.scalar(input(1)?)?.checked_sub(1),
            "Sub" => match self.rest(node, steps) {
                Some(divisor) => divisor.checked_sub(1),
                None => (self.most(input(0)?, steps)?).checked_sub(self.scalar(input(1)?)?),
            },
            "Add" => {
                let (a, b) = (input(0)?, input(1)?);
                let (value, constant) = match self.scalar(b) {
                    Some(constant) => (a, constant),
                    None => (b, self.scalar(a)?),
                };
                self.most(value, steps)?.checked_add(constant)
            }
            "Concat" | "Where" => {
                let skipped = usize::from(node.op_type == "Where");
                let values = node.input.iter().skip(skipped);
                let most = values.map(|name| self.most(name, steps));
                most.collect::<Option<Vec<_>>>()?.into_iter().max()
            }
            _ if node.carries() => self.most(input(0)?, steps),
            _ => None,
        }
    }

    /// The divisor `c` of `x - x / c * c`.
    fn rest(&self, sub: &Node, steps: usize) -> Option<i64> {
        let [x, product] = &sub.input[..] else {
            return None;
        };
        let product = self.made_by(product, "Mul", steps)?;
        let [a, b] = &product.input[..] else {
            return None;
        };
        let (ratio, divisor) = match self.scalar(b) {
            Some(divisor) => (a, divisor),
            None => (b, self.scalar(a)?),
        };
        let ratio = self.made_by(ratio, "Div", steps)?;
        let [dividend, by] = &ratio.input[..] else {
            return None;
        };
        let same = self.origin(dividend, steps) == self.origin(x, steps);
        (same && self.scalar(by) == Some(divisor)).then_some(divisor)
    }

    /// The operator of this kind that makes `name`, through those that round or convert.
    fn made_by(&self, name: &'a str, kind: &str, steps: usize) -> Option<&'a Node> {
        let node = self.makers.get(self.origin(name, steps))?;
        (node.op_type == kind).then_some(node)
    }

    /// Where `name` comes from through operators that round or convert.
    fn origin(&self, mut name: &'a str, steps: usize) -> &'a str {
        for _ in 0..steps {
            match self.makers.get(name) {
                Some(node) if matches!(&*node.op_type, "Cast" | "Identity" | "Floor") => {
                    name = node.input.first().map_or(name, String::as_str);
                }
                _ => break,
            }
        }
        name
    }

    /// The shape of `name`, as far as it is known.
    fn shape(&self, name: &str, steps: usize) -> Option<Vec<Option<i64>>> {
        let steps = self.step(steps)?;
        if let Some(constant) = self.constants.get(name) {
            return Some(constant.dims.iter().copied().map(Some).collect());
        }
        if let Some(shape) = self.shapes.get(name) {
            return Some(shape.clone());
        }
        let node = self.makers.get(name)?;
        let input = |index: usize| self.shape(node.input.get(index)?, steps);
        match &*node.op_type {
            "Cast"
            | "Identity"
            | "Sigmoid"
            | "Softmax"
            | "LogSoftmax"
            | "Relu"
            | "Clip"
            | "Exp"
            | "BatchNormalization"
            | "InstanceNormalization"
            | "LayerNormalization" => input(0),
            "Add" | "Sub" | "Mul" | "Div" => match (input(0), input(1)) {
                (Some(a), Some(b)) => Some(broadcast(&a, &b)),
                _ => None,
            },
            "Conv" => {
                let weight = input(1)?;
                let mut shape = vec![None; weight.len()];
                *shape.get_mut(1)? = *weight.first()?;
                Some(shape)
            }
            "Resize" => {
                let mut shape = input(0)?;
                shape.iter_mut().skip(2).for_each(|dim| *dim = None);
                Some(shape)
            }
            "MatMul" => {
                let (mut shape, weight) = (input(0)?, input(1)?);
                *shape.last_mut()? = *weight.last()?;
                Some(shape)
            }
            "Gemm" => {
                let weight = input(1)?;
                let axis = usize::from(node.int("transB") != Some(1));
                Some(vec![None, *weight.get(axis)?])
            }
            "Transpose" => {
                let shape = input(0)?;
                let order = &node.attribute("perm")?.ints;
                let dim = |&axis: &i64| shape.get(usize::try_from(axis).ok()?).copied();
                order.iter().map(dim).collect()
            }
            "Reshape" => {
                let to = self.constants.get(node.input.get(1)?.as_str())?.ints()?;
                let dims = to.into_iter().map(|dim| (dim > 0).then_some(dim));
                Some(dims.collect())
            }
            _ => None,
        }
    }
}

/// The shape of two tensors' sum.
fn broadcast(a: &[Option<i64>], b: &[Option<i64>]) -> Vec<Option<i64>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[Option<i64>], axis: usize| match (axis + shape.len()).checked_sub(rank) {
        Some(axis) => shape[axis],
        None => Some(1),
    };
    let dim = |axis| match (at(a, axis), at(b, axis)) {
        (Some(1), dim) | (dim, Some(1)) => dim,
        (Some(dim), _) | (_, Some(dim)) => Some(dim),
        (None, None) => None,
    };
    (0..rank).map(dim).collect()
}

/// Reads `bytes` as a graph with labels.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(Model { graph: Some(graph) }) = Model::decode(bytes) {
        for output in &graph.output {
            Tensors::of(&graph).most(&output.name, MOST_STEPS);
        }
    }
}

/// Checks that the manifest, `file`, names a label for each number that the graph can give.
///
/// # Errors
/// Fewer labels than that.
pub(super) fn check(
    file: &str,
    manifest: &HeadManifest,
    bytes: &[u8],
) -> Result<(), RepositoryError> {
    let Some(output) = manifest.task.spec().indices else {
        return Ok(());
    };
    // What is no graph is told by who loads it.
    let Ok(Model { graph: Some(graph) }) = Model::decode(bytes) else {
        return Ok(());
    };
    let Some(most) = Tensors::of(&graph).most(output, MOST_STEPS) else {
        return Ok(());
    };
    let count = manifest.labels.len();
    if usize::try_from(most).is_ok_and(|most| most < count) {
        return Ok(());
    }
    let reason = format!(
        "names {count}, but the graph's output {output:?} gives numbers from 0 to {most}: {} are needed",
        most.saturating_add(1)
    );
    Err(RepositoryError::field(file, "labels", reason))
}
