//! Logs: how they are written, and their filter, which can change at run time.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use thiserror::Error;
use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
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

/// Writes logs to standard error from now on, as text or as one JSON object a line.
///
/// # Errors
/// A text that is not a filter, or a process that logs already.
pub fn start(filter: &str, json: bool) -> Result<LogFilter, FilterError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(layer);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // It would tell of a closed standard error there, which panics.
        .log_internal_errors(false);
    let started = match json {
        true => {
            let lines = lines
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false);
            registry.with(lines).try_init()
        }
        false => registry.with(lines).try_init(),
    };
    started.map_err(|error| fail(filter, &error))?;
    Ok(LogFilter(Arc::new(Inner {
        text: Mutex::new(filter.to_owned()),
        handle: Some(handle),
    })))
}

/// The target of lines that tell who changed what: no filter leaves them out.
pub const AUDIT: &str = "frostline::audit";

fn parse(filter: &str) -> Result<EnvFilter, FilterError> {
    if filter.is_empty() {
        return Err(fail(filter, &"it is empty"));
    }
    let parsed = EnvFilter::try_new(filter).map_err(|error| fail(filter, &error))?;
    // Whoever turns the log off is still seen doing so.
    let always = format!("{AUDIT}=info").parse();
    Ok(parsed.add_directive(always.map_err(|error| fail(filter, &error))?))
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
