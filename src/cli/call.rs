//! Commands that call a server: one that runs elsewhere, or one of their own on a free loopback port.

use std::{
    collections::VecDeque,
    fs,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use super::{
    Partial,
    annotate::annotate,
    input::{Input, Skipped},
    show,
};
use crate::{
    client::{self, Client},
    config::Config,
    engine::Engine,
    media,
    proto::{self, head_result::Outcome as Answer},
    repository::OnBadHead,
    server,
};

/// Which server to ask.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// A running server, such as http://127.0.0.1:8461; unset: one is started for this command alone.
    #[arg(long, value_name = "URL")]
    pub(super) addr: Option<String>,
    #[command(flatten)]
    pub(super) credentials: super::credentials::Flags,
}

/// How answers are shown.
#[derive(Debug, Args)]
pub(super) struct Output {
    /// Print one JSON object per input instead of a table.
    #[arg(long)]
    json: bool,
    /// Annotated pictures: a file ending in .png for one input, a folder for several.
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Requests in flight at once.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
}

/// Any heads on images and clips.
#[derive(Debug, Args)]
pub(super) struct Analyze {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
    /// Image files, or folders of them.
    images: Vec<PathBuf>,
    /// A folder with a clip's frames, taken by name; may be given several times.
    #[arg(long, value_name = "DIR")]
    clip: Vec<PathBuf>,
    /// Heads to run; all that fit if none is named. May be given several times.
    #[arg(long = "head", value_name = "NAME")]
    heads: Vec<String>,
}

/// One head on images or clips.
#[derive(Debug, Args)]
pub(super) struct Single {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
    /// Image files or folders of them; for a clip its folder, or its frames in order.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The head; may be left out where one fits.
    #[arg(long, default_value = "", value_name = "NAME")]
    head: String,
}

/// What is asked of each input.
#[derive(Debug, Clone)]
enum Ask {
    Analyze(Vec<String>),
    Detect(String),
    Segment(String),
    Recognize(String),
}

pub(super) fn heads(config: &Config, target: &Target) -> anyhow::Result<()> {
    with_client(config, target, async |mut client| {
        let (heads, failed) = client.heads().await?;
        for head in heads {
            let task = head
                .task()
                .as_str_name()
                .trim_start_matches("HEAD_TASK_")
                .to_lowercase();
            let labels = head.labels.len();
            say!(
                "{:16} {:12} {task:24} {labels} labels",
                head.name,
                head.version
            );
        }
        for head in failed {
            let serves = match head.serving_version {
                None => "does not serve".to_owned(),
                Some(version) => format!("serves {version} still"),
            };
            let why = head.error.unwrap_or_default().message;
            say!("{:16} {serves}: {why}", head.name);
        }
        Ok(())
    })
}

pub(super) fn analyze(config: &Config, command: &Analyze) -> anyhow::Result<()> {
    let mut skipped = Skipped::default();
    let mut inputs = Input::clips(&command.clip, &mut skipped)?;
    if inputs.is_empty() || !command.images.is_empty() {
        inputs.extend(Input::images(&command.images, &mut skipped)?);
    }
    let ask = Ask::Analyze(command.heads.clone());
    let (target, output) = (&command.target, &command.output);
    call(config, target, output, (inputs, skipped), &ask)
}

pub(super) fn detect(config: &Config, command: &Single) -> anyhow::Result<()> {
    let mut skipped = Skipped::default();
    let inputs = Input::images(&command.files, &mut skipped)?;
    call(
        config,
        &command.target,
        &command.output,
        (inputs, skipped),
        &Ask::Detect(command.head.clone()),
    )
}

pub(super) fn segment(config: &Config, command: &Single) -> anyhow::Result<()> {
    let mut skipped = Skipped::default();
    let inputs = Input::images(&command.files, &mut skipped)?;
    call(
        config,
        &command.target,
        &command.output,
        (inputs, skipped),
        &Ask::Segment(command.head.clone()),
    )
}

