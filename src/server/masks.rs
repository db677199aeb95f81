//! Instance masks in the format that a caller asked for.

use crate::{
    error::{Error, Kind, Result},
    media,
    proto::{self, MaskFormat},
    task::Rle,
};

/// The format that a caller asked for.
pub(super) fn format(options: Option<&proto::DetectionOptions>, field: &str) -> Result<MaskFormat> {
    let asked = options.map_or(0, |options| options.mask_format);
    MaskFormat::try_from(asked).map_err(|_| {
        let field = format!("{field}.mask_format");
        let error = Error::invalid(field, "must be one of MaskFormat's values");
        error.with("value", asked)
    })
}

/// The mask in this format.
///
/// # Errors
/// The PNG encoder's failure.
pub(super) fn mask(rle: &Rle, format: MaskFormat) -> Result<proto::Mask> {
    let mut mask = proto::Mask {
        height: rle.height(),
        width: rle.width(),
        ..Default::default()
    };
    match format {
        MaskFormat::Unspecified | MaskFormat::Rle => mask.counts = rle.to_coco_string(),
        MaskFormat::PngCrop => {
            mask.png_crop = rle.crop().map(|crop| png(&crop)).transpose()?;
        }
        MaskFormat::Polygons => {
            let lines = rle.crop().map(|crop| crop.outlines()).unwrap_or_default();
            let polygon = |line: Vec<[u32; 2]>| proto::Polygon {
                points: line.into_iter().flatten().collect(),
            };
            mask.polygons = lines.into_iter().map(polygon).collect();
        }
    }
    Ok(mask)
}

fn png(crop: &crate::task::Crop) -> Result<proto::PngCrop> {
    let png = media::encode_bits_png(crop.width, crop.height, &crop.pixels);
    let png = png.map_err(|error| Error::new(Kind::Internal, error.to_string()))?;
    Ok(proto::PngCrop {
        x: crop.x,
        y: crop.y,
        png: png.into(),
    })
}
