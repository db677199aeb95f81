//! A label map in the form that was asked for.

use super::{options::LabelMapAs, rle::Rle, segmentation::LabelMap};
use crate::error::{Error, Kind, Result};

/// A label for each pixel of the original image.
#[derive(Debug)]
pub struct Segmentation {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Labels that occur, each with its number of pixels.
    pub counts: Vec<(u32, u64)>,
    /// Where they are, as was asked for.
    pub labels: Labels,
}

/// Where labels are.
#[derive(Debug)]
pub enum Labels {
    /// One for each pixel.
    Map(LabelMap),
    /// A grayscale PNG.
    Png(Vec<u8>),
    /// A mask for each label that occurs.
    Masks(Vec<(u32, Rle)>),
}

impl Labels {
    /// The labels, if they were not made into something else.
    #[must_use]
    pub fn map(&self) -> Option<&LabelMap> {
        match self {
            Self::Map(map) => Some(map),
            Self::Png(_) | Self::Masks(_) => None,
        }
    }
}

impl Segmentation {
    pub(super) fn new(map: LabelMap, given: LabelMapAs) -> Result<Self> {
        let (width, height, counts) = (map.width(), map.height(), map.counts());
        let labels = match given {
            LabelMapAs::Labels => Labels::Map(map),
            LabelMapAs::Png => Labels::Png(map.into_png()?),
            LabelMapAs::Rle => {
                let most = LabelMapAs::most_runs(u64::from(width) * u64::from(height));
                let masks = map.to_rle(usize::try_from(most).unwrap_or(usize::MAX));
                Labels::Masks(masks.ok_or_else(|| {
                    let message = format!("the label map has more than {most} runs: ask for PNG");
                    Error::new(Kind::LimitExceeded, message)
                })?)
            }
        };
        Ok(Self {
            width,
            height,
            counts,
            labels,
        })
    }
}
