//! What the dashboard and the rules ask for exists in what a running server is scraped for.

use std::{collections::BTreeSet, fs};

use frostline::{error::Kind, metrics::DEFINITIONS};
use promql_parser::{
    label::MatchOp,
    parser::{Expr, VectorSelector, parse},
    util::{ExprVisitor, walk_expr},
};
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use crate::{
    observe::{Observed, scrape, tight, traffic, value},
    support::one_lane,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/observability");

/// Every query, with where it stands.
fn panels() -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("{FOLDER}/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let query = query
                .replace("$__rate_interval", "5m")
                .replace("$job", ".*")
                .replace("$instance", ".*")
                .replace("$head", ".*");
            found.push((format!("panel {title:?}"), query));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            let inner = query.strip_prefix("label_values(").unwrap();
            let (selector, label) = inner.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
            let selector = selector.replace("$job", ".*");
            found.push((
                format!("variable {label:?}"),
                format!("sum by ({label}) ({selector})"),
            ));
        }
    }
    assert!(found.len() > 40, "{} queries", found.len());
    found
}

/// The names that rules record, and every rule's query.
fn rules() -> (BTreeSet<String>, Vec<(String, String)>) {
    let text = fs::read_to_string(format!("{FOLDER}/rules.yml")).unwrap();
    let documents = YamlLoader::load_from_str(&text).unwrap();
    let (mut records, mut found) = (BTreeSet::new(), Vec::new());
    for group in documents[0]["groups"].as_vec().unwrap() {
        for rule in group["rules"].as_vec().unwrap() {
            if let Yaml::String(name) = &rule["record"] {
                records.insert(name.clone());
            }
            let name = rule["record"].as_str().or(rule["alert"].as_str()).unwrap();
            let query = rule["expr"].as_str().unwrap().to_owned();
            found.push((format!("rule {name}"), query));
        }
    }
    assert!(found.len() > 15, "{} rules", found.len());
    (records, found)
}

#[derive(Default)]
struct Selectors(Vec<VectorSelector>);

impl ExprVisitor for Selectors {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        match expr {
            Expr::VectorSelector(selector) => self.0.push(selector.clone()),
            Expr::MatrixSelector(selector) => self.0.push(selector.vs.clone()),
            _ => {}
        }
        Ok(true)
    }
}

fn selectors(place: &str, query: &str) -> Vec<VectorSelector> {
    let expr = parse(query).unwrap_or_else(|error| panic!("{place}: {error}: {query}"));
    let mut found = Selectors::default();
    walk_expr(&mut found, &expr).unwrap();
    assert!(!found.0.is_empty() || query.contains("vector("), "{place}");
    found.0
}

/// The values that a label of a fixed set has beside those scraped: what a healthy server has not.
fn rare(metric: &str, label: &str) -> Vec<&'static str> {
    let codes = [
        "CANCELLED",
        "UNKNOWN",
        "DEADLINE_EXCEEDED",
        "RESOURCE_EXHAUSTED",
        "UNAVAILABLE",
        "INTERNAL",
        "DATA_LOSS",
    ];
    match (metric, label) {
        (name, "code") if name.starts_with("frostline_call_") => codes.to_vec(),
        (name, "code") if name.starts_with("frostline_stage_") => {
            Kind::ALL.iter().map(|kind| kind.reason()).collect()
        }
        ("frostline_head_loads_total", "result") => vec!["failed"],
        _ => Vec::new(),
    }
}

