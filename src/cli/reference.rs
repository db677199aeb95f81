//! `frostline reference`: every setting, metric, error reason and bound, read from the code.

use std::fmt::Write;

use anyhow::Context;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use super::manifest;
use crate::{
    config::Config,
    error::Kind,
    metrics::{self, DEFINITIONS},
    server,
};

/// What can be printed.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub(super) enum Page {
    /// Every setting, metric, error reason and bound.
    #[default]
    Settings,
    /// The JSON Schema of the configuration file.
    ConfigSchema,
    /// What a model repository may hold.
    Manifest,
    /// The JSON Schema of backbone.toml.
    BackboneSchema,
    /// The JSON Schema of head.toml.
    HeadSchema,
}

/// The text of `page`.
pub(super) fn text_of(page: Page) -> anyhow::Result<String> {
    let schema = match page {
        Page::Settings => return settings_page(),
        Page::ConfigSchema => schema::<Config>(),
        Page::Manifest => return manifest::page(),
        Page::BackboneSchema => manifest::backbone_schema(),
        Page::HeadSchema => manifest::head_schema()?,
    };
    Ok(serde_json::to_string_pretty(&schema)? + "\n")
}

fn settings_page() -> anyhow::Result<String> {
    let mut page = String::from(
        "# Reference\n\n\
         Made by `make reference` (`frostline reference`) from the code; a test holds it to that.\n\n\
         - [Settings](#settings)\n- [Metrics](#metrics)\n- [Errors](#errors)\n- [Fixed bounds](#fixed-bounds)\n",
    );
    settings(&mut page)?;
    metrics(&mut page)?;
    errors(&mut page)?;
    bounds(&mut page)?;
    Ok(page)
}

pub(super) fn schema<T: JsonSchema>() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

fn settings(page: &mut String) -> anyhow::Result<()> {
    page.push_str(
        "\n## Settings\n\n\
         A setting stands in the file (`--config FILE` or `FROSTLINE_CONFIG`) as a key of its section, is overridden by its \
         environment variable, and that by `--set SECTION.KEY=VALUE`. Unknown keys and variables are refused. \
         `frostline config` prints what is in force and where each value is from.\n",
    );
    let schema = schema::<Config>();
    let defaults = toml::Table::try_from(Config::default())?;
    let sections = schema["properties"].as_object();
    for (section, about) in sections.context("the configuration has no sections")? {
        writeln!(page, "\n### `[{section}]`\n\n{}\n", text(about)?)?;
        page.push_str("| key | variable | type | default | meaning |\n|---|---|---|---|---|\n");
        let keys = about["properties"].as_object();
        for (key, about) in keys.with_context(|| format!("{section} has no settings"))? {
            let default = defaults.get(section).and_then(|values| values.get(key));
            let default = default.map_or("unset".to_owned(), |value| format!("`{value}`"));
            let variable = format!("FROSTLINE_{section}_{key}").to_uppercase();
            let (kind, about) = (kind(about), text(about)?);
            writeln!(
                page,
                "| `{key}` | `{variable}` | {kind} | {default} | {about} |"
            )?;
        }
    }
    Ok(())
}

/// What a setting's values are.
pub(super) fn kind(schema: &Value) -> String {
    if let Some(choices) = schema["oneOf"].as_array() {
        let words = choices.iter().filter_map(|choice| choice["const"].as_str());
        return words
            .map(|w| format!("`{w}`"))
            .collect::<Vec<_>>()
            .join(", ");
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().filter_map(Value::as_str);
        return words
            .map(|w| format!("`{w}`"))
            .collect::<Vec<_>>()
            .join(", ");
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let kinds = choices.iter().filter(|choice| choice["type"] != "null");
        return kinds.map(kind).collect::<Vec<_>>().join(" or ");
    }
    let names = match &schema["type"] {
        Value::String(name) => vec![name.as_str()],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let names = names.into_iter().filter(|name| *name != "null");
    let named = names.map(|name| match name {
        "array" => match kind(&schema["items"]).strip_prefix("list of ") {
            Some(inner) => format!("list of lists of {inner}"),
            None => format!("list of {}s", kind(&schema["items"])),
        },
        "object" => match schema["additionalProperties"].as_object() {
            Some(_) => format!("table of {}s", kind(&schema["additionalProperties"])),
            None => "table".to_owned(),
        },
        name => name.to_owned(),
    });
    named.collect::<Vec<_>>().join(" or ")
}

/// A description on one line.
pub(super) fn text(schema: &Value) -> anyhow::Result<String> {
    let text = schema["description"]
        .as_str()
        .context("something has no description")?;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(line.replace('|', "\\|"))
}

fn metrics(page: &mut String) -> anyhow::Result<()> {
    page.push_str(
        "\n## Metrics\n\n\
         Scraped from `/metrics` of the admin port (`telemetry.admin`), in the OpenMetrics text format.\n\n\
         | name | kind | labels | meaning |\n|---|---|---|---|\n",
    );
    for metric in DEFINITIONS {
        let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
        let (name, kind, labels) = (metric.name, metric.kind.name(), labels.join(", "));
        writeln!(page, "| `{name}` | {kind} | {labels} | {} |", metric.help)?;
    }
    Ok(())
}

fn errors(page: &mut String) -> anyhow::Result<()> {
    page.push_str(
        "\n## Errors\n\n\
         Each error carries its reason in `google.rpc.ErrorInfo` (domain `frostline.v1`), the field at fault in \
         `google.rpc.BadRequest`, and where a later try may succeed the time until then in `google.rpc.RetryInfo`.\n\n\
         | reason | gRPC code | meaning |\n|---|---|---|\n",
    );
    let schema = schema::<Kind>();
    let kinds = schema["oneOf"].as_array().context("there are no errors")?;
    for about in kinds {
        let reason = about["const"].as_str().context("an error has no name")?;
        let kind = Kind::ALL.iter().find(|kind| kind.reason() == reason);
        let kind = kind.with_context(|| format!("{reason} is not among Kind::ALL"))?;
        let code = server::code_name(*kind);
        writeln!(page, "| `{reason}` | `{code}` | {} |", text(about)?)?;
    }
    Ok(())
}

fn bounds(page: &mut String) -> anyhow::Result<()> {
    page.push_str(
        "\n## Fixed bounds\n\nBeside the settings of `[limits]` and `[server]`:\n\n| what | bound |\n|---|---|\n",
    );
    for (what, bound) in [
        (
            "detections asked for, `max_detections`",
            server::MAX_DETECTIONS.to_string(),
        ),
        ("labels asked for, `top_k`", server::MAX_TOP_K.to_string()),
        (
            "bytes of a caller's `x-request-id`",
            server::MAX_REQUEST_ID.to_string(),
        ),
        (
            "bytes of a log filter sent to the admin port",
            server::MAX_LOG_FILTER.to_string(),
        ),
        (
            "callers by name in the metrics",
            metrics::MAX_IDENTITIES.to_string(),
        ),
    ] {
        writeln!(page, "| {what} | {bound} |")?;
    }
    Ok(())
}
