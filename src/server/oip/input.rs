//! From a request's tensors to images.
//!
//! A model has one input. Its rows are image files (BYTES) or pixels (UINT8); a row of an action head is a clip.

use bytes::{Buf, Bytes};

use super::parameters::shown;
use crate::{
    engine::Source,
    error::{Error, Kind, Result},
    proto::inference::{InferTensorContents, model_infer_request::InferInputTensor},
};

/// One image, or one clip's frames, each with the path of its field.
pub(super) type Row = Vec<(Source, String)>;

/// What a model takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    /// Name of the input.
    pub(super) name: &'static str,
    /// Whether a row is a clip.
    pub(super) clip: bool,
    /// Most rows of a call.
    pub(super) rows: usize,
    /// Most frames of a clip.
    pub(super) frames: usize,
}

/// The rows of a request.
///
/// # Errors
/// `InvalidArgument` with the field for everything that is not exactly one well-formed tensor, `LimitExceeded` for more
/// rows or frames than are taken.
pub(super) fn rows(
    inputs: Vec<InferInputTensor>,
    raw: Vec<Bytes>,
    expected: Expected,
) -> Result<Vec<Row>> {
    let name = expected.name;
    for (index, input) in inputs.iter().enumerate() {
        let field = format!("inputs[{index}].name");
        if input.name != name {
            let got = shown(&input.name);
            let message = format!("{got:?} is not an input of the model, which takes {name:?}");
            return Err(Error::invalid(field, message));
        }
        if index > 0 {
            return Err(Error::invalid(field, "is named twice"));
        }
    }
    let Some(input) = inputs.into_iter().next() else {
        let message = format!("is empty, but the model takes {name:?}");
        return Err(Error::invalid("inputs", message));
    };
    if let Some(parameter) = input.parameters.keys().min() {
        let field = format!("inputs[0].parameters[{}]", shown(parameter));
        // Clients of the protocol's HTTP side set it, and gateways pass it on.
        if parameter != "binary_data_size" {
            let message = "is not a parameter of this server, which has no shared memory";
            return Err(Error::invalid(field, message));
        }
    }
    let shape = dimensions(&input.shape)?;
    let elements = Elements::of(input.contents, raw)?;
    match input.datatype.as_str() {
        "BYTES" => files(elements, &shape, expected),
        "UINT8" => pixels(elements, &shape, expected),
        other => {
            let message = format!(
                "is {:?}, but must be BYTES (image files) or UINT8 (pixels)",
                shown(other)
            );
            Err(Error::invalid("inputs[0].datatype", message))
        }
    }
}

/// A tensor's elements as they came.
enum Elements {
    Raw(Bytes),
    Typed(Box<InferTensorContents>),
}

impl Elements {
    fn of(contents: Option<InferTensorContents>, mut raw: Vec<Bytes>) -> Result<Self> {
        let filled = contents.filter(|c| *c != InferTensorContents::default());
        match (filled, raw.len()) {
            (None, 1) => Ok(Self::Raw(raw.swap_remove(0))),
            (Some(contents), 0) => Ok(Self::Typed(Box::new(contents))),
            (None, 0) => Err(Error::invalid(
                "inputs[0].contents",
                "is missing, and so is raw_input_contents",
            )),
            (Some(_), 1) => Err(Error::invalid(
                "inputs[0].contents",
                "must be empty beside raw_input_contents",
            )),
            (_, count) => {
                let message = format!("has {count} entries, but there is 1 input");
                Err(Error::invalid("raw_input_contents", message))
            }
        }
    }
}

/// Dimensions that can be multiplied without overflow.
fn dimensions(shape: &[i64]) -> Result<Vec<usize>> {
    let mut product = 1_usize;
    let mut out = Vec::with_capacity(shape.len().min(8));
    for (index, &dimension) in shape.iter().enumerate() {
        let field = format!("inputs[0].shape[{index}]");
        let value = usize::try_from(dimension).ok().filter(|&d| d > 0);
        let value = value.ok_or_else(|| {
            Error::invalid(&field, format!("is {dimension}, but must be at least 1"))
        })?;
        product = product
            .checked_mul(value)
            .filter(|&product| product <= isize::MAX as usize)
            .ok_or_else(|| Error::invalid(field, "makes the tensor too large for any memory"))?;
        out.push(value);
    }
    Ok(out)
}

/// Refuses more rows or frames than are taken.
fn check_counts(rows: usize, frames: usize, expected: Expected) -> Result<()> {
    let over = |what: &str, count: usize, most: usize, axis: usize| {
        let message = format!("is {count} {what}, but the limit is {most}");
        Err(Error::new(Kind::LimitExceeded, message).at(format!("inputs[0].shape[{axis}]")))
    };
    if rows > expected.rows {
        return over("rows", rows, expected.rows, 0);
    }
    if frames > expected.frames {
        return over("frames", frames, expected.frames, 1);
    }
    Ok(())
}

