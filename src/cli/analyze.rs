//! Commands that call a server: one that runs elsewhere, or one of their own on a free loopback port.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use tokio::{net::TcpListener, sync::oneshot};

use crate::{
    client::{self, Client},
    config::Config,
    engine::Engine,
    media::{self, Image, draw},
    proto::{self, head_result::Result as Answer},
    server,
    task::Rle,
};

/// Which server to ask.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// A running server, such as http://127.0.0.1:8461; unset: one is started for this command alone.
    #[arg(long, value_name = "URL")]
    addr: Option<String>,
}

/// Any heads on images or on one clip.
#[derive(Debug, Args)]
pub(super) struct Analyze {
    #[command(flatten)]
    target: Target,
    /// Image files.
    images: Vec<PathBuf>,
    /// A folder with a clip's frames, taken by name.
    #[arg(long, value_name = "DIR", conflicts_with = "images")]
    clip: Option<PathBuf>,
    /// Heads to run; all that fit if none is named.
    #[arg(long = "head", value_name = "NAME")]
    heads: Vec<String>,
    /// Folder for annotated pictures.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// One head on images or on one clip.
#[derive(Debug, Args)]
pub(super) struct Single {
    #[command(flatten)]
    target: Target,
    /// Image files, or a clip's frames or their folder.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The head; may be left out where one fits.
    #[arg(long, default_value = "")]
    head: String,
}

pub(super) fn heads(config: &Config, target: &Target) -> anyhow::Result<()> {
    with_client(config, target, async |mut client| {
        let answer = client
            .model
            .list_heads(proto::ListHeadsRequest {})
            .await?
            .into_inner();
        for head in answer.heads {
            let task = head
                .task()
                .as_str_name()
                .trim_start_matches("TASK_")
                .to_lowercase();
            println!(
                "{}  {}  {task}  {} labels",
                head.name,
                head.version,
                head.labels.len()
            );
        }
        Ok(())
    })
}

pub(super) fn analyze(config: &Config, command: &Analyze) -> anyhow::Result<()> {
    ensure!(
        command.clip.is_some() || !command.images.is_empty(),
        "name images or --clip DIR"
    );
    let heads: Vec<&str> = command.heads.iter().map(String::as_str).collect();
    if let Some(out) = &command.out {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    }
    with_client(config, &command.target, async |mut client| {
        if let Some(folder) = &command.clip {
            let files = frames(std::slice::from_ref(folder))?;
            let frames = read_all(&files)?;
            let answer = client.analyze_clip(frames, &heads).await?;
            let last = files.last().context("the clip has no frame")?;
            return show(folder, last, &answer, command.out.as_deref());
        }
        for file in &command.images {
            let answer = client.analyze_image(read(file)?, &heads).await;
            let answer = answer.with_context(|| file.display().to_string())?;
            show(file, file, &answer, command.out.as_deref())?;
        }
        Ok(())
    })
}

pub(super) fn detect(config: &Config, command: &Single) -> anyhow::Result<()> {
    with_client(config, &command.target, async |mut client| {
        for file in &command.files {
            let image = Some(client::encoded(read(file)?));
            let head = command.head.clone();
            let request = proto::DetectRequest {
                image,
                head,
                ..Default::default()
            };
            let answer = client.vision.detect(request).await?.into_inner();
            println!("{}", file.display());
            print_detections(&answer.result.unwrap_or_default());
        }
        Ok(())
    })
}

pub(super) fn segment(config: &Config, command: &Single) -> anyhow::Result<()> {
    with_client(config, &command.target, async |mut client| {
        for file in &command.files {
            let image = Some(client::encoded(read(file)?));
            let head = command.head.clone();
            let request = proto::SegmentRequest {
                image,
                head,
                ..Default::default()
            };
            let answer = client.vision.segment(request).await?.into_inner();
            println!("{}", file.display());
            print_segments(&answer.result.unwrap_or_default());
        }
        Ok(())
    })
}

pub(super) fn recognize(config: &Config, command: &Single) -> anyhow::Result<()> {
    with_client(config, &command.target, async |mut client| {
        let clip = client::clip(read_all(&frames(&command.files)?)?);
        let request = proto::RecognizeActionRequest {
            input: Some(proto::recognize_action_request::Input::Clip(clip)),
            head: command.head.clone(),
            options: None,
        };
        let answer = client.vision.recognize_action(request).await?.into_inner();
        print_labels(&answer.result.unwrap_or_default());
        Ok(())
    })
}

/// Runs `body` with a client of the target, or of a server on a free loopback port that ends with the command.
fn with_client(
    config: &Config,
    target: &Target,
    body: impl AsyncFnOnce(Client) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let executor = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    executor.block_on(async {
        if let Some(address) = &target.addr {
            return body(Client::connect(address).await?).await;
        }
        let runtime = super::runtime(config)?;
        let repository = super::repository(config)?;
        let engine = Arc::new(Engine::start(&runtime, &repository, config.engine())?);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = format!("http://{}", listener.local_addr()?);
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            // A dropped sender means the same as a message.
            let _ = stopped.await;
        };
        let serving = tokio::spawn(server::serve(listener, engine, config.server(), shutdown));
        let result = body(Client::connect(&address).await?).await;
        drop(stop);
        serving.await??;
        result
    })
}

fn read(file: &Path) -> anyhow::Result<Bytes> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(bytes.into())
}