/// What is wrong with a selector, given what was scraped.
fn fault(selector: &VectorSelector, records: &BTreeSet<String>, text: &str) -> Option<String> {
    let name = selector.name.clone()?;
    // Prometheus itself makes `up`, and recorded names are checked where they are made.
    if name == "up" || records.contains(&name) {
        return None;
    }
    let lines: Vec<_> = text
        .lines()
        .filter(|line| {
            let rest = line.strip_prefix(&name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .collect();
    if lines.is_empty() {
        return Some(format!("{name} was not scraped"));
    }
    let known = |label: &str| {
        let family = DEFINITIONS.iter().find(|d| name.starts_with(d.name));
        family.is_some_and(|definition| definition.labels.contains(&label))
    };
    for matcher in &selector.matchers.matchers {
        let label = matcher.name.as_str();
        // Scraping adds these.
        if label == "job" || label == "instance" {
            continue;
        }
        if !known(label) && label != "le" {
            return Some(format!("{name} has no label {label}"));
        }
        let wanted: Vec<_> = match &matcher.op {
            MatchOp::Equal => vec![matcher.value.as_str()],
            MatchOp::Re(_) if !matcher.value.contains('*') => matcher.value.split('|').collect(),
            _ => continue,
        };
        for value in wanted {
            let series = format!("{label}=\"{value}\"");
            let exists = lines.iter().any(|line| line.contains(&series));
            if !exists && !rare(&name, label).contains(&value) {
                return Some(format!("{name} has no series with {series}"));
            }
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn every_series_that_a_panel_or_a_rule_names_is_scraped() {
    let observed = Observed::start(tight()).await;
    traffic(&observed.server).await;
    let text = scrape(observed.admin).await;
    observed.server.stop().await;
    let (records, rules) = rules();
    let mut faults = Vec::new();
    for (place, query) in panels().into_iter().chain(rules) {
        for selector in selectors(&place, &query) {
            let found = fault(&selector, &records, &text);
            faults.extend(found.map(|fault| format!("{place}: {fault}")));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    // The check sees what is wrong.
    for (wrong, why) in [
        ("frostline_call_seconds_count", "was not scraped"),
        (
            "frostline_refused_total{cause=\"full\"}",
            "has no label cause",
        ),
        (
            "frostline_backbone_runs_saved_total{reason=\"luck\"}",
            "has no series",
        ),
        (
            "frostline_stage_duration_seconds_count{code=\"BAD\"}",
            "has no series",
        ),
    ] {
        let selector = &selectors("wrong", wrong)[0];
        let fault = fault(selector, &records, &text).unwrap_or_default();
        assert!(fault.contains(why), "{wrong}: {fault:?}");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let text = fs::read_to_string(format!("{FOLDER}/../OPERATIONS.md")).unwrap();
    let (_, rules) = rules();
    let alerts: BTreeSet<_> = rules
        .iter()
        .filter_map(|(place, _)| place.strip_prefix("rule "))
        .filter(|name| !name.contains(':'))
        .collect();
    let books: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("### Frostline"))
        .map(|rest| rest.trim())
        .collect();
    let named: BTreeSet<_> = alerts
        .iter()
        .filter_map(|a| a.strip_prefix("Frostline"))
        .collect();
    assert_eq!(books, named);
}

#[test]
fn the_reference_page_is_what_the_code_says() {
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_frostline"))
        .arg("reference")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let page = fs::read_to_string(format!("{FOLDER}/../REFERENCE.md")).unwrap();
    let made = String::from_utf8(made.stdout).unwrap();
    assert!(page == made, "deploy/REFERENCE.md is old: make reference");
    for (what, file) in [
        ("manifest", "MANIFEST.md"),
        ("backbone-schema", "schema/backbone.schema.json"),
        ("head-schema", "schema/head.schema.json"),
    ] {
        let made = std::process::Command::new(env!("CARGO_BIN_EXE_frostline"))
            .args(["reference", what])
            .output()
            .unwrap();
        let page = fs::read_to_string(format!("{FOLDER}/../../models/{file}")).unwrap();
        let made = String::from_utf8(made.stdout).unwrap();
        assert!(page == made, "models/{file} is old: make reference");
    }
    for metric in DEFINITIONS {
        assert!(
            page.contains(&format!("`{}`", metric.name)),
            "{}",
            metric.name
        );
    }
    for kind in Kind::ALL {
        assert!(
            page.contains(&format!("| `{}` |", kind.reason())),
            "{kind:?}"
        );
    }
}

/// Without it a rule would be about other people's processes, and the chart could not put its own name there.
#[test]
fn every_selector_of_the_rules_names_the_job() {
    let (_, found) = rules();
    for (place, query) in found {
        for selector in selectors(&place, &query) {
            let matchers = &selector.matchers.matchers;
            let job = matchers.iter().find(|matcher| matcher.name == "job");
            let named = job.is_some_and(|job| job.op == MatchOp::Equal && job.value == "frostline");
            assert!(named, "{place}: {selector}");
        }
    }
}

/// An increase is only seen from a number that was there before: of what alerts count, everything is there at 0.
#[tokio::test(flavor = "multi_thread")]
async fn what_alerts_count_is_there_before_it_happens() {
    let observed = Observed::start(one_lane()).await;
    let text = scrape(observed.admin).await;
    for service in [
        "frostline.v1.VisionService",
        "inference.GRPCInferenceService",
    ] {
        for code in [
            "INTERNAL",
            "UNKNOWN",
            "DATA_LOSS",
            "UNAVAILABLE",
            "RESOURCE_EXHAUSTED",
            "DEADLINE_EXCEEDED",
        ] {
            let series = format!("frostline_calls_total{{service=\"{service}\",code=\"{code}\"}}");
            assert_eq!(value(&text, &series), 0.0);
        }
    }
    for head in ["objects", "scene"] {
        for code in ["OK", "HEAD_FAILED", "BACKBONE_FAILED", "INTERNAL"] {
            let labels = format!(r#"stage="total",head="{head}",code="{code}""#);
            let series = format!("frostline_stage_duration_seconds_count{{{labels}}}");
            assert_eq!(value(&text, &series), 0.0);
        }
        for result in ["loaded", "failed"] {
            let series =
                format!(r#"frostline_head_loads_total{{head="{head}",result="{result}"}}"#);
            assert_eq!(value(&text, &series), 0.0);
        }
    }
    observed.server.stop().await;
}
