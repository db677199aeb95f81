//! Logs: how they are written, and their filter, which can change at run time; the audit beside them.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use thiserror::Error;
use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::filter_fn, fmt::MakeWriter, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

/// A filter that `tracing` does not understand.
#[derive(Debug, Error)]
#[error("{filter:?} is not a log filter: {detail}")]
pub struct FilterError {
    filter: String,
    detail: String,
}

/// The filter of the running log.
#[derive(Clone)]
pub struct LogFilter(Arc<Inner>);

struct Inner {
    text: Mutex<String>,
    handle: Option<reload::Handle<EnvFilter, Registry>>,
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFilter").field(&self.get()).finish()
    }
}

impl Default for LogFilter {
    /// A filter that is bound to no log; for a server whose process logs in its own way.
    fn default() -> Self {
        Self(Arc::new(Inner {
            text: Mutex::default(),
            handle: None,
        }))
    }
}

impl LogFilter {
    /// The filter as text.
    #[must_use]
    pub fn get(&self) -> String {
        self.0.text.lock().clone()
    }

    /// Takes another filter from now on.
    ///
    /// # Errors
    /// A text that is not a filter; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), FilterError> {
        let filter = filter.trim();
        let parsed = parse(filter)?;
        let mut text = self.0.text.lock();
        if let Some(handle) = &self.0.handle {
            handle
                .reload(parsed)
                .map_err(|error| fail(filter, &error))?;
        }
        filter.clone_into(&mut text);
        Ok(())
    }
}

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// Text without more.
    Plain,
    /// Text with a terminal's colour codes.
    Coloured,
    /// One JSON object a line.
    Json,
}

/// Writes logs to standard error from now on. What belongs to the [`AUDIT`] goes to the file `audit` instead, if there is
/// one, as JSON.
///
/// # Errors
/// A text that is not a filter, or a process that logs already.
pub fn start(filter: &str, how: Lines, audit: Option<&Path>) -> Result<LogFilter, FilterError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(layer);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // It would tell of a closed standard error there, which panics.
        .log_internal_errors(false);
    let audits = |metadata: &Metadata<'_>| metadata.target() == AUDIT;
    let apart = audit.is_some();
    let told = filter_fn(move |metadata| !(apart && audits(metadata)));
    let lines = match how {
        Lines::Json => {
            let lines = lines.json().flatten_event(true);
            let lines = lines.with_current_span(true).with_span_list(false);
            lines.with_filter(told).boxed()
        }
        _ => {
            let lines = lines.with_ansi(how == Lines::Coloured);
            lines.with_filter(told).boxed()
        }
    };
    let audit = audit.map(|file| {
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(AuditFile(file.to_owned()))
            .log_internal_errors(false);
        let lines = lines.json().flatten_event(true).with_span_list(false);
        lines.with_filter(filter_fn(audits))
    });
    let started = registry.with(lines).with(audit).try_init();
    started.map_err(|error| fail(filter, &error))?;
    Ok(LogFilter(Arc::new(Inner {
        text: Mutex::new(filter.to_owned()),
        handle: Some(handle),
    })))
}

/// The target of lines that tell who changed what: no filter leaves them out.
pub const AUDIT: &str = "frostline::audit";

/// The file of an audit. It is opened for each line, of which there are few: whoever puts it aside need tell nobody.
struct AuditFile(PathBuf);

impl<'a> MakeWriter<'a> for AuditFile {
    type Writer = Box<dyn Write + 'a>;

    fn make_writer(&'a self) -> Self::Writer {
        match open_audit(&self.0) {
            Ok(file) => Box::new(file),
            // A full or missing disk must not take the record along.
            Err(_) => Box::new(io::stderr()),
        }
    }
}

/// Opens the file of an audit to add to it; only its owner may read it.
///
/// # Errors
/// A file that cannot be written.
pub fn open_audit(file: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).open(file)
}

fn parse(filter: &str) -> Result<EnvFilter, FilterError> {
    if filter.is_empty() {
        return Err(fail(filter, &"it is empty"));
    }
    let parsed = EnvFilter::try_new(filter).map_err(|error| fail(filter, &error))?;
    let directive = |text: String| text.parse().map_err(|error| fail(filter, &error));
    // Whoever turns the log off is still seen doing so.
    let parsed = parsed.add_directive(directive(format!("{AUDIT}=info"))?);
    // HTTP/2 warns of frames that callers send, line by line: only where it is asked for by name.
    if filter.contains("h2") {
        return Ok(parsed);
    }
    Ok(parsed.add_directive(directive("h2=error".to_owned())?))
}

fn fail(filter: &str, detail: &dyn fmt::Display) -> FilterError {
    FilterError {
        filter: filter.chars().take(200).collect(),
        detail: detail.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_leaves_the_old_one() {
        let filter = LogFilter::default();
        assert!(filter.set("info,frostline=debug").is_ok());
        for wrong in ["", "frostline=loud", "a=b=c"] {
            assert!(filter.set(wrong).is_err(), "{wrong}");
        }
        assert_eq!(filter.get(), "info,frostline=debug");
    }
}