fn read_all(files: &[PathBuf]) -> anyhow::Result<Vec<Bytes>> {
    files.iter().map(|file| read(file)).collect()
}

/// The files themselves, or those of the one folder that is named, in the order of their names.
fn frames(files: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let [folder] = files else {
        return Ok(files.to_vec());
    };
    if !folder.is_dir() {
        return Ok(files.to_vec());
    }
    let mut frames = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        frames.push(entry?.path());
    }
    frames.sort();
    if frames.is_empty() {
        bail!("{} has no frames", folder.display());
    }
    Ok(frames)
}

fn show(
    name: &Path,
    picture: &Path,
    answer: &proto::AnalyzeResponse,
    out: Option<&Path>,
) -> anyhow::Result<()> {
    println!("{}", name.display());
    for result in &answer.results {
        match &result.result {
            Some(Answer::Detection(found)) => print_detections(found),
            Some(Answer::Segmentation(map)) => print_segments(map),
            Some(Answer::Classification(top)) => print_labels(top),
            Some(Answer::Tensors(tensors)) => {
                for tensor in &tensors.tensors {
                    println!("  {} {:?}", tensor.name, tensor.shape);
                }
            }
            Some(Answer::Error(error)) => println!("  {}: {}", result.head, error.message),
            None => {}
        }
    }
    if let Some(made) = &answer.provenance {
        let timing = made.timing.unwrap_or_default();
        let (rows, us) = (made.backbone_rows, timing.total_us);
        println!(
            "  backbone ran on {rows} image(s); {:.1} ms in all",
            us as f64 / 1e3
        );
    }
    if let Some(out) = out {
        let stem = name.file_stem().unwrap_or_default().to_string_lossy();
        let path = out.join(format!("{stem}.png"));
        let image = annotate(&fs::read(picture)?, answer)?;
        fs::write(&path, media::encode_png(&image)?)?;
        println!("  {}", path.display());
    }
    Ok(())
}

fn print_detections(found: &proto::DetectionResult) {
    for detection in &found.detections {
        let b = detection.bbox.unwrap_or_default();
        println!(
            "  {:.2}  {}  [{:.1}, {:.1}, {:.1}, {:.1}]",
            detection.score, detection.name, b.x_min, b.y_min, b.x_max, b.y_max
        );
    }
}

fn print_segments(map: &proto::SegmentationResult) {
    let all = f64::from(map.width) * f64::from(map.height);
    let mut segments: Vec<_> = map.segments.iter().collect();
    segments.sort_by_key(|segment| std::cmp::Reverse(segment.pixels));
    for segment in segments {
        println!(
            "  {:4.1} %  {}",
            100.0 * segment.pixels as f64 / all,
            segment.name
        );
    }
}

fn print_labels(top: &proto::ClassificationResult) {
    for scored in &top.top {
        println!("  {:.2}  {}", scored.probability, scored.name);
    }
}

/// The picture with everything that was found in it.
fn annotate(encoded: &[u8], answer: &proto::AnalyzeResponse) -> anyhow::Result<Image> {
    let mut image = media::decode(encoded, &media::Limits::default())?;
    let size = (image.width().min(image.height()) as f32 / 28.0).clamp(11.0, 28.0);
    let results = || {
        answer
            .results
            .iter()
            .filter_map(|result| result.result.as_ref())
    };
    for result in results() {
        if let Answer::Segmentation(map) = result {
            let labels = image_labels(&map.png)?;
            draw::tint_labels(&mut image, &labels, 0.35);
            let mut largest: Vec<_> = map.segments.iter().collect();
            largest.sort_by_key(|segment| std::cmp::Reverse(segment.pixels));
            for (line, segment) in largest.iter().take(6).enumerate() {
                let top = i64::from(image.height()) - ((line + 1) as f32 * size * 1.5) as i64;
                draw::tag(
                    &mut image,
                    (4, top),
                    &segment.name,
                    size * 0.8,
                    draw::color(segment.label),
                );
            }
        }
    }
    for result in results() {
        let Answer::Detection(found) = result else {
            continue;
        };
        for detection in found.detections.iter().rev() {
            let color = draw::color(detection.label);
            if let Some(mask) = &detection.mask {
                let rle = Rle::from_coco_string(mask.height, mask.width, &mask.counts)?;
                draw::tint(&mut image, &rle.to_rows(), color, 0.45);
            }
            let b = detection.bbox.unwrap_or_default();
            draw::outline(&mut image, [b.x_min, b.y_min, b.x_max, b.y_max], 2, color);
            let text = format!("{} {:.2}", detection.name, detection.score);
            let top = b.y_min as i64 - (size * 1.3) as i64;
            draw::tag(&mut image, (b.x_min as i64, top), &text, size, color);
        }
    }
    for result in results() {
        let Answer::Classification(top) = result else {
            continue;
        };
        for (line, scored) in top.top.iter().take(3).enumerate() {
            let text = format!("{} {:.2}", scored.name, scored.probability);
            let at = (4, 4 + (line as f32 * size * 1.5) as i64);
            draw::tag(&mut image, at, &text, size, [40, 40, 40]);
        }
    }
    Ok(image)
}

/// A label map's PNG as labels, row by row.
fn image_labels(png: &[u8]) -> anyhow::Result<Vec<u16>> {
    let gray = media::decode(png, &media::Limits::default())?;
    Ok(gray
        .data()
        .iter()
        .step_by(3)
        .map(|&level| u16::from(level))
        .collect())
}
