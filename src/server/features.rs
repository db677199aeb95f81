//! The backbone's feature maps as a caller wants them: some of them, narrower, pooled, whole or in pieces.

use std::sync::Arc;

use bytes::Bytes;
use half::f16;

use super::convert;
use crate::{
    backend::{Element, FeatureRow, TensorRow, TensorSpec},
    engine::{Engine, Room},
    error::{Error, Kind, Result},
    proto::{self, DataType, FeaturePooling},
    repository::Layout,
};

/// Most bytes of maps where the caller does not say how many: 4 MiB with room for the rest of the message.
const MOST: u32 = (4 << 20) - (64 << 10);

/// Bytes of a piece of a map.
const PIECE: usize = 1 << 20;

/// What is wanted of an image's maps.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The backbone's input size.
    pub(super) size: [u32; 2],
    /// In the order of the answer, each with its layout.
    maps: Vec<(TensorSpec, Layout)>,
    element: Option<Element>,
    mean: bool,
}

impl Wanted {
    /// Reads what `request` wants.
    ///
    /// # Errors
    /// Names, sizes and kinds that there are not.
    pub(super) fn read(request: &proto::ExtractFeaturesRequest, engine: &Engine) -> Result<Self> {
        let backbone = engine.backbone();
        let sizes = &backbone.input.sizes;
        let size = match request.input_size {
            None => sizes[0],
            Some(proto::ImageSize { height, width }) => [height, width],
        };
        let specs = engine.features(size).filter(|_| sizes.contains(&size));
        let specs = specs.ok_or_else(|| {
            let message = format!("is not among the backbone's sizes {sizes:?}");
            Error::invalid("input_size", message).with("value", format!("{size:?}"))
        })?;
        let known: Vec<_> = backbone.features.iter().map(|f| f.name.as_str()).collect();
        let names = &request.map_names;
        for (index, name) in names.iter().enumerate() {
            let field = format!("map_names[{index}]");
            if !known.contains(&name.as_str()) {
                let message = format!("is not among the backbone's feature maps {known:?}");
                return Err(Error::invalid(field, message));
            }
            if names[..index].contains(name) {
                return Err(Error::invalid(field, "is named twice"));
            }
        }
        let with_layout = |spec: TensorSpec| {
            let feature = backbone.features.iter().find(|f| f.name == spec.name);
            feature.map(|feature| (spec, feature.layout))
        };
        let mut maps: Vec<_> = specs.into_iter().filter_map(with_layout).collect();
        if !names.is_empty() {
            let place = |spec: &TensorSpec| names.iter().position(|name| *name == spec.name);
            maps.retain(|(spec, _)| place(spec).is_some());
            maps.sort_by_key(|(spec, _)| place(spec));
        }
        let element = match request.data_type() {
            DataType::Unspecified => None,
            DataType::Float32 => Some(Element::F32),
            DataType::Float16 => Some(Element::F16),
            _ => {
                let message = "must be FLOAT32 or FLOAT16, or unset";
                return Err(Error::invalid("data_type", message).with("value", request.data_type));
            }
        };
        if DataType::try_from(request.data_type).is_err() {
            let message = "must be one of DataType's values";
            return Err(Error::invalid("data_type", message).with("value", request.data_type));
        }
        let pooling = FeaturePooling::try_from(request.pooling).map_err(|_| {
            let message = "must be one of FeaturePooling's values";
            Error::invalid("pooling", message).with("value", request.pooling)
        })?;
        Ok(Self {
            size,
            maps,
            element,
            mean: pooling == FeaturePooling::Mean,
        })
    }

    /// Refuses what would be larger than one answer may be.
    ///
    /// # Errors
    /// `LimitExceeded` with what can be done about it.
    pub(super) fn check_bytes(&self, most: Option<u32>) -> Result<()> {
        let (bytes, most) = (self.bytes(), u64::from(most.unwrap_or(MOST)));
        if bytes <= most {
            return Ok(());
        }
        let message = "the maps are larger: name fewer in map_names, ask for FLOAT16 in data_type or for pooling, raise max_bytes and the client's own limit, or call StreamFeatures";
        let error = Error::new(Kind::LimitExceeded, message).at("max_bytes");
        Err(error.with("value", bytes).with("limit", most))
    }

