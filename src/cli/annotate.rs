//! The picture of an answer: masks, boxes and names on the image, a legend beside it.

use std::collections::BTreeMap;

use crate::{
    media::{self, Filter, Image, Preprocess, ResizeMode, draw},
    proto::{self, head_result::Outcome as Answer},
    task::Rle,
};

use super::show::shares;

/// Longer side that pictures are enlarged to, so that names can be read, in pixels.
const LONG_SIDE: u32 = 720;
const LEGEND: u32 = 230;
const TEXT: f32 = 15.0;
const INK: [u8; 3] = [35, 38, 43];
const PAPER: [u8; 3] = [250, 250, 248];

/// Draws `answer` on the last of `frames` (encoded images); the others of a clip are shown small under it.
pub(super) fn annotate(
    frames: &[bytes::Bytes],
    answer: &proto::AnalyzeResponse,
) -> anyhow::Result<Image> {
    let limits = media::Limits::default();
    let Some((last, earlier)) = frames.split_last() else {
        anyhow::bail!("there is no picture to draw on");
    };
    let mut image = media::decode(last, &limits)?;
    let (width, height) = (image.width(), image.height());
    let scale = (LONG_SIDE as f32 / width.max(height) as f32).max(1.0);
    let colors = Colors::new(answer);
    tint(&mut image, answer, &colors)?;
    let side = |pixels: u32| (pixels as f32 * scale).round() as u32;
    let mut image = resized(&image, side(width), side(height))?;
    outline(&mut image, answer, scale, &colors);
    poses(&mut image, answer, scale);

    let strip = if earlier.is_empty() {
        0
    } else {
        image.width() / frames.len() as u32
    };
    let strip_height = (strip as f32 * height as f32 / width as f32) as u32;
    let (full_width, full_height) = (image.width() + LEGEND, image.height() + strip_height);
    let area = full_width as usize * full_height as usize;
    let mut canvas = Image::from_raw(full_width, full_height, PAPER.repeat(area))?;
    paste(&mut canvas, &image, 0, 0);
    if strip > 0 {
        for (index, frame) in frames.iter().enumerate() {
            let frame = resized(&media::decode(frame, &limits)?, strip - 2, strip_height - 2)?;
            paste(
                &mut canvas,
                &frame,
                index as u32 * strip + 1,
                image.height() + 1,
            );
        }
    }
    legend(&mut canvas, i64::from(image.width()) + 14, answer, &colors);
    Ok(canvas)
}

/// A colour for each name in one picture, the same for every head; numbers alone would collide between heads.
struct Colors(BTreeMap<String, usize>);

impl Colors {
    fn new(answer: &proto::AnalyzeResponse) -> Self {
        let mut names = BTreeMap::new();
        let mut add = |name: &str| {
            let next = names.len();
            names.entry(name.to_owned()).or_insert(next);
        };
        for result in answers(answer) {
            match result {
                Answer::Detection(found) => found.detections.iter().for_each(|d| add(&d.label)),
                Answer::Segmentation(map) => {
                    shares(map)
                        .iter()
                        .for_each(|(segment, _)| add(&segment.label));
                }
                _ => {}
            }
        }
        Self(names)
    }

    fn of(&self, name: &str) -> [u8; 3] {
        draw::color(self.0.get(name).copied().unwrap_or(0))
    }
}

fn tint(image: &mut Image, answer: &proto::AnalyzeResponse, colors: &Colors) -> anyhow::Result<()> {
    for result in answers(answer) {
        if let Answer::Segmentation(map) = result
            && (map.width, map.height) == (image.width(), image.height())
        {
            let gray = media::decode(&map.png, &media::Limits::default())?;
            let labels: Vec<u16> = gray
                .data()
                .iter()
                .step_by(3)
                .map(|&level| level.into())
                .collect();
            let colors = shares(map)
                .iter()
                .map(|(segment, _)| (segment.class_index as u16, colors.of(&segment.label)))
                .collect();
            draw::tint_labels(image, &labels, &colors, 0.30);
        }
    }
    for detection in answers(answer).filter_map(detections).flatten() {
        if let Some(mask) = &detection.mask
            && (mask.width, mask.height) == (image.width(), image.height())
        {
            let rle = Rle::from_coco_string(mask.height, mask.width, mask.counts.as_bytes())?;
            draw::tint(image, &rle.to_rows(), colors.of(&detection.label), 0.45);
        }
    }
    Ok(())
}

fn outline(image: &mut Image, answer: &proto::AnalyzeResponse, scale: f32, colors: &Colors) {
    for detection in answers(answer).filter_map(detections).flatten().rev() {
        let color = colors.of(&detection.label);
        let b = detection.bbox.unwrap_or_default();
        let sides = [b.x_min, b.y_min, b.x_max, b.y_max].map(|side| side * scale);
        draw::outline(image, sides, 2, color);
        let text = format!("{} {:.2}", detection.label, detection.score);
        let above = sides[1] as i64 - (TEXT * 1.35) as i64;
        draw::tag(image, (sides[0] as i64, above), &text, TEXT, color);
    }
}

