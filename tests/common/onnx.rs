//! Writes small ONNX graphs: the part of `onnx.proto3` that takes, with its field numbers.

use prost::Message;

/// `TensorProto.DataType`.
pub(crate) const FLOAT: i32 = 1;
pub(crate) const UINT8: i32 = 2;
pub(crate) const INT64: i32 = 7;
pub(crate) const FLOAT16: i32 = 10;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSet>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSet {
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(int32, tag = "20")]
    kind: i32,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, optional, tag = "1")]
    value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
}

/// A graph that is being written.
#[derive(Default)]
pub(crate) struct Onnx(GraphProto);

impl Onnx {
    /// An input; a dimension that is not a number is a free one of that name.
    pub(crate) fn input(mut self, name: &str, element: i32, shape: &[&str]) -> Self {
        self.0.input.push(value(name, element, shape));
        self
    }

    /// An output, as [`Onnx::input`].
    pub(crate) fn output(mut self, name: &str, element: i32, shape: &[&str]) -> Self {
        self.0.output.push(value(name, element, shape));
        self
    }

    /// A constant vector of int64.
    pub(crate) fn ints(mut self, name: &str, values: &[i64]) -> Self {
        self.0.initializer.push(TensorProto {
            dims: vec![values.len() as i64],
            data_type: INT64,
            name: name.to_owned(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
        self
    }

    /// A constant vector of float32.
    pub(crate) fn floats(mut self, name: &str, values: &[f32]) -> Self {
        self.0.initializer.push(TensorProto {
            dims: vec![values.len() as i64],
            data_type: FLOAT,
            name: name.to_owned(),
            raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        });
        self
    }

    /// An operator with integer attributes.
    pub(crate) fn node(
        mut self,
        operator: &str,
        inputs: &[&str],
        output: &str,
        attributes: &[(&str, i64)],
    ) -> Self {
        const INT: i32 = 2;
        let attribute = |(name, i): &(&str, i64)| Attribute {
            name: (*name).to_owned(),
            i: *i,
            kind: INT,
        };
        self.0.node.push(NodeProto {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            op_type: operator.to_owned(),
            name: String::new(),
            attribute: attributes.iter().map(attribute).collect(),
        });
        self
    }

    /// Names the last operator, for the messages of those that fail.
    pub(crate) fn named(mut self, name: &str) -> Self {
        if let Some(node) = self.0.node.last_mut() {
            name.clone_into(&mut node.name);
        }
        self
    }

    /// The file's bytes.
    pub(crate) fn bytes(mut self) -> Vec<u8> {
        "small".clone_into(&mut self.0.name);
        let model = ModelProto {
            ir_version: 8,
            graph: Some(self.0),
            opset_import: vec![OperatorSet { version: 17 }],
        };
        model.encode_to_vec()
    }
}

fn value(name: &str, element: i32, shape: &[&str]) -> ValueInfo {
    let dim = |text: &&str| match text.parse() {
        Ok(value) => Dim {
            value: Some(value),
            name: None,
        },
        Err(_) => Dim {
            value: None,
            name: Some((*text).to_owned()),
        },
    };
    let shape = Some(Shape {
        dim: shape.iter().map(dim).collect(),
    });
    ValueInfo {
        name: name.to_owned(),
        kind: Some(TypeProto {
            tensor: Some(TensorType { element, shape }),
        }),
    }
}
