//! Commands. Each reads as a list of steps; a bad configuration ends it before any port is bound.

/// A line on standard output. Whoever reads it may stop reading: an error, not a panic.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($part)*)?
    }};
}

/// A line on standard error. Nobody may read it: then it is lost, as the reader wants it.
macro_rules! complain {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        // There is nowhere left to tell of it.
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

mod annotate;
mod call;
mod check;
mod credentials;
mod health;
mod input;
mod manifest;
mod preflight;
mod reference;
mod room;
mod schema;
mod serve;
mod show;
mod systemd;
mod track;

use std::{
    io::IsTerminal,
    path::PathBuf,
    process::ExitCode,
    sync::{LazyLock, OnceLock},
};

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::{
    COMMIT, VERSION,
    backend::{BackendError, LIBRARY_VERSION, Runtime},
    client::{self, ConnectError},
    config::{Builder, Config, ConfigError, Listing, LogFormat, Origin},
    engine::{self, EngineConfig, Trial},
    repository::{OnBadHead, Repository, RepositoryError},
    telemetry::{self, Lines, LogFilter},
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  a wrong command line or configuration
  3  the server cannot be reached
  4  the model repository is refused
  5  some inputs failed, the others are done

Every setting can also be given as FROSTLINE_<SECTION>_<KEY> or in a file; `frostline config` lists them.";

/// One frozen vision backbone, many light heads, one gRPC service.
#[derive(Debug, Parser)]
#[command(version = version(), about, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

/// What `--version` says: version, commit, and the library that would be loaded.
fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let library = match Runtime::locate() {
            Ok(path) => format!("at {}", path.display()),
            Err(_) => "not found".to_owned(),
        };
        format!("{VERSION}\ncommit {COMMIT}\nONNX Runtime {LIBRARY_VERSION} {library}")
    });
    &TEXT
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
    /// Whether the log has colours; auto: on a terminal, unless NO_COLOR is set.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: Color,
    /// Any setting, such as engine.max_batch=4.
    #[arg(long = "set", global = true, value_name = "PATH=VALUE")]
    set: Vec<String>,
}

/// Whether the log has colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Wherever it goes.
    Always,
    /// Nowhere.
    Never,
}

impl Color {
    /// How a log in text is written to standard error.
    fn lines(self) -> Lines {
        // As no-color.org has it: set and not empty.
        let asked_not = || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let coloured = match self {
            Self::Auto => std::io::stderr().is_terminal() && !asked_not(),
            Self::Always => true,
            Self::Never => false,
        };
        if coloured {
            Lines::Coloured
        } else {
            Lines::Plain
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Serve {
        /// Address and port, or a list such as ["a:1", "b:2"]; port 0 takes a free one.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<String>,
        /// Address and port for probes, metrics and the log's filter; none if unset.
        #[arg(long, value_name = "ADDRESS")]
        admin: Option<String>,
    },
    /// Check a model repository and print what it holds and how fast it runs here.
    Check {
        /// The folder; the embedded demo models if unset.
        dir: Option<PathBuf>,
    },
    /// Print a shell's completions; for bash: source <(frostline completions bash)
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print a reference page or schema.
    Reference {
        /// Which one.
        #[arg(value_enum, default_value_t)]
        page: reference::Page,
    },
    /// Print the effective configuration and where each value is from.
    Config {
        /// Try what it names instead: read every file, bind every port, hold keys against certificates.
        #[arg(long)]
        check: bool,
    },
    /// Ask a server whether it serves; exits with 0 if it does.
    Health(health::Health),
    /// List a server's heads.
    Heads(call::Target),
    /// Make a token for a caller, to stdout, and the entry for the server's key file, which holds its hash alone.
    Token(credentials::Token),
    /// Run every head that fits, or those named, on images or on a clip.
    Analyze(call::Analyze),
    /// Detect objects in images.
    Detect(call::Single),
    /// Label every pixel of images.
    Segment(call::Single),
    /// Recognize the action in a clip: frames in order, or one folder of them.
    Recognize(call::Single),
    Track(track::Track),
}

/// Whether the log, which has begun, is in JSON: then the last words are too.
static JSON: OnceLock<bool> = OnceLock::new();

/// Runs the command line; the process's exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has enough of it.
        Err(error) if broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let (code, error) = (code(&error), said(&error));
            match JSON.get() {
                Some(true) => tracing::error!(error, code, "ended"),
                _ => complain!("frostline: {error}"),
            }
            ExitCode::from(code)
        }
    }
}

/// An error and what led to it, in one line.
fn said(error: &anyhow::Error) -> String {
    match error.chain().find_map(client::refusal) {
        Some(refusal) => refusal,
        None => format!("{error:#}"),
    }
}

/// Some of a command's inputs failed, each with its own message.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of {all} inputs failed")]
struct Partial {
    failed: usize,
    all: usize,
}

/// Writes a whole text to standard output.
fn out(text: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    out.flush()
}

