//! `frostline reference manifest` and its schemas: what a model repository may hold, read from the code.

use std::fmt::Write;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::schema::{kind, schema, text};
use crate::{
    repository::{BackboneManifest, HeadManifest},
    task::{Key, Output, Postprocess, Task},
};

/// Where a schema says what it is of.
const TITLES: [&str; 2] = ["backbone.toml", "head.toml"];

/// The JSON Schema of `backbone.toml`.
pub(super) fn backbone_schema() -> Value {
    finished(schema::<BackboneManifest>(), TITLES[0])
}

/// The JSON Schema of `head.toml`, with what may be set for which task.
pub(super) fn head_schema() -> anyhow::Result<Value> {
    let mut head = finished(schema::<HeadManifest>(), TITLES[1]);
    let post = head["properties"]["postprocess"]["properties"].as_object_mut();
    let post = post.context("there are no postprocess keys")?;
    for key in Postprocess::keys() {
        let about = post.get_mut(key.name).and_then(Value::as_object_mut);
        let about = about.with_context(|| format!("{} is no key", key.name))?;
        if let Some(range) = &key.range {
            about.insert("minimum".to_owned(), number(*range.start()));
            about.insert("maximum".to_owned(), number(*range.end()));
        }
        if let Some(default) = key.default {
            about.insert("default".to_owned(), number(default));
        }
    }
    check_keys(post)?;
    head["allOf"] = Task::ALL.into_iter().map(rules).collect();
    Ok(head)
}

/// Refuses a field of `[postprocess]` that no task has among its keys: it would be taken for every task, unchecked.
fn check_keys(post: &Map<String, Value>) -> anyhow::Result<()> {
    let keys = Postprocess::keys();
    let stray = post
        .keys()
        .find(|name| !keys.iter().any(|key| key.name == name.as_str()));
    match stray {
        Some(name) => bail!("{name} is a field of a task's Keys, but in no task's Spec.keys"),
        None => Ok(()),
    }
}

/// What else holds for the heads of a task.
fn rules(task: Task) -> Value {
    let own = task.spec().keys;
    let fits = |key: &&Key| own.iter().any(|other| other.name == key.name);
    let foreign = Postprocess::keys().into_iter().filter(|key| !fits(key));
    let foreign: Map<String, Value> = foreign
        .map(|key| (key.name.to_owned(), Value::Bool(false)))
        .collect();
    let required: Vec<&str> = (own.iter())
        .filter(|key| key.required)
        .map(|key| key.name)
        .collect();
    let mut then = json!({ "properties": { "postprocess": { "properties": foreign } } });
    let mut needed = Vec::new();
    if !required.is_empty() {
        then["properties"]["postprocess"]["required"] = json!(required);
        needed.push("postprocess");
    }
    if task.spec().labelled {
        then["properties"]["labels"] = json!({ "minItems": 1 });
        needed.push("labels");
    }
    if !needed.is_empty() {
        then["required"] = json!(needed);
    }
    let of_task = json!({ "properties": { "task": { "const": task } }, "required": ["task"] });
    json!({ "if": of_task, "then": then })
}

/// A number without a fraction that it does not have.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

/// A schema of a TOML file, which has no null.
fn finished(mut schema: Value, title: &str) -> Value {
    without_null(&mut schema);
    schema["title"] = json!(title);
    schema
}

fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Array(kinds)) = map.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [kind] = &kinds[..] {
                    let kind = kind.clone();
                    map.insert("type".to_owned(), kind);
                }
            }
            if let Some(Value::Array(choices)) = map.get_mut("anyOf") {
                choices.retain(|choice| choice["type"] != "null");
                if let [Value::Object(choice)] = &choices[..] {
                    let choice = choice.clone();
                    map.remove("anyOf");
                    choice.into_iter().for_each(|(key, value)| {
                        map.entry(key).or_insert(value);
                    });
                }
            }
            map.remove("format");
            if map.get("default") == Some(&Value::Null) {
                map.remove("default");
            }
            map.values_mut().for_each(without_null);
        }
        Value::Array(values) => values.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// The page `models/MANIFEST.md`.
pub(super) fn page() -> anyhow::Result<String> {
    let mut page = include_str!("manifest/head.md").to_owned();
    page.push_str("\n## `backbone.toml`\n\nUnknown keys are refused, here and in `head.toml`.\n");
    table(&mut page, &backbone_schema(), "")?;
    page.push_str("\n## `head.toml`\n");
    table(&mut page, &head_schema()?, "")?;
    page.push_str(include_str!("manifest/graphs.md"));
    outputs(&mut page)?;
    page.push_str(include_str!("manifest/results.md"));
    Ok(page)
}

