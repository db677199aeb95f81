"""The alerts: as files, and as the chart installs them, with promtool. What fires when stands in rules.test.yml."""

import re
import subprocess

import pytest
import yaml

from fleet import ROOT
from test_chart import by_kind, render

FOLDER = ROOT / "deploy/observability"
RULES = yaml.safe_load((FOLDER / "rules.yml").read_text())
TESTS = yaml.safe_load((FOLDER / "rules.test.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
NAMES = [rule["alert"] for rule in ALERTS]


def promtool(*arguments: object) -> subprocess.CompletedProcess:
    folder = ROOT / "target/observability"
    subprocess.run([FOLDER / "tools.sh", folder], check=True, timeout=300, capture_output=True)
    return subprocess.run([folder / "promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def minutes(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([smhd])", text).groups()
    return int(number) * {"s": 1 / 60, "m": 1, "h": 60, "d": 1440}[unit]


def spec(given: dict, release: str = "demo") -> dict:
    given = {"insecure": True, "prometheusRule": {"enabled": True} | given.pop("prometheusRule", {})} | given
    return by_kind(render(given, release), "PrometheusRule")[0]["spec"]


def alerts_of(rules: dict) -> dict[str, dict]:
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule}


def test_the_rules_hold():
    result = promtool("test", "rules", FOLDER / "rules.test.yml")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_is_tested_newborn_and_lasting(name):
    """It fires, lasts for hours where the state does, and is silent before; for some series that was not there before."""
    fires, silent, newborn = [], [], False
    for group in TESTS["tests"]:
        cases = [case for case in group.get("alert_rule_test", []) if case["alertname"] == name]
        times = [minutes(case["eval_time"]) for case in cases if case.get("exp_alerts")]
        silent += [minutes(case["eval_time"]) for case in cases if not case.get("exp_alerts")]
        if times:
            fires.append(max(times) - min(times))
            values = [str(series["values"]) for series in group["input_series"]]
            # Born late, born in the state, or counted from 0; the absent target is born never.
            newborn |= any(re.match(r"_|0|1 1 _", text) for text in values) or name == "FrostlineAbsent"
    assert fires, "never fires in a test"
    assert max(fires) >= 60, "not tested with the state lasting"
    assert silent and newborn


def test_the_charts_rules_hold_under_its_own_name(tmp_path):
    """The same tests, against what the chart installs for a release that is called otherwise."""
    rules = spec({"fullnameOverride": "vision", "prometheusRule": {"runbookUrl": "https://wiki.example/ops"}})
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    text = (FOLDER / "rules.test.yml").read_text().replace('job="frostline"', 'job="vision",namespace="vision"')
    tests = yaml.safe_load(text.replace("called frostline for", "called vision for").replace("job frostline", "job vision"))
    for group in tests["tests"]:
        for case in group.get("alert_rule_test", []):
            case["exp_alerts"] = [
                {
                    "exp_labels": alert["exp_labels"] | {"job": "vision", "namespace": "vision"},
                    "exp_annotations": alert["exp_annotations"]
                    | {"runbook_url": f"https://wiki.example/ops#{case['alertname'].lower()}"},
                }
                for alert in case.get("exp_alerts", [])
            ]
    (tmp_path / "rules.test.yml").write_text(yaml.safe_dump(tests))
    result = promtool("test", "rules", tmp_path / "rules.test.yml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_job_is_the_one_that_the_service_monitor_makes():
    """Prometheus' operator names a job after the Service, unless told otherwise."""
    for given, release in (({}, "demo"), ({"fullnameOverride": "vision"}, "demo"), ({}, "frostline-eu"), ({"nameOverride": "eyes"}, "x")):
        given = {"insecure": True, "serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}} | given
        documents = render(given, release)
        monitor = by_kind(documents, "ServiceMonitor")[0]["spec"]
        assert "jobLabel" not in monitor
        admin = monitor["endpoints"][0]["port"]
        scraped = [s for s in by_kind(documents, "Service") if admin in [port["name"] for port in s["spec"]["ports"]]]
        job = scraped[0]["metadata"]["name"]
        text = yaml.safe_dump(by_kind(documents, "PrometheusRule")[0]["spec"], width=9999)
        assert len(scraped) == 1 and f'job="{job}",namespace="vision"' in text and 'job="frostline"' not in text


@pytest.mark.parametrize("seconds", [10, 300, 900, 7200])
def test_not_ready_waits_longer_than_a_start_may_take(seconds):
    rules = spec({"probes": {"startupSeconds": seconds}})
    assert minutes(alerts_of(rules)["FrostlineNotReady"]["for"]) * 60 >= seconds + 300
    base = yaml.safe_load((ROOT / "deploy/kubernetes/base/deployment.yaml").read_text())
    probe = base["spec"]["template"]["spec"]["containers"][0]["startupProbe"]
    plain = minutes(alerts_of(RULES)["FrostlineNotReady"]["for"]) * 60
    assert plain > probe["periodSeconds"] * probe["failureThreshold"]


def test_alerts_can_be_left_out_and_scaling_to_nothing_is_no_absence():
    assert alerts_of(spec({})).keys() == set(NAMES)
    assert alerts_of(spec({"prometheusRule": {"without": ["FrostlineNoTraffic"]}})).keys() == set(NAMES) - {"FrostlineNoTraffic"}
    asleep = spec({"keda": {"enabled": True, "minReplicas": 0}})
    assert alerts_of(asleep).keys() == set(NAMES) - {"FrostlineAbsent"}
    assert not [rule for rule in alerts_of(spec({})).values() if "runbook_url" in rule["annotations"]]
    with pytest.raises(Exception, match="FrostlineNothing"):
        spec({"prometheusRule": {"without": ["FrostlineNothing"]}})
