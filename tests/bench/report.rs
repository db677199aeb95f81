//! The table and `target/bench/summary.json`.

use std::{fs, path::Path};

use serde_json::{Value, json};

/// What a value is held against.
#[derive(Clone, Copy)]
pub(crate) enum Bar {
    AtLeast(f64),
    AtMost(f64),
    Exactly(f64),
}

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
            Self::Exactly(bar) => (value - bar).abs() < 1e-9,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(bar) => format!(">= {bar}"),
            Self::AtMost(bar) => format!("<= {bar}"),
            Self::Exactly(bar) => format!("= {bar}"),
        }
    }
}

/// The lines of a run.
#[derive(Default)]
pub(crate) struct Report(Vec<Value>);

impl Report {
    /// A line for information.
    pub(crate) fn note(&mut self, name: impl Into<String>, value: f64, unit: &str) {
        self.line(name.into(), value, unit, None);
    }

    /// A line with a bar.
    pub(crate) fn held(&mut self, name: impl Into<String>, value: f64, unit: &str, bar: Bar) {
        self.line(name.into(), value, unit, Some(bar));
    }

    fn line(&mut self, name: String, value: f64, unit: &str, bar: Option<Bar>) {
        let holds = bar.map(|bar| bar.holds(value));
        let verdict = match (bar, holds) {
            (Some(bar), Some(true)) => format!("{:12} holds", bar.text()),
            (Some(bar), _) => format!("{:12} MISSED", bar.text()),
            _ => String::new(),
        };
        println!("{name:66} {value:>10.3} {unit:10} {verdict}");
        let bar = bar.map(Bar::text);
        self.0.push(
            json!({ "name": name, "value": value, "unit": unit, "bar": bar, "holds": holds }),
        );
    }

    /// Writes the lines; those of an earlier run that this one did not measure stay.
    pub(crate) fn write(self, path: &Path) -> anyhow::Result<()> {
        let named = |line: &Value, lines: &[Value]| lines.iter().any(|l| l["name"] == line["name"]);
        let earlier = fs::read_to_string(path).unwrap_or_default();
        let earlier: Vec<Value> = serde_json::from_str(&earlier).unwrap_or_default();
        let mut lines: Vec<Value> = earlier
            .into_iter()
            .filter(|line| !named(line, &self.0))
            .collect();
        lines.extend(self.0);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, serde_json::to_string_pretty(&lines)?)?;
        println!("{}", path.display());
        Ok(())
    }
}
