//! `frostline reference`: every setting, metric, error reason and bound, read from the code.

use std::fmt::Write;

use anyhow::Context;

use super::{
    manifest,
    schema::{kind, schema, text},
};
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
