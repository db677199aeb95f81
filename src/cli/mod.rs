//! Commands. Each reads as a list of steps; a bad configuration ends it before any port is bound.

mod analyze;
mod check;
mod serve;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::{
    backend::Runtime,
    config::{Builder, Config, LogFormat, Origin},
    repository::Repository,
};

/// One frozen vision backbone, many light heads, one gRPC service.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Settings {
    /// Configuration file (TOML).
    #[arg(long, global = true, env = "FROSTLINE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Model repository; the embedded demo models if unset.
    #[arg(long, global = true, value_name = "DIR")]
    repository: Option<String>,
    /// Any setting, such as engine.max_batch=4.
    #[arg(long = "set", global = true, value_name = "PATH=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Serve {
        /// Address and port; port 0 takes a free one.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<String>,
    },
    /// Check a model repository and print what it holds and how fast it runs here.
    Check {
        /// The folder; the embedded demo models if unset.
        dir: Option<PathBuf>,
    },
    /// Print the effective configuration and where each value is from.
    Config,
    /// List a server's heads.
    Heads(analyze::Target),
    /// Run every head that fits, or those named, on images or on a clip.
    Analyze(analyze::Analyze),
    /// Detect objects in images.
    Detect(analyze::Single),
    /// Label every pixel of images.
    Segment(analyze::Single),
    /// Recognize the action in a clip: frames in order, or one folder of them.
    Recognize(analyze::Single),
}

/// Runs the command line; the process's exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("frostline: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let listen = match &cli.command {
        Command::Serve { listen } => listen.as_deref(),
        _ => None,
    };
    let (config, listing) = load(&cli.settings, listen)?;
    log(&config)?;
    match cli.command {
        Command::Serve { .. } => serve::run(config),
        Command::Check { dir } => {
            let path = dir.or_else(|| config.repository.path.clone());
            check::run(&Config {
                repository: crate::config::Repository { path },
                ..config
            })
        }
        Command::Config => {
            print(&listing);
            Ok(())
        }
        Command::Heads(target) => analyze::heads(&config, &target),
        Command::Analyze(command) => analyze::analyze(&config, &command),
        Command::Detect(command) => analyze::detect(&config, &command),
        Command::Segment(command) => analyze::segment(&config, &command),
        Command::Recognize(command) => analyze::recognize(&config, &command),
    }
}

type Listing = Vec<(String, String, Origin)>;

fn load(settings: &Settings, listen: Option<&str>) -> anyhow::Result<(Config, Listing)> {
    let mut builder = Builder::default();
    if let Some(file) = &settings.config {
        builder.file(file.clone())?;
    }
    builder.variables(std::env::vars());
    for pair in &settings.set {
        let (path, value) = pair
            .split_once('=')
            .with_context(|| format!("--set {pair:?} is not of the form PATH=VALUE"))?;
        builder.flag("--set", path, value);
    }
    if let Some(repository) = &settings.repository {
        builder.flag("--repository", "repository.path", repository);
    }
    if let Some(listen) = listen {
        builder.flag("--listen", "server.listen", listen);
    }
    Ok(builder.build()?)
}

fn log(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.telemetry.log)
        .with_context(|| format!("telemetry.log: {:?} is not a filter", config.telemetry.log))?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.telemetry.format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

fn print(listing: &Listing) {
    let width = |column: fn(&(String, String, Origin)) -> usize| {
        listing.iter().map(column).max().unwrap_or(0)
    };
    let (paths, values) = (width(|row| row.0.len()), width(|row| row.1.len()));
    for (path, value, origin) in listing {
        println!("{path:paths$}  {value:values$}  {origin}");
    }
}

fn runtime(config: &Config) -> anyhow::Result<Runtime> {
    Ok(Runtime::load(config.device.library.as_deref())?)
}

fn repository(config: &Config) -> anyhow::Result<Repository> {
    Ok(match &config.repository.path {
        Some(path) => Repository::open(path)?,
        None => Repository::embedded()?,
    })
}
