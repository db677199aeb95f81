//! From results to tensors: a batch of them as arrays.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    outputs::Wanted,
    tensor::{Array, Data, Datatype},
};
use crate::{
    backend::{FeatureRow, HeadRow, TensorRow},
    engine::{Analysis, Head, Labels, Outcome},
    error::{Error, Kind, Result},
    task::{Detection, LabelMap, Pose, Rle, ScoredLabel},
};

/// What the outputs depend on beside the results.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'a> {
    /// The images' `(height, width)` in pixels.
    pub(super) sizes: &'a [(u32, u32)],
    /// Most bytes of an output.
    pub(super) limit: usize,
    /// Labels in `labels` and `label_names` of a classification.
    pub(super) top_k: usize,
}

/// The batch's outputs, in the order wanted.
///
/// # Errors
/// A row's failure, rows whose sizes do not make one tensor, or an answer that is too large.
pub(super) fn arrays(
    rows: Vec<Analysis>,
    wanted: &[Wanted],
    context: Context<'_>,
) -> Result<Vec<Array>> {
    let mut batch = Batch {
        context,
        head: None,
        rows: Rows::Empty,
    };
    // All rows of a call share it.
    let _room = rows.first().and_then(|row| row.room.clone());
    for row in rows {
        batch.push(row)?;
    }
    wanted.iter().map(|output| batch.array(output)).collect()
}

/// The rows' results, all of one kind.
enum Rows {
    Empty,
    Detection(Vec<Vec<Detection>>),
    Segmentation(Vec<Labels>),
    Classification(Vec<Vec<ScoredLabel>>),
    Keypoints(Vec<Vec<Pose>>),
    Tensors(Vec<HeadRow>),
    Features(Vec<FeatureRow>),
}

struct Batch<'a> {
    context: Context<'a>,
    head: Option<Arc<Head>>,
    rows: Rows,
}

