//! Answers as text for people and as JSON for programs.

use serde_json::{Map, Value, json};

use crate::{
    client::reason,
    proto::{self, head_result::Outcome as Answer},
};

/// Lines for a person.
pub(super) fn text(name: &str, answer: &proto::AnalyzeResponse) -> String {
    let mut out = format!("{name}\n");
    for result in &answer.results {
        let mut table = Vec::new();
        match &result.outcome {
            Some(Answer::Detection(found)) => {
                for d in &found.detections {
                    let b = d.bbox.unwrap_or_default();
                    let sides =
                        [b.x_min, b.y_min, b.x_max, b.y_max].map(|side| format!("{side:7.1}"));
                    table.push((format!("{:.2}", d.score), d.label.clone(), sides.join(" ")));
                }
                if table.is_empty() {
                    table.push(("-".to_owned(), "nothing found".to_owned(), String::new()));
                }
            }
            Some(Answer::Segmentation(map)) => {
                for (segment, share) in shares(map) {
                    let percent = format!("{:.1} %", 100.0 * share);
                    table.push((percent, segment.label.clone(), String::new()));
                }
            }
            Some(Answer::Classification(top)) => {
                for scored in &top.top {
                    table.push((
                        format!("{:.2}", scored.probability),
                        scored.label.clone(),
                        String::new(),
                    ));
                }
            }
            Some(Answer::Keypoints(found)) => {
                for pose in &found.poses {
                    let seen = pose.keypoints.iter().filter(|point| point.score > 0.0);
                    let points = format!("{} of {} points", seen.count(), found.labels.len());
                    table.push((format!("{:.2}", pose.score), "pose".to_owned(), points));
                }
                if table.is_empty() {
                    table.push(("-".to_owned(), "nothing found".to_owned(), String::new()));
                }
            }
            Some(Answer::Tensor(found)) => {
                for tensor in &found.outputs {
                    table.push((
                        String::new(),
                        tensor.name.clone(),
                        format!("{:?}", tensor.shape),
                    ));
                }
            }
            Some(Answer::Error(error)) => {
                table.push(("error".to_owned(), reason(error), error.message.clone()));
            }
            None => {}
        }
        for (line, (value, label, rest)) in table.into_iter().enumerate() {
            let head = if line == 0 { result.head.as_str() } else { "" };
            out += format!("  {head:12} {value:>7}  {label:16} {rest}").trim_end();
            out.push('\n');
        }
    }
    if let Some(made) = &answer.provenance {
        out += &passes(made, answer.results.len());
    }
    out
}

/// What an answer took, on one line.
fn passes(made: &proto::Provenance, heads: usize) -> String {
    let t = made.timing.unwrap_or_default();
    let ms = |us: u32| f64::from(us) / 1e3;
    format!(
        "  {} backbone pass{} for {heads} head{}; ms: queue {:.1}, decode {:.1}, backbone {:.1}, heads {:.1}, \
         postprocess {:.1}, total {:.1}\n",
        made.backbone_rows,
        if made.backbone_rows == 1 { "" } else { "es" },
        if heads == 1 { "" } else { "s" },
        ms(t.queue_us),
        ms(t.decode_us),
        ms(t.backbone_us),
        ms(t.head_us),
        ms(t.postprocess_us),
        ms(t.total_us),
    )
}

/// Segments with their share of the image, the largest first.
pub(super) fn shares(map: &proto::SegmentationResult) -> Vec<(&proto::Segment, f64)> {
    let all = f64::from(map.width) * f64::from(map.height);
    let mut segments: Vec<_> = map
        .segments
        .iter()
        .map(|s| (s, f64::from(s.pixels) / all))
        .collect();
    segments.sort_by_key(|(segment, _)| std::cmp::Reverse(segment.pixels));
    segments
}

/// One object a program can read: masks as COCO RLE with text counts, label maps by their segments.
pub(super) fn json(name: &str, answer: &proto::AnalyzeResponse) -> Value {
    let heads: Map<String, Value> = answer
        .results
        .iter()
        .map(|result| (result.head.clone(), head(result)))
        .collect();
    let mut object = json!({ "file": name, "heads": heads });
    if let Some(made) = &answer.provenance {
        let t = made.timing.unwrap_or_default();
        object["backbone"] = json!(made.backbone);
        object["backbone_rows"] = json!(made.backbone_rows);
        object["batch_size"] = json!(made.batch_size);
        object["timing_us"] = json!({
            "queue": t.queue_us,
            "decode": t.decode_us,
            "backbone": t.backbone_us,
            "head": t.head_us,
            "postprocess": t.postprocess_us,
            "total": t.total_us,
        });
    }
    object
}

fn head(result: &proto::HeadResult) -> Value {
    let mask =
        |mask: &proto::Mask| json!({ "size": [mask.height, mask.width], "counts": mask.counts });
    let mut value = match &result.outcome {
        Some(Answer::Detection(found)) => {
            let detection = |d: &proto::Detection| {
                let b = d.bbox.unwrap_or_default();
                json!({
                    "label": d.label,
                    "class_index": d.class_index,
                    "score": d.score,
                    "box": [b.x_min, b.y_min, b.x_max, b.y_max],
                    "mask": d.mask.as_ref().map(mask),
                })
            };
            json!({ "detections": found.detections.iter().map(detection).collect::<Vec<_>>() })
        }
        Some(Answer::Segmentation(map)) => {
            let segment = |s: &proto::Segment| json!({ "label": s.label, "class_index": s.class_index, "pixels": s.pixels });
            json!({
                "width": map.width,
                "height": map.height,
                "segments": map.segments.iter().map(segment).collect::<Vec<_>>(),
            })
        }
        Some(Answer::Classification(top)) => {
            let scored = |s: &proto::ScoredLabel| json!({ "label": s.label, "class_index": s.class_index, "probability": s.probability });
            json!({ "top": top.top.iter().map(scored).collect::<Vec<_>>() })
        }
        Some(Answer::Keypoints(found)) => {
            let point = |p: &proto::Keypoint| json!([p.x, p.y, p.score]);
            let pose = |pose: &proto::Pose| {
                let points = pose.keypoints.iter().map(point).collect::<Vec<_>>();
                json!({ "score": pose.score, "keypoints": points })
            };
            let bone = |bone: &proto::Bone| [bone.first, bone.second];
            json!({
                "labels": found.labels,
                "skeleton": found.skeleton.iter().map(bone).collect::<Vec<_>>(),
                "poses": found.poses.iter().map(pose).collect::<Vec<_>>(),
            })
        }
        Some(Answer::Tensor(found)) => {
            let tensor = |t: &proto::Tensor| json!({ "name": t.name, "shape": t.shape });
            json!({ "outputs": found.outputs.iter().map(tensor).collect::<Vec<_>>() })
        }
        Some(Answer::Error(error)) => {
            json!({ "error": { "code": error.code, "reason": reason(error), "message": error.message } })
        }
        None => json!({}),
    };
    value["version"] = json!(result.version);
    value
}