/// Poses: their bones, and their points above these; a colour for each pose. A point that was not found joins nothing.
fn poses(image: &mut Image, answer: &proto::AnalyzeResponse, scale: f32) {
    for result in answers(answer) {
        let Answer::Keypoints(found) = result else {
            continue;
        };
        // The best on top.
        for (index, pose) in found.poses.iter().enumerate().rev() {
            let color = draw::color(index);
            let place = |label: u32| {
                let point = pose.keypoints.get(label as usize)?;
                (point.score > 0.0).then_some([point.x * scale, point.y * scale])
            };
            for bone in &found.skeleton {
                if let (Some(from), Some(to)) = (place(bone.first), place(bone.second)) {
                    draw::line(image, from, to, 3, color);
                }
            }
            for [x, y] in (0..)
                .map_while(|label: u32| {
                    let inside = (label as usize) < pose.keypoints.len();
                    inside.then(|| place(label))
                })
                .flatten()
            {
                let corner = (x.round() as i64 - 4, y.round() as i64 - 4);
                draw::fill(image, corner, (9, 9), color, 1.0);
                draw::fill(image, (corner.0 + 3, corner.1 + 3), (3, 3), PAPER, 1.0);
            }
        }
    }
}

/// What was found, head by head, down the right side.
fn legend(canvas: &mut Image, left: i64, answer: &proto::AnalyzeResponse, colors: &Colors) {
    let line = (TEXT * 1.6) as i64;
    let mut top = 12;
    for result in &answer.results {
        let Some(found) = &result.outcome else {
            continue;
        };
        draw::text(canvas, (left, top), &result.head, TEXT * 1.1, INK);
        top += line + 4;
        let mut entry = |name: &str, text: &str| {
            draw::fill(canvas, (left, top + 2), (14, 14), colors.of(name), 1.0);
            draw::text(canvas, (left + 22, top), text, TEXT, INK);
            top += line;
        };
        match found {
            Answer::Detection(found) => {
                let mut counts = std::collections::BTreeMap::new();
                for d in &found.detections {
                    *counts.entry(d.label.as_str()).or_insert(0) += 1;
                }
                for (name, count) in counts {
                    entry(name, &format!("{count} x {name}"));
                }
            }
            Answer::Segmentation(map) => {
                for (segment, share) in shares(map).into_iter().take(10) {
                    entry(
                        &segment.label,
                        &format!("{} {:.0} %", segment.label, 100.0 * share),
                    );
                }
            }
            Answer::Classification(scores) => {
                for scored in &scores.top {
                    let width = (f64::from(scored.probability) * f64::from(LEGEND - 40)) as i64;
                    draw::fill(
                        canvas,
                        (left, top - 2),
                        (width.max(1), line - 3),
                        draw::color(0),
                        0.35,
                    );
                    let text = format!("{} {:.2}", scored.label, scored.probability);
                    draw::text(canvas, (left + 4, top), &text, TEXT, INK);
                    top += line;
                }
            }
            Answer::Keypoints(found) => {
                for (index, pose) in found.poses.iter().take(10).enumerate() {
                    draw::fill(canvas, (left, top + 2), (14, 14), draw::color(index), 1.0);
                    let text = format!("pose {:.2}", pose.score);
                    draw::text(canvas, (left + 22, top), &text, TEXT, INK);
                    top += line;
                }
            }
            Answer::Tensor(_) | Answer::Error(_) => {}
        }
        top += line / 2;
    }
    if let Some(made) = &answer.provenance {
        let total = f64::from(made.timing.unwrap_or_default().total_us) / 1e3;
        let text = format!("{} backbone run(s), {total:.0} ms", made.backbone_rows);
        draw::text(canvas, (left, top), &text, TEXT * 0.85, [110, 113, 118]);
    }
}

fn answers(answer: &proto::AnalyzeResponse) -> impl DoubleEndedIterator<Item = &Answer> {
    answer
        .results
        .iter()
        .filter_map(|result| result.outcome.as_ref())
}

fn detections(answer: &Answer) -> Option<std::slice::Iter<'_, proto::Detection>> {
    match answer {
        Answer::Detection(found) => Some(found.detections.iter()),
        _ => None,
    }
}

fn resized(image: &Image, width: u32, height: u32) -> anyhow::Result<Image> {
    let (width, height) = (width.max(1), height.max(1));
    let mode = ResizeMode::Stretch;
    let how = Preprocess {
        mode,
        filter: Filter::Bilinear,
        pad: 0,
        height,
        width,
    };
    let mut data = vec![0; width as usize * height as usize * 3];
    media::preprocess_into(image.view(), &how, &mut data)?;
    Ok(Image::from_raw(width, height, data)?)
}

fn paste(canvas: &mut Image, image: &Image, left: u32, top: u32) {
    let (width, line) = (canvas.width() as usize, image.width() as usize * 3);
    for (row, pixels) in image.data().chunks_exact(line).enumerate() {
        let at = ((top as usize + row) * width + left as usize) * 3;
        if let Some(target) = canvas.data_mut().get_mut(at..at + line) {
            target.copy_from_slice(pixels);
        }
    }
}