/// Whether whoever read standard output has stopped.
fn broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The exit code that tells scripts what kind of failure it was.
fn code(error: &anyhow::Error) -> u8 {
    let is = |kind: fn(&(dyn std::error::Error + 'static)) -> bool| error.chain().any(kind);
    if is(|e| e.is::<ConfigError>()) {
        2
    } else if is(|e| e.is::<ConnectError>()) {
        3
    } else if is(|e| e.is::<RepositoryError>() || refused(e)) {
        4
    } else if error
        .downcast_ref::<Partial>()
        .is_some_and(|p| p.failed < p.all)
    {
        5
    } else {
        1
    }
}

/// A graph that is not what its manifest says, or none at all.
fn refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<BackendError>();
    error.is_some_and(BackendError::refuses_graph)
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let mut flags = Vec::new();
    if let Command::Serve { listen, admin } = &cli.command {
        let given = [
            ("--listen", "server.listen", listen),
            ("--admin", "telemetry.admin", admin),
        ];
        flags.extend(
            given
                .into_iter()
                .filter_map(|(flag, path, value)| value.clone().map(|value| (flag, path, value))),
        );
    }
    let (mut config, listing) = load(&cli.settings, &flags)?;
    let unset = |path: &str| {
        listing
            .iter()
            .any(|row| row.0 == path && row.2 == Origin::Default)
    };
    if !matches!(cli.command, Command::Serve { .. }) && unset("telemetry.log") {
        "warn".clone_into(&mut config.telemetry.log);
    }
    let json = config.telemetry.format == LogFormat::Json;
    // Only a server has something to put on record.
    let serves = matches!(cli.command, Command::Serve { .. });
    let audit = config.telemetry.audit_file().filter(|_| serves);
    let lines = if json {
        Lines::Json
    } else {
        cli.settings.color.lines()
    };
    let log = telemetry::start(&config.telemetry.log, lines, audit);
    let wrong = |error: telemetry::FilterError| {
        ConfigError::settings(&[("telemetry.log", error.to_string())])
    };
    let log = log.map_err(wrong)?;
    // What is left was said by whoever began it; nobody else does.
    let _ = JSON.set(json);
    carry_out(cli, config, &listing, log, flags)
}

/// Does what the command says.
fn carry_out(
    cli: Cli,
    config: Config,
    listing: &Listing,
    log: LogFilter,
    flags: Vec<Flag>,
) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve { .. } => {
            let settings = cli.settings;
            serve::run(config, log, move || {
                let (config, _) = load(&settings, &flags)?;
                Ok(config.telemetry.log)
            })
        }
        Command::Check { dir } => {
            let path = dir.or_else(|| config.repository.path.clone());
            check::run(&Config {
                repository: crate::config::Repository {
                    path,
                    ..config.repository
                },
                ..config
            })
        }
        Command::Completions { shell } => {
            // It panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "frostline", &mut script);
            out(&script)?;
            Ok(())
        }
        Command::Reference { page } => {
            out(reference::text_of(page)?.as_bytes())?;
            Ok(())
        }
        Command::Config { check: true } => preflight::check(&config),
        Command::Config { check: false } => {
            print(listing)?;
            room::tell(&config)?;
            Ok(())
        }
        Command::Health(command) => health::health(&config, &command),
        Command::Heads(target) => call::heads(&config, &target),
        Command::Token(command) => credentials::token(command),
        Command::Analyze(command) => call::analyze(&config, &command),
        Command::Detect(command) => call::detect(&config, &command),
        Command::Segment(command) => call::segment(&config, &command),
        Command::Recognize(command) => call::recognize(&config, &command),
        Command::Track(command) => track::track(&command),
    }
}

/// A command's own flag, the setting that it sets, and the value.
type Flag = (&'static str, &'static str, String);

fn load(settings: &Settings, flags: &[Flag]) -> anyhow::Result<(Config, Listing)> {
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
    for (flag, path, value) in flags {
        builder.flag(flag, path, value);
    }
    let json = builder.wants_json();
    builder.build().map_err(|error| {
        // There is no log yet to say it in.
        if json && telemetry::start("error", Lines::Json, None).is_ok() {
            let _ = JSON.set(true);
        }
        error.into()
    })
}

fn print(listing: &Listing) -> std::io::Result<()> {
    let width = |column: fn(&(String, String, Origin)) -> usize| {
        listing.iter().map(column).max().unwrap_or(0)
    };
    let (paths, values) = (width(|row| row.0.len()), width(|row| row.1.len()));
    for (path, value, origin) in listing {
        say!("{path:paths$}  {value:values$}  {origin}");
    }
    Ok(())
}

fn runtime(config: &Config) -> anyhow::Result<Runtime> {
    let runtime = Runtime::load(config.device.library.as_deref())?;
    let runtime = runtime.on(&config.device())?;
    let device = runtime.device();
    tracing::info!(device = device.summary(), "runs on");
    tracing::debug!(reason = device.reason(), "it runs there for this reason");
    Ok(runtime)
}

/// The runtime on the device that serves the repository best, where the configuration leaves that open, and the trial that
/// found it.
fn placed(
    config: &Config,
    runtime: &Runtime,
    repository: &Repository,
    engine: &EngineConfig,
) -> anyhow::Result<(Runtime, Option<Trial>)> {
    let (runtime, trial) = engine::choose(runtime, repository, engine, &config.trial())?;
    if let Some(trial) = &trial {
        for one in &trial.tried {
            let (way, verdict) = (one.name(), &one.verdict);
            let (images_per_second, batch) = one.rate.unwrap_or_default();
            let (ratio, remembered) = (one.ratio, trial.remembered);
            tracing::info!(
                way,
                images_per_second,
                batch,
                ratio,
                remembered,
                verdict,
                "tried"
            );
        }
        let took_ms = trial.took.as_secs_f64() * 1e3;
        let device = runtime.device().summary();
        tracing::info!(
            device,
            took_ms,
            remembered = trial.remembered,
            "runs on, by trial"
        );
    }
    Ok((runtime, trial))
}

/// The repository; its bad heads are refused or not as the configuration says, or else as `otherwise`.
fn repository(config: &Config, otherwise: OnBadHead) -> anyhow::Result<Repository> {
    let on_bad_head = config.repository.on_bad_head.unwrap_or(otherwise);
    Ok(match &config.repository.path {
        Some(path) => Repository::open_on(path, on_bad_head)?,
        None => Repository::embedded()?,
    })
}
