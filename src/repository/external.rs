//! Weights that a graph keeps outside its file.
//!
//! In ONNX a tensor may name a file with its bytes, by a path relative to the graph, and ONNX Runtime opens what the path
//! says. So each such path is read out of a graph before the graph is loaded: it must name one file below the graph's folder,
//! whose SHA-256 is the graph's own property `data_sha256`. The manifest's hash of the graph then covers its weights too.

use std::{
    collections::BTreeSet,
    path::{Component, Path},
};

use prost::Message;
use sha2::{Digest, Sha256};

use super::{Files, MOST_WEIGHTS, RepositoryError, Weights, is_pointer};

/// The graph's property with the hash of its weights, lower-case hex.
const DATA_SHA256: &str = "data_sha256";

/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

// The part of ONNX that leads to tensors; field numbers from `onnx.proto`. Their bytes are skipped.

#[derive(Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "14")]
    metadata_props: Vec<Entry>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<Function>,
}

#[derive(Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "15")]
    sparse_initializer: Vec<Sparse>,
}

#[derive(Message)]
struct Function {
    #[prost(message, repeated, tag = "7")]
    node: Vec<Node>,
    #[prost(message, repeated, tag = "11")]
    attribute_proto: Vec<Attribute>,
}

#[derive(Message)]
struct Node {
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Message)]
struct Attribute {
    #[prost(message, optional, tag = "5")]
    t: Option<Tensor>,
    #[prost(message, optional, boxed, tag = "6")]
    g: Option<Box<GraphProto>>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<GraphProto>,
    #[prost(message, optional, tag = "22")]
    sparse_tensor: Option<Sparse>,
    #[prost(message, repeated, tag = "23")]
    sparse_tensors: Vec<Sparse>,
}

#[derive(Message)]
struct Sparse {
    #[prost(message, optional, tag = "1")]
    values: Option<Tensor>,
    #[prost(message, optional, tag = "2")]
    indices: Option<Tensor>,
}

#[derive(Message)]
struct Tensor {
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<Entry>,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

#[derive(Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// What a graph says of weights outside its file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outside {
    /// Paths, each with the name of a tensor that has it.
    paths: BTreeSet<(String, String)>,
    /// What [`DATA_SHA256`] says.
    sha256: Option<String>,
}

impl Outside {
    fn of(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        let model = Model::decode(bytes)?;
        let sha256 = model
            .metadata_props
            .into_iter()
            .rfind(|entry| entry.key == DATA_SHA256);
        let mut outside = Self {
            sha256: sha256.map(|entry| entry.value),
            ..Self::default()
        };
        model.graph.iter().for_each(|graph| outside.graph(graph));
        for function in &model.functions {
            function.node.iter().for_each(|node| outside.node(node));
            outside.attributes(&function.attribute_proto);
        }
        Ok(outside)
    }

    fn graph(&mut self, graph: &GraphProto) {
        graph.initializer.iter().for_each(|t| self.tensor(t));
        graph.sparse_initializer.iter().for_each(|s| self.sparse(s));
        graph.node.iter().for_each(|node| self.node(node));
    }

    fn node(&mut self, node: &Node) {
        self.attributes(&node.attribute);
    }

    fn attributes(&mut self, attributes: &[Attribute]) {
        for attribute in attributes {
            let tensors = attribute.t.iter().chain(&attribute.tensors);
            tensors.for_each(|tensor| self.tensor(tensor));
            let sparse = attribute.sparse_tensor.iter();
            sparse
                .chain(&attribute.sparse_tensors)
                .for_each(|s| self.sparse(s));
            attribute.g.iter().for_each(|graph| self.graph(graph));
            attribute.graphs.iter().for_each(|graph| self.graph(graph));
        }
    }

    fn sparse(&mut self, sparse: &Sparse) {
        let tensors = sparse.values.iter().chain(&sparse.indices);
        tensors.for_each(|tensor| self.tensor(tensor));
    }

    fn tensor(&mut self, tensor: &Tensor) {
        // Whichever of the two a reader goes by.
        if tensor.data_location != EXTERNAL && tensor.external_data.is_empty() {
            return;
        }
        let locations = tensor.external_data.iter().filter(|e| e.key == "location");
        let mut paths: Vec<_> = locations.map(|entry| entry.value.clone()).collect();
        if paths.is_empty() {
            paths.push(String::new());
        }
        for path in paths {
            self.paths.insert((path, tensor.name.clone()));
        }
    }
}