/// The keys of a table, then those of the tables in it.
fn table(page: &mut String, schema: &Value, path: &str) -> anyhow::Result<()> {
    let keys = schema["properties"].as_object();
    let keys = keys.with_context(|| format!("{path:?} has no keys"))?;
    let post = path == "postprocess";
    let heading = match post {
        true => "| key | tasks | type | values | default | meaning |\n|---|---|---|---|---|---|",
        false => "| key | type | values | default | meaning |\n|---|---|---|---|---|",
    };
    writeln!(page, "\n{heading}")?;
    let required = schema["required"].as_array();
    let mut choices = String::new();
    for (name, about) in keys {
        let key = Postprocess::keys()
            .into_iter()
            .find(|key| post && key.name == name);
        let tasks = match key {
            Some(key) => format!(" {} |", named(&key.tasks())),
            None => String::new(),
        };
        let needed = required.is_some_and(|names| names.iter().any(|n| n == name))
            || key.is_some_and(|key| key.required);
        let default = match about.get("default") {
            _ if needed => "required".to_owned(),
            Some(Value::Object(_)) | None => "unset".to_owned(),
            Some(value) => format!("`{value}`"),
        };
        let (values, meaning) = (values(about), text(about)?);
        let kind = match table_of(about) {
            Some((_, true)) => "list of tables".to_owned(),
            Some((_, false)) => "table".to_owned(),
            None if is_words(about) => "string".to_owned(),
            None => kind(about),
        };
        writeln!(
            page,
            "| `{name}` |{tasks} {kind} | {values} | {default} | {meaning} |"
        )?;
        for choice in about["oneOf"].as_array().into_iter().flatten() {
            let word = choice["const"].as_str().context("a choice has no name")?;
            writeln!(choices, "- `{name} = \"{word}\"`: {}", text(choice)?)?;
        }
    }
    if !choices.is_empty() {
        write!(page, "\n{choices}")?;
    }
    for (name, about) in keys {
        let Some((inner, many)) = table_of(about) else {
            continue;
        };
        let heading = if many {
            format!("[[{name}]]")
        } else {
            format!("[{name}]")
        };
        writeln!(page, "\n### `{heading}`")?;
        table(page, inner, name)?;
    }
    Ok(())
}

/// The schema of a table with keys of its own, and whether there may be several.
fn table_of(about: &Value) -> Option<(&Value, bool)> {
    let has_keys = |schema: &Value| schema["properties"].is_object();
    if has_keys(about) {
        return Some((about, false));
    }
    has_keys(&about["items"]).then(|| (&about["items"], true))
}

fn is_words(about: &Value) -> bool {
    about["oneOf"].is_array() || about["enum"].is_array()
}

/// What a key's values may be.
fn values(about: &Value) -> String {
    if is_words(about) {
        return kind(about);
    }
    let inner = &about["items"]["items"];
    let (bounds, pattern) = match inner.is_object() {
        true => (inner, &inner["pattern"]),
        false => (about, &about["pattern"]),
    };
    let mut said = match (&bounds["minimum"], &bounds["maximum"]) {
        (Value::Null, Value::Null) => String::new(),
        (least, Value::Null) => format!("at least {least}"),
        (least, most) => format!("{least} to {most}"),
    };
    if let Some(pattern) = pattern.as_str() {
        said = format!("`{pattern}`");
    }
    if about["minItems"] == 1 {
        said = format!("at least one; {said}");
    }
    said.trim_end_matches("; ").to_owned()
}

fn named(tasks: &[Task]) -> String {
    let names: Vec<_> = tasks.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// What heads' graphs must give, by task.
fn outputs(page: &mut String) -> anyhow::Result<()> {
    page.push_str("\n| task | output | type and shape | values |\n|---|---|---|---|\n");
    for task in Task::ALL {
        let (sets, any) = (task.spec().outputs, task.spec().any);
        let mut told: Vec<&Output> = Vec::new();
        for output in sets.iter().copied().flatten() {
            if told.contains(&output) {
                continue;
            }
            told.push(output);
            let (name, element, values) = (output.name, output.element, output.values);
            let when = output.when;
            let shape = output.shape.join(", ");
            writeln!(
                page,
                "| {task} | `{name}`{when} | {element} `[N, {shape}]` | {values} |"
            )?;
        }
        if sets.is_empty() {
            let (kinds, values) = any;
            writeln!(
                page,
                "| {task} | of any names and number | {kinds} | {values} |"
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_field_without_its_row_of_keys_is_noticed() {
        let mut post: Map<String, Value> = Postprocess::keys()
            .iter()
            .map(|key| (key.name.to_owned(), Value::Null))
            .collect();
        assert!(check_keys(&post).is_ok() && head_schema().is_ok());
        post.insert("min_size".to_owned(), Value::Null);
        let error = check_keys(&post).unwrap_err().to_string();
        assert!(error.contains("min_size"), "{error}");
    }
}