    /// Bytes of all maps as they are wanted.
    fn bytes(&self) -> u64 {
        let of = |(spec, layout): &(TensorSpec, Layout)| {
            let numbers: usize = match self.mean {
                true => spec.shape.get(channel_axis(*layout)).copied().unwrap_or(1),
                false => spec.shape.iter().product(),
            };
            numbers as u64 * self.element.unwrap_or(spec.element).size() as u64
        };
        self.maps.iter().map(of).sum()
    }

    /// The maps of `row`.
    ///
    /// # Errors
    /// A defect.
    pub(super) fn tensors(&self, row: &FeatureRow) -> Result<Vec<proto::Tensor>> {
        let made = self.maps.iter().map(|(spec, layout)| {
            let map = row.maps().find(|map| map.name == spec.name);
            let map = map.ok_or_else(|| Error::new(Kind::Internal, "a feature map is missing"))?;
            Ok(self.tensor(map, *layout))
        });
        made.collect()
    }

    fn tensor(&self, map: TensorRow<'_>, layout: Layout) -> proto::Tensor {
        let element = self.element.unwrap_or(map.element);
        if !self.mean && element == map.element {
            return convert::tensor(map);
        }
        let mut shape = map.shape.to_vec();
        let mut numbers = numbers(&map);
        if self.mean {
            let axis = channel_axis(layout);
            let channels = shape.get(axis).copied().unwrap_or(1);
            numbers = means(&numbers, channels, axis == 0);
            shape = vec![channels];
        }
        let data = match element {
            Element::F16 => numbers
                .iter()
                .flat_map(|n| f16::from_f32(*n).to_le_bytes())
                .collect(),
            _ => numbers
                .iter()
                .flat_map(|n| n.to_le_bytes())
                .collect::<Vec<u8>>(),
        };
        proto::Tensor {
            name: map.name.to_owned(),
            data_type: convert::data_type(element).into(),
            shape: shape
                .iter()
                .map(|&side| u32::try_from(side).unwrap_or(u32::MAX))
                .collect(),
            data: data.into(),
        }
    }
}

/// Where in a map's shape, without the batch, its channels are.
fn channel_axis(layout: Layout) -> usize {
    match layout {
        Layout::Nchw => 0,
        Layout::Nhwc => 2,
    }
}

/// A map's numbers; a backbone's are float.
fn numbers(map: &TensorRow<'_>) -> Vec<f32> {
    let bytes = map.bytes();
    match map.element {
        Element::F16 => {
            let pairs = bytes.chunks_exact(2);
            pairs
                .map(|b| f16::from_ne_bytes([b[0], b[1]]).to_f32())
                .collect()
        }
        _ => {
            let fours = bytes.chunks_exact(4);
            fours
                .map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
                .collect()
        }
    }
}

/// The mean of each channel, in double precision.
fn means(numbers: &[f32], channels: usize, channels_first: bool) -> Vec<f32> {
    let cells = numbers.len() / channels.max(1);
    let mut sums = vec![0.0_f64; channels];
    for (index, &number) in numbers.iter().enumerate() {
        let channel = match channels_first {
            true => index / cells.max(1),
            false => index % channels.max(1),
        };
        sums[channel] += f64::from(number);
    }
    sums.iter()
        .map(|sum| (sum / cells.max(1) as f64) as f32)
        .collect()
}

/// Maps in pieces, and at the end `last`. They keep their room until then.
pub(super) fn pieces(
    maps: Vec<proto::Tensor>,
    last: proto::StreamFeaturesResponse,
    room: Option<Arc<Room>>,
) -> impl Iterator<Item = proto::StreamFeaturesResponse> + Send {
    let piece = |map: &proto::Tensor, begin: usize| {
        let end = (begin + PIECE).min(map.data.len());
        let piece = proto::Tensor {
            data: Bytes::slice(&map.data, begin..end),
            ..map.clone()
        };
        proto::StreamFeaturesResponse {
            piece: Some(piece),
            offset: u32::try_from(begin).unwrap_or(u32::MAX),
            ..Default::default()
        }
    };
    let all = maps.into_iter().flat_map(move |map| {
        let begins = (0..map.data.len()).step_by(PIECE);
        begins.map(move |begin| piece(&map, begin))
    });
    all.chain(std::iter::once(last)).inspect(move |_| {
        let _ = &room;
    })
}
