//! Images and clips reach a head as `models/GEOMETRY.md` says: the cases that the models' tests read too.

use std::{collections::HashMap, fs, path::Path};

use bytes::Bytes;
use frostline::{
    media::{self, Filter, Preprocess, ResizeMode, RgbView},
    proto::{self, LabelMapFormat},
    repository::Repository,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::support::{Running, one_lane, png};

#[derive(Deserialize)]
struct Cases {
    images: Vec<ImageCase>,
    clips: Vec<ClipCase>,
}

#[derive(Deserialize)]
struct ImageCase {
    image: [u32; 2],
    input: [u32; 2],
    resize: String,
    #[serde(default)]
    filter: Option<String>,
    #[serde(default)]
    pad: Option<u8>,
    #[serde(default)]
    crop_fraction: Option<f64>,
    resized: (u32, u32),
    offset: (i64, i64),
    seen: [u32; 4],
    mean: f64,
    sha256: String,
}

impl ImageCase {
    fn preprocess(&self) -> Preprocess {
        Preprocess {
            mode: match self.resize.as_str() {
                "letterbox" => ResizeMode::Letterbox,
                "stretch" => ResizeMode::Stretch,
                "center_crop" => ResizeMode::CenterCrop {
                    fraction: self.crop_fraction.unwrap_or(1.0),
                },
                other => panic!("{other}"),
            },
            filter: match self.filter.as_deref() {
                None | Some("bilinear") => Filter::Bilinear,
                Some("bicubic") => Filter::Bicubic,
                Some(other) => panic!("{other}"),
            },
            pad: self.pad.unwrap_or(114),
            width: self.input[0],
            height: self.input[1],
        }
    }
}

#[derive(Deserialize)]
struct ClipCase {
    clip: usize,
    frames: usize,
    frame_stride: Option<usize>,
    read: Vec<usize>,
}

fn cases() -> Cases {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/geometry/cases.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The generator's picture: slopes, edges and some noise.
fn picture(width: u32, height: u32) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    for y in 0..u64::from(height) {
        for x in 0..u64::from(width) {
            for c in 0..3 {
                let mixed = (x * 2_654_435_761 + y * 40_503 + c * 97) % (1 << 32);
                let slope = x * 3 + y * 5 + c * 85 + (x / 7 + y / 5) % 2 * 90;
                pixels.push(((slope + (mixed >> 16) % 32) % 256) as u8);
            }
        }
    }
    pixels
}

#[test]
fn every_image_of_the_specification_is_fitted_to_the_bit() {
    let cases = cases().images;
    assert!(cases.len() >= 300);
    for case in cases {
        let [width, height] = case.image;
        let how = case.preprocess();
        let what = format!("{width}x{height} by {how:?}");
        let geometry = media::geometry(width, height, &how);
        assert_eq!(geometry.resized(), case.resized, "{what}");
        assert_eq!(geometry.offset(), case.offset, "{what}");
        let seen = geometry.seen();
        let seen = [seen.left, seen.right, seen.top, seen.bottom];
        assert_eq!(seen, case.seen, "{what}");
        let pixels = picture(width, height);
        let view = RgbView::new(width, height, &pixels).unwrap();
        let mut row = vec![0; case.input[0] as usize * case.input[1] as usize * 3];
        assert_eq!(
            media::preprocess_into(view, &how, &mut row).unwrap(),
            geometry
        );
        let mean = row.iter().map(|&level| f64::from(level)).sum::<f64>() / row.len() as f64;
        assert!((mean - case.mean).abs() < 1e-5, "{what}: mean {mean}");
        assert_eq!(
            Sha256::digest(&row)[..],
            hex(&case.sha256)[..],
            "{what}: the pixels differ"
        );
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

#[test]
fn every_clip_of_the_specification_is_read_alike() {
    let cases = cases().clips;
    assert!(cases.len() >= 300);
    for case in cases {
        let read = media::sample_frames(case.clip, case.frames, case.frame_stride);
        assert_eq!(
            read, case.read,
            "{} of {}, stride {:?}",
            case.frames, case.clip, case.frame_stride
        );
    }
    assert!(media::sample_frames(0, 8, Some(2)).is_empty());
}

/// The demo repository with other lines in its manifests.
fn changed(file: &str, from: &str, to: &str) -> (tempfile::TempDir, Repository) {
    let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo"));
    let folder = tempfile::tempdir().unwrap();
    let mut files = vec!["backbone.toml".to_owned(), "backbone.onnx".to_owned()];
    for head in ["scene", "motion"] {
        fs::create_dir_all(folder.path().join("heads").join(head)).unwrap();
        files.extend(["toml", "onnx"].map(|kind| format!("heads/{head}/head.{kind}")));
    }
    for name in files {
        fs::copy(demo.join(&name), folder.path().join(&name)).unwrap();
    }
    let path = folder.path().join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
    let repository = Repository::open(folder.path()).unwrap();
    (folder, repository)
}

fn refusal(to: &str) -> String {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/backbone.toml"));
    let text = text.unwrap().replacen("resize = \"letterbox\"", to, 1);
    match frostline::repository::BackboneManifest::parse("backbone.toml", &text) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_crop_fraction_is_for_centre_crops_and_a_share() {
    for share in ["0.1", "0.875", "1.0"] {
        let crop = format!("resize = \"center_crop\"\ncrop_fraction = {share}");
        assert_eq!(refusal(&crop), "accepted");
    }
    for share in ["0.0", "-0.5", "1.01", "nan", "inf"] {
        let said = refusal(&format!(
            "resize = \"center_crop\"\ncrop_fraction = {share}"
        ));
        assert!(
            said.contains("input.crop_fraction") && said.contains("0.1 to 1"),
            "{said}"
        );
    }
    let said = refusal("resize = \"stretch\"\ncrop_fraction = 0.875");
    assert!(
        said.contains("input.crop_fraction") && said.contains("stretch"),
        "{said}"
    );
}

/// The label map of a picture, and the answer that it came in.
async fn segmented(
    client: &mut frostline::client::Client,
    image: Bytes,
    format: LabelMapFormat,
) -> proto::SegmentationResult {
    let request = proto::SegmentRequest {
        image: Some(frostline::client::encoded(image)),
        head: "scene".to_owned(),
        options: Some(proto::SegmentationOptions {
            format: format.into(),
        }),
        ..Default::default()
    };
    client
        .vision
        .segment(request)
        .await
        .unwrap()
        .into_inner()
        .result
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_centre_crop_cuts_away_has_no_label() {
    let crop = "resize = \"center_crop\"\ncrop_fraction = 0.8";
    let (_folder, repository) = changed("backbone.toml", "resize = \"letterbox\"", crop);
    let server = Running::start_of(&repository, one_lane()).await;
    let mut client = server.client().await;
    // 300x200: covered are 160x160, so 240x160, of which 128x128 from (56, 16) are seen; per pixel 0.8.
    // Centres at (x + 0.5) * 0.8 from 56 on and before 184 are columns 70 to 229; rows 20 to 179.
    let image = png(300, 200, 3);
    let answer = segmented(&mut client, image.clone(), LabelMapFormat::Png).await;
    let map = image::load_from_memory(&answer.png).unwrap().into_luma8();
    assert_eq!((map.width(), map.height()), (300, 200));
    let mut counts = HashMap::new();
    for (x, y, image::Luma([label])) in map.enumerate_pixels() {
        let inside = (70..230).contains(&x) && (20..180).contains(&y);
        assert_eq!(*label != 255, inside, "({x}, {y}) is {label}");
        if inside {
            *counts.entry(u32::from(*label)).or_insert(0_u64) += 1;
        }
    }
    let told: HashMap<u32, u64> = answer
        .segments
        .iter()
        .map(|s| (s.class_index, u64::from(s.pixels)))
        .collect();
    assert_eq!(told, counts);
    let masks = segmented(&mut client, image, LabelMapFormat::Rle)
        .await
        .segments;
    assert_eq!(masks.iter().map(|s| s.pixels).sum::<u32>(), 160 * 160);
    assert!(
        masks
            .iter()
            .all(|segment| segment.class_index < 27 && segment.mask.is_some())
    );
    server.stop().await;
}

/// The head's probabilities, by label.
async fn recognized(client: &mut frostline::client::Client, frames: Vec<Bytes>) -> Vec<f32> {
    let options = proto::ClassificationOptions { top_k: Some(10) };
    let request = proto::RecognizeActionRequest {
        input: Some(proto::recognize_action_request::Input::Clip(
            frostline::client::clip(frames),
        )),
        head: "motion".to_owned(),
        options: Some(options),
        ..Default::default()
    };
    let answer = client
        .vision
        .recognize_action(request)
        .await
        .unwrap()
        .into_inner();
    let mut chances = vec![0.0; 10];
    for scored in answer.result.unwrap().top {
        chances[scored.class_index as usize] = scored.probability;
    }
    chances
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clip_is_read_at_the_heads_stride() {
    // 8 frames, 3 apart, span 22 frames.
    let stride = "frames = 8\nframe_stride = 3";
    let (_folder, repository) = changed("heads/motion/head.toml", "frames = 8", stride);
    let server = Running::start_of(&repository, one_lane()).await;
    let mut client = server.client().await;
    let listed = client
        .model
        .list_heads(proto::ListHeadsRequest::default())
        .await
        .unwrap();
    let heads = listed.into_inner().heads;
    let head = heads.iter().find(|head| head.name == "motion").unwrap();
    assert_eq!((head.frames, head.frame_stride), (8, Some(3)));
    for (count, read) in [
        (30, [4, 7, 10, 13, 16, 19, 22, 25]),
        (22, [0, 3, 6, 9, 12, 15, 18, 21]),
        // Too short for the stride: the middles of equal parts.
        (20, [1, 3, 6, 8, 11, 13, 16, 18]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, [0, 0, 0, 1, 1, 2, 2, 2]),
    ] {
        let clip: Vec<_> = (0..count).map(|i| png(160, 120, 40 * i + 1)).collect();
        let chosen: Vec<_> = read.iter().map(|&i: &usize| clip[i].clone()).collect();
        let (whole, alone) = (
            recognized(&mut client, clip).await,
            recognized(&mut client, chosen).await,
        );
        for (a, b) in whole.iter().zip(&alone) {
            assert!(
                (a - b).abs() < 1e-4,
                "{count} frames: {whole:?} is not {alone:?}"
            );
        }
    }
    server.stop().await;
}
