//! What is told, and how it is bounded.

use super::*;

#[test]
fn callers_beyond_the_bound_share_one_label() {
    let metrics = Metrics::default();
    for caller in 0..MAX_IDENTITIES + 50 {
        let name: Arc<str> = format!("caller-{caller}").into();
        metrics.device(Stage::Head, &"h".into(), &name, Duration::from_secs(1));
    }
    let text = metrics.render(Sample::default()).unwrap();
    let series = text
        .lines()
        .filter(|line| line.starts_with("frostline_device_seconds_total{"));
    assert_eq!(series.count(), MAX_IDENTITIES + 1);
    let other = r#"frostline_device_seconds_total{stage="head",head="h",identity="other"} 50.0"#;
    assert!(text.contains(other), "{text}");
}

#[test]
fn what_names_hold_cannot_break_the_format() {
    let metrics = Metrics::default();
    let name: Arc<str> = "a\"b\n\\c".into();
    metrics.device(Stage::Head, &"h".into(), &name, Duration::from_secs(1));
    let text = metrics.render(Sample::default()).unwrap();
    assert!(text.contains(r#"identity="a\"b\n\\c""#), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn a_call_is_in_flight_until_its_guard_is_dropped() {
    let metrics = Metrics::default();
    let guard = metrics.call_begins();
    let text = |metrics: &Metrics| metrics.render(Sample::default()).unwrap();
    assert!(text(&metrics).contains("frostline_calls_in_flight 1\n"));
    drop(guard);
    assert!(text(&metrics).contains("frostline_calls_in_flight 0\n"));
}
