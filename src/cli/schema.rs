//! What the schemas of the code's own types say, for people.

use anyhow::Context;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

/// The JSON Schema of `T`, on its own.
pub(super) fn schema<T: JsonSchema>() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
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