impl Batch<'_> {
    fn push(&mut self, mut row: Analysis) -> Result<()> {
        let outcome = match row.heads.pop() {
            Some((head, outcome)) => {
                self.head = Some(head);
                Some(outcome?)
            }
            None => None,
        };
        if let Rows::Empty = self.rows {
            self.rows = match &outcome {
                Some(Outcome::Detection(_)) => Rows::Detection(Vec::new()),
                Some(Outcome::Segmentation(_)) => Rows::Segmentation(Vec::new()),
                Some(Outcome::Classification(_)) => Rows::Classification(Vec::new()),
                Some(Outcome::Keypoints(_)) => Rows::Keypoints(Vec::new()),
                Some(Outcome::Tensors(_) | Outcome::Sent) => Rows::Tensors(Vec::new()),
                None => Rows::Features(Vec::new()),
            };
        }
        match (&mut self.rows, outcome, row.features) {
            (Rows::Detection(rows), Some(Outcome::Detection(found)), _) => rows.push(found),
            (Rows::Segmentation(rows), Some(Outcome::Segmentation(map)), _) => {
                rows.push(map.labels)
            }
            (Rows::Classification(rows), Some(Outcome::Classification(top)), _) => rows.push(top),
            (Rows::Keypoints(rows), Some(Outcome::Keypoints(poses)), _) => rows.push(poses.0),
            (Rows::Tensors(rows), Some(Outcome::Tensors(row)), _) => rows.push(row),
            (Rows::Features(rows), None, Some(row)) => rows.push(row),
            _ => {
                let message = "the engine gave another kind of answer";
                return Err(Error::new(Kind::Internal, message));
            }
        }
        Ok(())
    }

    fn array(&self, wanted: &Wanted) -> Result<Array> {
        let name = wanted.name.as_str();
        match &self.rows {
            Rows::Empty => Err(missing(name)),
            Rows::Detection(rows) => self.detections(name, rows),
            Rows::Segmentation(rows) => self.label_maps(name, rows),
            Rows::Classification(rows) => self.probabilities(wanted, rows),
            Rows::Keypoints(rows) => self.poses(name, rows),
            Rows::Tensors(rows) => self.stack(name, rows.iter().map(|row| row.tensor(name))),
            Rows::Features(rows) => {
                let maps = rows
                    .iter()
                    .map(|row| row.maps().find(|map| map.name == name));
                self.stack(name, maps)
            }
        }
    }

    /// Refuses what would not fit an answer, before memory is taken for it.
    fn check_size(&self, name: &str, bytes: Option<usize>) -> Result<()> {
        if bytes.is_some_and(|bytes| bytes <= self.context.limit) {
            return Ok(());
        }
        let message = format!(
            "the output {name:?} would be larger than the {} bytes of an answer: send fewer images at once, or name other outputs",
            self.context.limit
        );
        Err(Error::new(Kind::LimitExceeded, message).at("outputs"))
    }

    /// The one size of all images.
    fn size(&self, name: &str) -> Result<(usize, usize)> {
        let first = self.context.sizes.first().copied().unwrap_or_default();
        let other = self
            .context
            .sizes
            .iter()
            .enumerate()
            .find(|(_, s)| **s != first);
        if let Some((index, (height, width))) = other {
            let message = format!(
                "the output {name:?} needs images of one size, but image {index} is {width}x{height} and the first is \
                 {}x{}: send them in calls of their own, or name another output",
                first.1, first.0
            );
            return Err(Error::invalid("outputs", message));
        }
        Ok((first.0 as usize, first.1 as usize))
    }

    fn label_name(&self, label: u32) -> Bytes {
        let labels = self.head.as_ref().map(|head| &head.manifest.labels);
        match labels.and_then(|labels| labels.get(label as usize)) {
            Some(name) => name.clone().into(),
            None => label.to_string().into(),
        }
    }

    /// `[N, K]` and more: rows of fewer than K detections are filled up with zeros, label -1 and empty strings.
    fn detections(&self, name: &str, rows: &[Vec<Detection>]) -> Result<Array> {
        let most = rows.iter().map(Vec::len).max().unwrap_or(0);
        let shape = vec![rows.len(), most];
        // Each row's detections, then nothing until there are K.
        let slots = rows.iter().flat_map(|row| {
            let found = row.iter().map(Some);
            found.chain(std::iter::repeat(None)).take(most)
        });
        let strings = |text: &dyn Fn(&Detection) -> Bytes| {
            Data::Strings(
                slots
                    .clone()
                    .map(|slot| slot.map(text).unwrap_or_default())
                    .collect(),
            )
        };
        Ok(match name {
            "num_detections" => {
                let counts = rows.iter().map(|row| row.len() as i32);
                let data = dense(counts.map(i32::to_le_bytes));
                array(name, Datatype::Int32, vec![rows.len()], data)
            }
            "boxes" => {
                let boxes = slots.flat_map(|slot| slot.map_or([0.0; 4], |d| d.bbox));
                let shape = vec![rows.len(), most, 4];
                array(
                    name,
                    Datatype::Fp32,
                    shape,
                    dense(boxes.map(f32::to_le_bytes)),
                )
            }
            "scores" => {
                let scores = slots.map(|slot| slot.map_or(0.0, |d| d.score));
                array(
                    name,
                    Datatype::Fp32,
                    shape,
                    dense(scores.map(f32::to_le_bytes)),
                )
            }
            "labels" => {
                let labels = slots.map(|slot| slot.map_or(-1, |d| i64::from(d.label)));
                array(
                    name,
                    Datatype::Int64,
                    shape,
                    dense(labels.map(i64::to_le_bytes)),
                )
            }
            "label_names" => {
                let names = strings(&|d| self.label_name(d.label));
                array(name, Datatype::Bytes, shape, names)
            }
            "masks" => {
                let masks = strings(&|d| d.mask.as_ref().map(coco_json).unwrap_or_default());
                array(name, Datatype::Bytes, shape, masks)
            }
            "masks_dense" => {
                let (height, width) = self.size(name)?;
                let pixels = height * width;
                self.check_size(name, (rows.len() * most).checked_mul(pixels))?;
                let mut data = Vec::with_capacity(rows.len() * most * pixels);
                for slot in slots {
                    let mask = slot.and_then(|d| d.mask.as_ref());
                    match mask {
                        Some(mask) => data.extend(mask.to_rows().into_iter().map(u8::from)),
                        None => data.resize(data.len() + pixels, 0),
                    }
                }
                let shape = vec![rows.len(), most, height, width];
                array(name, Datatype::Uint8, shape, Data::Dense(data))
            }
            _ => return Err(missing(name)),
        })
    }

    /// `[N, K]` and more: rows of fewer than K poses are filled up with zeros.
    fn poses(&self, name: &str, rows: &[Vec<Pose>]) -> Result<Array> {
        let most = rows.iter().map(Vec::len).max().unwrap_or(0);
        let labels = self.head.as_ref().map(|head| head.manifest.labels.len());
        let points = labels.unwrap_or(0);
        let slots = rows.iter().flat_map(|row| {
            let found = row.iter().map(Some);
            found.chain(std::iter::repeat(None)).take(most)
        });
        Ok(match name {
            "num_detections" => {
                let counts = rows.iter().map(|row| row.len() as i32);
                let data = dense(counts.map(i32::to_le_bytes));
                array(name, Datatype::Int32, vec![rows.len()], data)
            }
            "keypoints" => {
                let count = (rows.len() * most).checked_mul(points * 3 * size_of::<f32>());
                self.check_size(name, count)?;
                let values = slots.flat_map(|slot| {
                    let found = slot.into_iter().flat_map(|pose| &pose.points);
                    let values = found.flat_map(|point| [point.x, point.y, point.score]);
                    values.chain(std::iter::repeat(0.0)).take(points * 3)
                });
                let data = dense(values.map(f32::to_le_bytes));
                let shape = vec![rows.len(), most, points, 3];
                array(name, Datatype::Fp32, shape, data)
            }
            "scores" => {
                let scores = slots.map(|slot| slot.map_or(0.0, |pose| pose.score));
                let data = dense(scores.map(f32::to_le_bytes));
                array(name, Datatype::Fp32, vec![rows.len(), most], data)
            }
            _ => return Err(missing(name)),
        })
    }

    fn label_maps(&self, name: &str, rows: &[Labels]) -> Result<Array> {
        match name {
            "label_map" => {
                let (height, width) = self.size(name)?;
                let count = (rows.len() * height).checked_mul(width * 2);
                self.check_size(name, count)?;
                let maps: Option<Vec<&LabelMap>> = rows.iter().map(Labels::map).collect();
                let maps = maps.ok_or_else(|| missing(name))?;
                let labels = maps.iter().flat_map(|map| map.labels().iter().copied());
                let shape = vec![rows.len(), height, width];
                let data = dense(labels.map(u16::to_le_bytes));
                Ok(array(name, Datatype::Uint16, shape, data))
            }
            "label_map_png" => {
                let png = |labels: &Labels| match labels {
                    Labels::Png(png) => Ok(Bytes::copy_from_slice(png)),
                    Labels::Map(map) => Ok(Bytes::from(map.to_png()?)),
                    Labels::Masks(_) => Err(missing(name)),
                };
                let maps = rows.iter().map(png).collect::<Result<_>>()?;
                let shape = vec![rows.len()];
                Ok(array(name, Datatype::Bytes, shape, Data::Strings(maps)))
            }
            _ => Err(missing(name)),
        }
    }

    /// Each row holds every label's probability, most probable first.
    fn probabilities(&self, wanted: &Wanted, rows: &[Vec<ScoredLabel>]) -> Result<Array> {
        let name = wanted.name.as_str();
        let all = rows.iter().map(Vec::len).min().unwrap_or(0);
        let top = self.context.top_k.min(all);
        let first = |count: usize| rows.iter().flat_map(move |row| &row[..count]);
        Ok(match (name, wanted.classes) {
            ("probabilities", Some(count)) => {
                let count = count.min(all);
                let text = |s: &ScoredLabel| {
                    let name = self.label_name(s.label);
                    let name = String::from_utf8_lossy(&name);
                    Bytes::from(format!("{:.6}:{}:{name}", s.probability, s.label))
                };
                let data = Data::Strings(first(count).map(text).collect());
                array(name, Datatype::Bytes, vec![rows.len(), count], data)
            }
            ("probabilities", None) => {
                let mut values = vec![0.0_f32; rows.len() * all];
                for (row, out) in rows.iter().zip(values.chunks_exact_mut(all.max(1))) {
                    for scored in row {
                        if let Some(slot) = out.get_mut(scored.label as usize) {
                            *slot = scored.probability;
                        }
                    }
                }
                let data = dense(values.into_iter().map(f32::to_le_bytes));
                array(name, Datatype::Fp32, vec![rows.len(), all], data)
            }
            ("labels", _) => {
                let labels = first(top).map(|s| i64::from(s.label).to_le_bytes());
                array(name, Datatype::Int64, vec![rows.len(), top], dense(labels))
            }
            ("label_names", _) => {
                let names = first(top).map(|s| self.label_name(s.label)).collect();
                let shape = vec![rows.len(), top];
                array(name, Datatype::Bytes, shape, Data::Strings(names))
            }
            _ => return Err(missing(name)),
        })
    }

    fn stack<'r>(
        &self,
        name: &str,
        rows: impl Iterator<Item = Option<TensorRow<'r>>>,
    ) -> Result<Array> {
        let rows: Vec<TensorRow<'r>> = rows.collect::<Option<_>>().ok_or_else(|| missing(name))?;
        let Some(first) = rows.first().copied() else {
            return Err(missing(name));
        };
        let same = |row: &TensorRow<'_>| row.shape == first.shape && row.element == first.element;
        if let Some(other) = rows.iter().find(|row| !same(row)) {
            let message = format!(
                "the output {name:?} is {:?} for one image of the batch and {:?} for another: send them in calls of their own",
                first.shape, other.shape
            );
            return Err(Error::new(Kind::HeadFailed, message).at("outputs"));
        }
        let count = first.bytes().len().checked_mul(rows.len());
        self.check_size(name, count)?;
        let mut data = Vec::with_capacity(count.unwrap_or(0));
        rows.iter()
            .for_each(|row| data.extend_from_slice(row.bytes()));
        let shape = std::iter::once(rows.len()).chain(first.shape.iter().copied());
        let datatype = Datatype::from(first.element);
        Ok(array(name, datatype, shape.collect(), Data::Dense(data)))
    }
}

fn array(name: &str, datatype: Datatype, shape: Vec<usize>, data: Data) -> Array {
    Array {
        name: name.to_owned(),
        datatype,
        shape,
        data,
    }
}

fn dense<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> Data {
    Data::Dense(values.flatten().collect())
}

fn missing(name: &str) -> Error {
    let message = format!("the model gave no output {name:?}");
    Error::new(Kind::Internal, message)
}

/// The object that pycocotools writes to JSON files and reads back.
fn coco_json(mask: &Rle) -> Bytes {
    let (height, width) = (mask.height(), mask.width());
    let object = serde_json::json!({"size": [height, width], "counts": mask.to_coco_string()});
    object.to_string().into()
}