pub(super) fn recognize(config: &Config, command: &Single) -> anyhow::Result<()> {
    let mut skipped = Skipped::default();
    let inputs = Input::clips(&command.files, &mut skipped)?;
    call(
        config,
        &command.target,
        &command.output,
        (inputs, skipped),
        &Ask::Recognize(command.head.clone()),
    )
}

/// Asks for every input, several at once, and shows the answers in order; one that fails does not end the others.
fn call(
    config: &Config,
    target: &Target,
    output: &Output,
    (inputs, skipped): (Vec<Input>, Skipped),
    ask: &Ask,
) -> anyhow::Result<()> {
    let pictures = output
        .out
        .as_deref()
        .map(|out| Pictures::new(out, inputs.len()))
        .transpose()?;
    with_client(config, target, async |client| {
        let bar = progress(inputs.len(), output.json);
        let all = inputs.len();
        let (mut waiting, mut flying) = (VecDeque::from(inputs), VecDeque::new());
        let mut failed = 0;
        loop {
            while flying.len() < usize::from(output.jobs)
                && let Some(input) = waiting.pop_front()
            {
                let task: JoinHandle<_> =
                    tokio::spawn(one(client.clone(), input.clone(), ask.clone()));
                flying.push_back((input, task));
            }
            let Some((input, task)) = flying.pop_front() else {
                break;
            };
            let name = input.name().display().to_string();
            let shown = task.await?.and_then(|(frames, answer)| {
                bar.suspend(|| show(&name, output, pictures.as_ref(), &input, &frames, &answer))
            });
            match shown {
                Ok(()) => {}
                // Nobody reads the answers any more: no more of them are asked for.
                Err(error) if super::broken_pipe(&error) => {
                    flying.iter().for_each(|(_, task)| task.abort());
                    bar.finish_and_clear();
                    return Err(error);
                }
                Err(error) => {
                    failed += 1;
                    let said = super::said(&error);
                    bar.suspend(|| complain!("frostline: {name}: {said}"));
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        if let Some(skipped) = skipped.told() {
            complain!("frostline: {skipped}");
        }
        if failed > 0 {
            return Err(Partial { failed, all }.into());
        }
        Ok(())
    })
}

fn show(
    name: &str,
    output: &Output,
    pictures: Option<&Pictures>,
    input: &Input,
    frames: &[bytes::Bytes],
    answer: &proto::AnalyzeResponse,
) -> anyhow::Result<()> {
    let picture = match pictures {
        Some(pictures) => Some(pictures.write(input, frames, answer)?),
        None => None,
    };
    let mut out = std::io::stdout().lock();
    if output.json {
        let mut object = show::json(name, answer);
        if let Some(path) = picture {
            object["picture"] = path.display().to_string().into();
        }
        writeln!(out, "{object}")?;
    } else {
        write!(out, "{}", show::text(name, answer))?;
        if let Some(path) = picture {
            writeln!(out, "  -> {}", path.display())?;
        }
    }
    Ok(())
}

async fn one(
    mut client: Client,
    input: Input,
    ask: Ask,
) -> anyhow::Result<(Vec<bytes::Bytes>, proto::AnalyzeResponse)> {
    let frames = input.read()?;
    let image = || frames.first().cloned().map(client::encoded);
    let answer = match ask {
        Ask::Analyze(heads) => {
            let names: Vec<&str> = heads.iter().map(String::as_str).collect();
            match &input {
                Input::Image(_) => {
                    let image = frames.first().cloned().unwrap_or_default();
                    client.analyze_image(image, &names).await?
                }
                Input::Clip(..) => client.analyze_clip(frames.clone(), &names).await?,
            }
        }
        Ask::Detect(head) => {
            let request = proto::DetectRequest {
                image: image(),
                head,
                ..Default::default()
            };
            let a = client.vision.detect(request).await?.into_inner();
            single(
                a.head,
                a.version,
                a.result.map(Answer::Detection),
                a.provenance,
                a.image_size,
            )
        }
        Ask::Segment(head) => {
            let request = proto::SegmentRequest {
                image: image(),
                head,
                ..Default::default()
            };
            let a = client.vision.segment(request).await?.into_inner();
            single(
                a.head,
                a.version,
                a.result.map(Answer::Segmentation),
                a.provenance,
                a.image_size,
            )
        }
        Ask::Recognize(head) => {
            let clip = proto::recognize_action_request::Input::Clip(client::clip(frames.clone()));
            let request = proto::RecognizeActionRequest {
                input: Some(clip),
                head,
                ..Default::default()
            };
            let a = client.vision.recognize_action(request).await?.into_inner();
            single(
                a.head,
                a.version,
                a.result.map(Answer::Classification),
                a.provenance,
                a.image_size,
            )
        }
    };
    Ok((frames, answer))
}

/// The answer of one head, in the form of many.
fn single(
    head: String,
    version: String,
    outcome: Option<Answer>,
    provenance: Option<proto::Provenance>,
    image_size: Option<proto::ImageSize>,
) -> proto::AnalyzeResponse {
    let results = vec![proto::HeadResult {
        head,
        version,
        outcome,
    }];
    proto::AnalyzeResponse {
        results,
        provenance,
        image_size,
    }
}

/// Where annotated pictures go.
struct Pictures {
    path: PathBuf,
    file: bool,
}

impl Pictures {
    fn new(out: &Path, inputs: usize) -> anyhow::Result<Self> {
        let file = out.extension().is_some_and(|extension| extension == "png");
        ensure!(
            !file || inputs == 1,
            "--out: {} is one file, and there are {inputs} inputs",
            out.display()
        );
        let folder = if file {
            out.parent().unwrap_or(Path::new(""))
        } else {
            out
        };
        if folder != Path::new("") {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(Self {
            path: out.to_owned(),
            file,
        })
    }

    fn write(
        &self,
        input: &Input,
        frames: &[bytes::Bytes],
        answer: &proto::AnalyzeResponse,
    ) -> anyhow::Result<PathBuf> {
        let path = if self.file {
            self.path.clone()
        } else {
            let stem = input
                .name()
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy();
            self.path.join(format!("{stem}.png"))
        };
        let picture = media::encode_png(&annotate(frames, answer)?)?;
        fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// A bar on the terminal where there are many inputs and someone looks.
fn progress(inputs: usize, json: bool) -> ProgressBar {
    let bar = ProgressBar::new(inputs as u64);
    let seen = std::io::stderr().is_terminal() && (json || inputs > 4);
    bar.set_draw_target(if seen {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    });
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len}  {per_sec}  {eta} left") {
        bar.set_style(style);
    }
    bar
}

/// Runs `body` with a client of the target, or of a server on a free loopback port that ends with the command.
pub(super) fn with_client(
    config: &Config,
    target: &Target,
    body: impl AsyncFnOnce(Client) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let executor = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    executor.block_on(async {
        if let Some(address) = &target.addr {
            let credentials = target.credentials.read()?;
            return body(Client::connect_with(address, &credentials).await?).await;
        }
        let runtime = super::runtime(config)?;
        let repository = super::repository(config, OnBadHead::Refuse)?;
        let engine = Arc::new(Engine::start(&runtime, &repository, config.engine())?);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = format!("http://{}", listener.local_addr()?);
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            // A dropped sender means the same as a message.
            let _ = stopped.await;
        };
        // Nobody else can know of this server: what guards a lasting one is not asked for.
        let own = server::ServerConfig {
            tls: None,
            auth: None,
            ..config.server()
        };
        let serving = tokio::spawn(server::serve(listener, engine, own, shutdown));
        let result = body(Client::connect(&address).await?).await;
        drop(stop);
        serving.await??;
        result
    })
}