/// The weights that the graph `name` in `folder` keeps outside its `bytes`, and how it calls them. They are read once: what was
/// hashed is what a session is given.
///
/// # Errors
/// Bytes that are not an ONNX model; weights that lie in several files, outside the folder, or in a file that is not the one
/// that was sealed.
pub(super) fn check(
    files: &dyn Files,
    folder: &str,
    name: &str,
    bytes: &[u8],
) -> Result<Option<Weights>, RepositoryError> {
    let outside = Outside::of(bytes).map_err(|error| RepositoryError::Syntax {
        file: name.to_owned(),
        detail: format!("is not an ONNX model: {error}"),
    })?;
    let mut one: Option<&str> = None;
    for (path, tensor) in &outside.paths {
        let wrong = |reason: String| {
            let tensor: String = tensor.chars().take(64).collect();
            let field = format!("external data of {tensor:?}");
            RepositoryError::field(name, field, reason)
        };
        let shown: String = path.chars().take(200).collect();
        let mut parts = Path::new(path).components();
        let inside = !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)));
        if !inside || path.contains(['\\', '\0']) {
            let reason = format!("is at {shown:?}, which is no file below the graph's folder");
            return Err(wrong(reason));
        }
        if one.is_some_and(|other| other != path) {
            let reason =
                format!("is at {shown:?}, and other data elsewhere: one file can be sealed");
            return Err(wrong(reason));
        }
        one = Some(path);
    }
    let Some(path) = one else {
        return Ok(None);
    };
    let Some(expected) = outside.sha256 else {
        let reason = format!("is not in the graph, which keeps its weights in {path:?}");
        return Err(RepositoryError::field(name, DATA_SHA256, reason));
    };
    let data = format!("{folder}{path}");
    let weights = files.share(&data, MOST_WEIGHTS);
    let weights = weights.map_err(|source| RepositoryError::Read {
        file: data.clone(),
        source,
    })?;
    let actual = hex::encode(Sha256::digest(&weights));
    if actual != expected {
        if is_pointer(&weights) {
            return Err(RepositoryError::Pointer { file: data });
        }
        let shown: String = expected.chars().take(64).collect();
        let reason = format!("is {shown}, but {data} hashes to {actual}");
        return Err(RepositoryError::field(name, DATA_SHA256, reason));
    }
    Ok(Some(Weights {
        name: path.to_owned(),
        bytes: weights,
    }))
}

/// Reads `bytes` as a graph.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    super::labels::fuzz(bytes);
    let Ok(outside) = Outside::of(bytes) else {
        return;
    };
    assert!(outside.paths.len() <= bytes.len());
    let embedded = super::embedded::Embedded;
    if check(
        &embedded,
        "heads/objects/",
        "heads/objects/head.onnx",
        bytes,
    )
    .is_ok()
    {
        // There is no such file in the binary, so what holds has nothing outside.
        assert!(outside.paths.is_empty());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> Entry {
        Entry {
            key: key.to_owned(),
            value: value.to_owned(),
        }
    }

    fn away(name: &str, path: &str) -> Tensor {
        Tensor {
            name: name.to_owned(),
            external_data: vec![entry("location", path)],
            data_location: EXTERNAL,
        }
    }

    fn paths(graph: GraphProto, functions: Vec<Function>) -> Vec<String> {
        let model = Model {
            graph: Some(graph),
            metadata_props: Vec::new(),
            functions,
        };
        let outside = Outside::of(&model.encode_to_vec()).unwrap();
        outside.paths.into_iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn tensors_are_found_wherever_a_graph_can_hold_one() {
        let one = |path: &str| vec![away("w", path)];
        let sparse = |path: &str| Sparse {
            values: Some(away("v", path)),
            indices: Some(away("i", &format!("{path}-indices"))),
        };
        let attribute = Attribute {
            t: Some(away("constant", "attribute")),
            g: Some(Box::new(GraphProto {
                initializer: one("branch"),
                ..GraphProto::default()
            })),
            tensors: one("attributes"),
            graphs: vec![GraphProto {
                node: vec![Node {
                    attribute: vec![Attribute {
                        t: Some(away("deep", "deep")),
                        ..Attribute::default()
                    }],
                }],
                ..GraphProto::default()
            }],
            sparse_tensor: Some(sparse("sparse")),
            sparse_tensors: vec![sparse("sparses")],
        };
        let function = Function {
            node: vec![Node {
                attribute: vec![Attribute {
                    t: Some(away("f", "function")),
                    ..Attribute::default()
                }],
            }],
            attribute_proto: vec![Attribute {
                t: Some(away("d", "default")),
                ..Attribute::default()
            }],
        };
        let graph = GraphProto {
            node: vec![Node {
                attribute: vec![attribute],
            }],
            initializer: one("initializer"),
            sparse_initializer: vec![sparse("initializers")],
        };
        let found = paths(graph, vec![function]);
        let expected = [
            "attribute",
            "attributes",
            "branch",
            "deep",
            "default",
            "function",
            "initializer",
            "initializers",
            "initializers-indices",
            "sparse",
            "sparse-indices",
            "sparses",
            "sparses-indices",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_tensor_is_outside_by_either_sign() {
        let graph = GraphProto {
            initializer: vec![
                Tensor {
                    data_location: 0,
                    ..away("a", "entry alone")
                },
                Tensor {
                    external_data: Vec::new(),
                    ..away("b", "")
                },
            ],
            ..GraphProto::default()
        };
        assert_eq!(paths(graph, Vec::new()), ["", "entry alone"]);
    }
}
