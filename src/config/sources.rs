//! Where values are from: files, variables and flags, collected by path.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use super::{Config, ConfigError};
use crate::files;

/// Where a value is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A flag on the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Whether a variable, less its `FROSTLINE_`, is one that Kubernetes sets in every pod for a Service whose name begins
/// with `frostline`: `..._SERVICE_HOST`, `..._SERVICE_PORT[_NAME]`, `..._PORT[_8461_TCP[_ADDR|_PORT|_PROTO]]`.
fn is_service_link(rest: &str, value: &str) -> bool {
    let words: Vec<_> = rest.split('_').collect();
    let port = |w: &[&str]| {
        w[0] == "PORT"
            && w[1].bytes().all(|b| b.is_ascii_digit())
            && ["TCP", "UDP", "SCTP"].contains(&w[2])
    };
    words.windows(3).any(port)
        || words.windows(2).any(|w| w == ["SERVICE", "PORT"])
        || words.ends_with(&["SERVICE", "HOST"])
        || words.ends_with(&["PORT"]) && value.contains("://")
}

/// Path, effective value and origin of every setting.
pub type Listing = Vec<(String, String, Origin)>;

/// Collects values from their sources; later ones win.
#[derive(Debug, Default)]
pub struct Builder {
    values: BTreeMap<String, (toml::Value, Origin)>,
}

/// Largest configuration file, bytes.
const MOST_BYTES: u64 = 1 << 20;

impl Builder {
    /// Adds a file.
    ///
    /// # Errors
    /// The file cannot be read or is not TOML.
    pub fn file(&mut self, path: PathBuf) -> Result<(), ConfigError> {
        let fail = |detail: String| ConfigError {
            origin: path.display().to_string(),
            detail,
        };
        let text = files::read_text(&path, MOST_BYTES).map_err(|error| fail(error.to_string()))?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| fail(error.to_string()))?;
        for (section, value) in table {
            match value {
                toml::Value::Table(values) => {
                    for (key, value) in values {
                        let origin = Origin::File(path.clone());
                        self.values
                            .insert(format!("{section}.{key}"), (value, origin));
                    }
                }
                value => {
                    self.values
                        .insert(section, (value, Origin::File(path.clone())));
                }
            }
        }
        Ok(())
    }

    /// Adds the variables that are called `FROSTLINE_<SECTION>_<KEY>`. `FROSTLINE_CONFIG` and
    /// `FROSTLINE_TOKEN` are no settings and left out.
    pub fn variables(&mut self, variables: impl Iterator<Item = (String, String)>) {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix("FROSTLINE_") else {
                continue;
            };
            if rest == "TOKEN" || rest == "CONFIG" || is_service_link(rest, &value) {
                continue;
            }
            let path = rest.to_lowercase().replacen('_', ".", 1);
            self.values
                .insert(path, (scalar(&value), Origin::Variable(name)));
        }
    }

    /// Adds one value from a flag.
    pub fn flag(&mut self, flag: &str, path: &str, value: &str) {
        let origin = Origin::Flag(flag.to_owned());
        self.values.insert(path.to_owned(), (scalar(value), origin));
    }

    /// Whether somebody asks for a log in JSON, whatever becomes of the rest.
    #[must_use]
    pub fn wants_json(&self) -> bool {
        let format = self.values.get("telemetry.format");
        format.is_some_and(|(value, _)| value.as_str() == Some("json"))
    }

    /// The configuration, checked, and each value with its origin.
    ///
    /// # Errors
    /// An unknown path, a value of the wrong type or out of range, with its origin.
    pub fn build(self) -> Result<(Config, Listing), ConfigError> {
        let mut root = toml::Table::new();
        for (path, (value, origin)) in &self.values {
            // One value at a time, so that an error can say where it comes from.
            let one = nest(path, value.clone());
            if let Err(error) = one.clone().try_into::<Config>() {
                let detail = format!("{path}: {}", error.message().trim());
                return Err(ConfigError {
                    origin: origin.to_string(),
                    detail,
                });
            }
            for (section, value) in one {
                let slot = root
                    .entry(section)
                    .or_insert_with(|| toml::Value::Table(toml::Table::new()));
                if let (toml::Value::Table(into), toml::Value::Table(from)) = (slot, value) {
                    into.extend(from);
                }
            }
        }
        let fail = |origin: String, detail: String| ConfigError { origin, detail };
        let config: Config = root.try_into().map_err(|error: toml::de::Error| {
            fail("configuration".to_owned(), error.to_string())
        })?;
        let origin_of = |path: &str| {
            self.values
                .get(path)
                .map_or(Origin::Default, |(_, origin)| origin.clone())
        };
        config.check().map_err(|(path, detail)| {
            fail(origin_of(path).to_string(), format!("{path} {detail}"))
        })?;
        let shown = toml::Table::try_from(&config)
            .map_err(|error| fail("configuration".to_owned(), error.to_string()))?;
        let mut listing = Vec::new();
        for (section, values) in shown {
            for (key, value) in values.as_table().into_iter().flatten() {
                let path = format!("{section}.{key}");
                let origin = origin_of(&path);
                listing.push((path, value.to_string(), origin));
            }
        }
        Ok((config, listing))
    }
}

fn nest(path: &str, value: toml::Value) -> toml::Table {
    let mut table = toml::Table::new();
    match path.split_once('.') {
        Some((section, key)) => {
            let mut inner = toml::Table::new();
            inner.insert(key.to_owned(), value);
            table.insert(section.to_owned(), toml::Value::Table(inner));
        }
        None => {
            table.insert(path.to_owned(), value);
        }
    }
    table
}

/// A number, boolean, list or table where the text is one, else a string.
fn scalar(text: &str) -> toml::Value {
    if text.starts_with(['[', '{'])
        && let Ok(mut table) = toml::from_str::<toml::Table>(&format!("value = {text}"))
        && let Some(value) = table.remove("value")
    {
        return value;
    }
    if let Ok(value) = text.parse::<bool>() {
        return toml::Value::Boolean(value);
    }
    if let Ok(value) = text.parse::<i64>() {
        return toml::Value::Integer(value);
    }
    // Not `inf` and `nan`: no setting takes those.
    if text.starts_with(|c: char| c.is_ascii_digit() || c == '-')
        && let Ok(value) = text.parse::<f64>()
    {
        return toml::Value::Float(value);
    }
    toml::Value::String(text.to_owned())
}
