//! Numbers taken when somebody asks.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

use super::definitions::{self, Kind};

type Labels = Vec<(&'static str, String)>;

/// Values of counters and gauges at one moment.
#[derive(Debug, Default)]
pub struct Sample(BTreeMap<&'static str, Vec<(Labels, f64)>>);

impl Sample {
    /// Adds a value without labels.
    pub fn add(&mut self, name: &'static str, value: f64) {
        self.labelled(name, Vec::new(), value);
    }

    /// Adds one series of a metric.
    pub fn labelled(&mut self, name: &'static str, labels: Labels, value: f64) {
        self.0.entry(name).or_default().push((labels, value));
    }
}

impl Collector for Sample {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for definition in definitions::DEFINITIONS {
            let Some(series) = self.0.get(definition.name) else {
                continue;
            };
            let name = definition.name;
            let kind = match definition.kind {
                Kind::Counter => MetricType::Counter,
                _ => MetricType::Gauge,
            };
            let (name, unit) = super::parts(name);
            // The registry ends a sentence, and so does this.
            let help = format!("{}.", definition.help);
            let mut metric = encoder.encode_descriptor(name, &help, unit.as_ref(), kind)?;
            for (labels, value) in series {
                if labels.is_empty() {
                    put(&mut metric, definition.kind, *value)?;
                } else {
                    put(&mut metric.encode_family(labels)?, definition.kind, *value)?;
                }
            }
        }
        Ok(())
    }
}

fn put(metric: &mut MetricEncoder<'_>, kind: Kind, value: f64) -> Result<(), fmt::Error> {
    match kind {
        Kind::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
        _ => metric.encode_gauge(&value),
    }
}