/// Image files: `[N]` or `[N, 1]`; of clips `[N, frames]`.
fn files(elements: Elements, shape: &[usize], expected: Expected) -> Result<Vec<Row>> {
    let (rows, frames) = match (shape, expected.clip) {
        (&[rows], false) | (&[rows, 1], false) => (rows, 1),
        (&[rows, frames], true) => (rows, frames),
        (_, clip) => {
            let want = if clip {
                "[N, frames] of image files"
            } else {
                "[N] of image files"
            };
            let message = format!("is {shape:?}, but must be {want}");
            return Err(Error::invalid("inputs[0].shape", message));
        }
    };
    check_counts(rows, frames, expected)?;
    let count = rows * frames;
    let (files, place) = match elements {
        Elements::Raw(raw) => (strings(raw, count)?, "raw_input_contents[0]"),
        Elements::Typed(mut contents) => {
            let place = "inputs[0].contents.bytes_contents";
            let files = std::mem::take(&mut contents.bytes_contents);
            check_elements(&contents, files.len(), count, place)?;
            (files, place)
        }
    };
    let mut images = Vec::with_capacity(count);
    for (index, file) in files.into_iter().enumerate() {
        let field = format!("{place}[{index}]");
        if file.is_empty() {
            return Err(Error::invalid(field, "is empty"));
        }
        images.push((Source::Encoded(file), field));
    }
    Ok(grouped(images, frames))
}

/// Pixels: `[N, height, width, 3]`; of clips `[N, frames, height, width, 3]`.
fn pixels(elements: Elements, shape: &[usize], expected: Expected) -> Result<Vec<Row>> {
    let (rows, frames, height, width) = match (shape, expected.clip) {
        (&[rows, height, width, 3], false) => (rows, 1, height, width),
        (&[rows, frames, height, width, 3], true) => (rows, frames, height, width),
        (_, clip) => {
            let want = if clip {
                "[N, frames, height, width, 3]"
            } else {
                "[N, height, width, 3]"
            };
            let message = format!("is {shape:?}, but must be {want}");
            return Err(Error::invalid("inputs[0].shape", message));
        }
    };
    check_counts(rows, frames, expected)?;
    let side = |value: usize, index: usize| {
        u32::try_from(value).map_err(|_| {
            let field = format!("inputs[0].shape[{}]", shape.len() - 3 + index);
            Error::invalid(field, format!("is {value}, which is no image's side"))
        })
    };
    let (height_px, width_px) = (side(height, 0)?, side(width, 1)?);
    let count: usize = shape.iter().product();
    let (bytes, place) = match elements {
        Elements::Raw(raw) => (raw, "raw_input_contents[0]"),
        Elements::Typed(mut contents) => {
            let place = "inputs[0].contents.uint_contents";
            let wide = std::mem::take(&mut contents.uint_contents);
            check_elements(&contents, wide.len(), count, place)?;
            let narrow = |(index, &value): (usize, &u32)| {
                u8::try_from(value).map_err(|_| {
                    let message = format!("is {value}, but must be from 0 to 255");
                    Error::invalid(format!("{place}[{index}]"), message)
                })
            };
            let bytes: Vec<u8> = wide.iter().enumerate().map(narrow).collect::<Result<_>>()?;
            (Bytes::from(bytes), place)
        }
    };
    if bytes.len() != count {
        let message = format!(
            "has {} bytes, but a UINT8 tensor of {shape:?} has {count}",
            bytes.len()
        );
        return Err(Error::invalid(place, message));
    }
    let one = height * width * 3;
    let images = (0..rows * frames)
        .map(|index| {
            let source = Source::Raw {
                width: width_px,
                height: height_px,
                rgb: bytes.slice(index * one..(index + 1) * one),
            };
            (source, place.to_owned())
        })
        .collect();
    Ok(grouped(images, frames))
}

/// Checks what came by type: `got` elements in `place`, and nothing else in `others`.
fn check_elements(
    others: &InferTensorContents,
    got: usize,
    count: usize,
    place: &str,
) -> Result<()> {
    if *others != InferTensorContents::default() {
        let message = format!("holds elements of another type; the tensor's belong in {place}");
        return Err(Error::invalid("inputs[0].contents", message));
    }
    if got != count {
        let message = format!("has {got} elements, but the shape makes {count}");
        return Err(Error::invalid(place, message));
    }
    Ok(())
}

/// Splits a raw BYTES tensor into exactly `count` elements, without a copy.
fn strings(mut raw: Bytes, count: usize) -> Result<Vec<Bytes>> {
    let place = "raw_input_contents[0]";
    // Each element takes 4 bytes at least, so a shape cannot ask for more memory than was sent.
    let mut out = Vec::with_capacity(count.min(raw.len() / 4));
    for index in 0..count {
        let length = raw.try_get_u32_le().map_err(|_| {
            let message = format!("ends before element {index} of {count}");
            Error::invalid(place, message)
        })?;
        if length as usize > raw.len() {
            let message = format!(
                "says that element {index} has {length} bytes, but only {} are left",
                raw.len()
            );
            return Err(Error::invalid(place, message));
        }
        out.push(raw.split_to(length as usize));
    }
    if raw.is_empty() {
        return Ok(out);
    }
    let message = format!("has {} bytes after the last of {count} elements", raw.len());
    Err(Error::invalid(place, message))
}

fn grouped(images: Vec<(Source, String)>, frames: usize) -> Vec<Row> {
    let mut images = images.into_iter();
    let mut rows = Vec::new();
    loop {
        let row: Row = images.by_ref().take(frames).collect();
        if row.is_empty() {
            return rows;
        }
        rows.push(row);
    }
}
