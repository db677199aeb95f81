//! Tensors as the protocol writes them.

use bytes::{BufMut, Bytes};

use crate::{
    backend::Element,
    proto::inference::{
        self, InferTensorContents, ModelInferResponse, model_infer_response::InferOutputTensor,
    },
};

/// The element types that go in or come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Datatype {
    Fp32,
    Fp16,
    Int64,
    Int32,
    Uint16,
    Uint8,
    Bytes,
}

impl Datatype {
    /// The protocol's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "FP32",
            Self::Fp16 => "FP16",
            Self::Int64 => "INT64",
            Self::Int32 => "INT32",
            Self::Uint16 => "UINT16",
            Self::Uint8 => "UINT8",
            Self::Bytes => "BYTES",
        }
    }

    /// Its value in a model configuration.
    pub(super) fn config(self) -> inference::DataType {
        match self {
            Self::Fp32 => inference::DataType::TypeFp32,
            Self::Fp16 => inference::DataType::TypeFp16,
            Self::Int64 => inference::DataType::TypeInt64,
            Self::Int32 => inference::DataType::TypeInt32,
            Self::Uint16 => inference::DataType::TypeUint16,
            Self::Uint8 => inference::DataType::TypeUint8,
            Self::Bytes => inference::DataType::TypeString,
        }
    }
}

impl From<Element> for Datatype {
    fn from(element: Element) -> Self {
        match element {
            Element::F32 => Self::Fp32,
            Element::F16 => Self::Fp16,
            Element::I64 => Self::Int64,
            Element::I32 => Self::Int32,
            Element::U8 => Self::Uint8,
        }
    }
}

/// An output for the whole batch.
#[derive(Debug)]
pub(super) struct Array {
    pub(super) name: String,
    pub(super) datatype: Datatype,
    /// Dimensions, the batch first.
    pub(super) shape: Vec<usize>,
    pub(super) data: Data,
}

/// An output's elements, in row-major order.
#[derive(Debug)]
pub(super) enum Data {
    /// Numbers, little-endian.
    Dense(Vec<u8>),
    /// BYTES.
    Strings(Vec<Bytes>),
}

/// Puts `arrays` into `response`: raw if `raw`, or if one of them has no other form; else by type.
pub(super) fn write(arrays: Vec<Array>, raw: bool, response: &mut ModelInferResponse) {
    let raw = raw || arrays.iter().any(|a| a.datatype == Datatype::Fp16);
    for array in arrays {
        let shape = array.shape.iter().map(|&d| dimension(d)).collect();
        let contents = (!raw).then(|| contents(array.datatype, &array.data));
        response.outputs.push(InferOutputTensor {
            name: array.name,
            datatype: array.datatype.name().to_owned(),
            shape,
            contents,
            ..Default::default()
        });
        if raw {
            let bytes = match array.data {
                Data::Dense(bytes) => bytes.into(),
                Data::Strings(strings) => prefixed(&strings),
            };
            response.raw_output_contents.push(bytes);
        }
    }
}

/// A dimension in the protocol's type.
pub(super) fn dimension(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Strings one after another, each behind its length.
fn prefixed(strings: &[Bytes]) -> Bytes {
    let mut out = Vec::with_capacity(strings.iter().map(|s| s.len() + 4).sum());
    for string in strings {
        // A message is far below 4 GiB.
        out.put_u32_le(u32::try_from(string.len()).unwrap_or(u32::MAX));
        out.put_slice(string);
    }
    out.into()
}

fn contents(datatype: Datatype, data: &Data) -> InferTensorContents {
    let mut out = InferTensorContents::default();
    let bytes = match data {
        Data::Strings(strings) => {
            out.bytes_contents = strings.clone();
            return out;
        }
        Data::Dense(bytes) => bytes,
    };
    match datatype {
        Datatype::Fp32 => out.fp32_contents = numbers(bytes, f32::from_le_bytes),
        Datatype::Int64 => out.int64_contents = numbers(bytes, i64::from_le_bytes),
        Datatype::Int32 => out.int_contents = numbers(bytes, i32::from_le_bytes),
        Datatype::Uint16 => out.uint_contents = numbers(bytes, |b| u16::from_le_bytes(b).into()),
        Datatype::Uint8 => out.uint_contents = bytes.iter().map(|&b| b.into()).collect(),
        // `write` sends FP16 raw, and strings are done above.
        Datatype::Fp16 | Datatype::Bytes => {}
    }
    out
}

fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&b| read(b)).collect()
}
