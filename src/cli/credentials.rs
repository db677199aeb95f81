//! What a command brings to a server that asks who calls, and `frostline token`, which makes it.

use std::{
    fs::{self, File, OpenOptions},
    io::{IsTerminal, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::Args;

use crate::{
    client::Credentials,
    files,
    server::{Grant, new_token},
};

/// Credentials on the command line.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Flags {
    /// File with the token to send: a key or a JSON Web Token. FROSTLINE_TOKEN holds one as well.
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// Authorities that the server's certificate may come from, PEM; the system's if unset.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The client's certificate chain, PEM.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Name that the server's certificate must have; the address's host if unset.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

impl Flags {
    /// Whether an authority is named.
    pub(super) fn trust(&self) -> bool {
        self.ca.is_some()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// One that cannot be read.
    pub(super) fn read(&self) -> anyhow::Result<Credentials> {
        let bytes = |path: &PathBuf| {
            files::read(path, MOST_BYTES).with_context(|| format!("cannot read {}", path.display()))
        };
        let token = match &self.token {
            Some(path) => {
                let text = String::from_utf8(bytes(path)?);
                let text = text.with_context(|| format!("{} holds no token", path.display()))?;
                Some(text.trim().to_owned())
            }
            None => std::env::var("FROSTLINE_TOKEN").ok(),
        };
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((bytes(cert)?, bytes(key)?)),
            _ => None,
        };
        Ok(Credentials {
            token,
            authorities: self.ca.as_ref().map(bytes).transpose()?,
            identity,
            server_name: self.server_name.clone(),
        })
    }
}

/// Largest file of keys or certificates, bytes.
const MOST_BYTES: u64 = 4 << 20;

/// A new token.
#[derive(Debug, Args)]
pub(super) struct Token {
    /// Whom it stands for: letters, digits, dots, hyphens and underscores.
    name: String,
    /// Key file to add its entry to (see auth.keys); unset: the entry is printed to standard error.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Heads that it may use, such as objects,team-*; unset: what auth.heads says.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    heads: Option<Vec<String>>,
    /// Methods that it may call, such as VisionService/*; unset: what auth.methods says.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    methods: Option<Vec<String>>,
    /// Calls a second; 0 for no bound.
    #[arg(long)]
    rate: Option<f64>,
    /// Calls at once after a pause.
    #[arg(long)]
    burst: Option<u32>,
    /// Calls under way at once; 0 for no bound.
    #[arg(long)]
    concurrency: Option<usize>,
    /// Pixels of images a second; 0 for no bound.
    #[arg(long)]
    pixels: Option<f64>,
}

/// Makes a token, prints it, and keeps its hash.
pub(super) fn token(command: Token) -> anyhow::Result<()> {
    let grant = Grant {
        heads: command.heads,
        methods: command.methods,
        rate: command.rate,
        burst: command.burst,
        concurrency: command.concurrency,
        pixels: command.pixels,
    };
    let (token, entry) = new_token(&command.name, grant)?;
    let entry = format!("[[key]]\n{}", toml::to_string(&entry)?);
    match &command.file {
        Some(file) => append(file, &entry)?,
        None => complain!("{}", entry.trim_end()),
    }
    say!("{token}");
    if std::io::stdout().is_terminal() {
        complain!("this is the only time that it is shown");
    }
    Ok(())
}

/// Adds `entry` to `file` in one step, so that a server that watches it never reads half of one.
fn append(file: &Path, entry: &str) -> anyhow::Result<()> {
    let place = || format!("cannot write {}", file.display());
    let (mut text, mode) = match files::read_text(file, MOST_BYTES) {
        Ok(text) => (text, fs::metadata(file)?.permissions().mode() & 0o777),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => (String::new(), 0o600),
        Err(error) => return Err(error).with_context(place),
    };
    toml::from_str::<toml::Table>(&text)
        .with_context(|| format!("{} is not a key file", file.display()))?;
    if !text.is_empty() {
        text.push_str(if text.ends_with('\n') { "\n" } else { "\n\n" });
    }
    text.push_str(entry);
    let name = file.file_name().context("the key file has no name")?;
    let beside = file.with_file_name(format!(".{}.new", name.to_string_lossy()));
    let mut options = OpenOptions::new();
    let mut new: File = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .with_context(|| format!("cannot write {}", beside.display()))?;
    let written = new
        .write_all(text.as_bytes())
        .and_then(|()| new.sync_all())
        .and_then(|()| fs::rename(&beside, file));
    if written.is_err() {
        // Nothing is left behind; the first error is the one to tell.
        let _ = fs::remove_file(&beside);
    }
    written.with_context(place)?;
    ensure!(file.exists(), "{} is gone", file.display());
    Ok(())
}
