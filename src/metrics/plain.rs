//! Prometheus' own older text format.

use std::collections::HashSet;

/// What a line that may have an exemplar begins with.
const TRACED: &str = "frostline_call_duration_seconds_bucket{";

/// OpenMetrics as [`Metrics::render`](super::Metrics::render) writes it, in Prometheus' own older text format: counters are called by their whole
/// name, and there are no units, exemplars and end.
#[must_use]
pub fn plain(text: &str) -> String {
    let counters: HashSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut plain = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => continue,
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                plain.extend(["# ", what, " ", name, "_total ", rest]);
            }
            (Some("#"), ..) => plain.push_str(line),
            // Others have no exemplars, and values of labels that may hold anything.
            _ if line.starts_with(TRACED) => {
                plain.push_str(line.split_once(" # {").map_or(line, |(series, _)| series));
            }
            _ => plain.push_str(line),
        }
        plain.push('\n');
    }
    plain
}
