"""The Helm chart: linted, rendered with every set of values that matters, and held against the schemas."""

import copy
import json
import re
import subprocess
import tomllib
from pathlib import Path

import helm_python
import pytest
import yaml

import picks
import schemas
from fleet import ROOT, binary, environment

CHART = ROOT / "deploy/helm/frostline"
CASES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}


def values(case: str) -> dict:
    """A case's values; the GPU's lie over values-gpu.yaml, as `-f` twice does."""
    given = yaml.safe_load(CASES[case].read_text())
    if case != "gpu":
        return given
    return merged(yaml.safe_load((CHART / "values-gpu.yaml").read_text()), given)


def merged(below: dict, above: dict) -> dict:
    both = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


def render(given: dict, release: str = "demo") -> list[dict]:
    with helm_python.Chart.load(CHART) as chart:
        rendered = chart.render(given, name=release, namespace="vision")
    texts = [text for path, text in rendered.items() if not path.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def by_kind(documents: list[dict], kind: str) -> list[dict]:
    return [document for document in documents if document["kind"] == kind]


def pod(documents: list[dict]) -> dict:
    return by_kind(documents, "Deployment")[0]["spec"]["template"]["spec"]


@pytest.mark.parametrize("case", CASES)
def test_lint(case):
    report = helm_python.lint(CHART, values(case), strict=True, namespace="vision")
    assert report["total_charts_linted"] == 1
    # Severity 1 is advice (an icon).
    assert not [m for m in report["messages"] if m["severity"] > 1], report
    assert not report["errors"]


@pytest.mark.parametrize("case", CASES)
def test_rendered_manifests_match_their_schemas(case):
    if not schemas.has_go():
        pytest.skip("no go on the path: the operators' schemas come from the Go module proxy")
    documents = render(values(case))
    assert {"Deployment", "Service", "ConfigMap"} <= {document["kind"] for document in documents}
    assert not [problem for document in documents for problem in schemas.problems(document)]


def test_all_kinds_are_rendered_by_some_case():
    kinds = {document["kind"] for case in CASES for document in render(values(case))}
    assert kinds == {
        "BackendTrafficPolicy", "ConfigMap", "Deployment", "GRPCRoute", "HorizontalPodAutoscaler", "NetworkPolicy", "Pod",
        "PodDisruptionBudget", "PrometheusRule", "ScaledObject", "Service", "ServiceAccount", "ServiceMonitor",
    }


@pytest.mark.parametrize(
    "kind, path",
    [
        ("Deployment", "spec.template.spec.containers.0.livenessprobe"),
        ("HorizontalPodAutoscaler", "spec.maxReplica"),
        ("PodDisruptionBudget", "spec.minavailable"),
        ("NetworkPolicy", "spec.ingress.0.port"),
        ("ServiceMonitor", "spec.endpoints.0.intervall"),
        ("PrometheusRule", "spec.groups.0.rules.0.expression"),
        ("GRPCRoute", "spec.rules.0.backendRef"),
        ("BackendTrafficPolicy", "spec.loadBalancer.consistentHash.headerName"),
    ],
)
def test_a_wrong_field_is_found(kind, path):
    """The schemas would tell: each kind with a field that does not exist."""
    if not schemas.has_go():
        pytest.skip("no go on the path")
    document = copy.deepcopy(by_kind(render(values("everything")), kind)[0])
    assert not schemas.problems(document)
    at = document
    *parents, last = path.split(".")
    for part in parents:
        at = at[int(part)] if part.isdigit() else at[part]
    at[last] = "1"
    found = schemas.problems(document)
    assert found and last in "".join(found), found


def test_a_wrong_value_is_found():
    document = by_kind(render(values("initcontainer")), "ScaledObject")[0]
    document["spec"]["minReplicaCount"] = "two"
    assert any("minReplicaCount" in problem for problem in schemas.problems(document))


@pytest.mark.parametrize("case", CASES)
def test_the_server_accepts_the_rendered_configuration(case, tmp_path):
    """Every key that the chart renders is one of the server's."""
    documents = render(values(case))
    text = by_kind(documents, "ConfigMap")[0]["data"]["frostline.toml"]
    config = tmp_path / "frostline.toml"
    config.write_text(text)
    result = subprocess.run(
        [binary(), "config", "--config", config], capture_output=True, text=True, timeout=60, env=environment()
    )
    assert result.returncode == 0, f"{result.stderr}\n{text}"
    given = {f"{section}.{key}" for section, keys in tomllib.loads(text).items() for key in keys}
    from_file = {line.split()[0] for line in result.stdout.splitlines() if f"file {config}" in line}
    assert from_file == given and {"server.listen", "telemetry.admin"} <= given


def test_toml_keeps_types():
    config = values("everything")["config"]
    text = by_kind(render(values("everything")), "ConfigMap")[0]["data"]["frostline.toml"]
    parsed = tomllib.loads(text)
    for section, keys in config.items():
        for key, value in keys.items():
            assert parsed[section][key] == value, f"{section}.{key}"
    assert isinstance(parsed["limits"]["bytes_in_flight"], int)
    hostile = merged(values("embedded"), {"config": {"telemetry": {"log": 'a"b\\c\nd\u00e9<>&\t'}}})
    text = by_kind(render(hostile), "ConfigMap")[0]["data"]["frostline.toml"]
    assert tomllib.loads(text)["telemetry"]["log"] == hostile["config"]["telemetry"]["log"]


@pytest.mark.parametrize("case", CASES)
def test_no_selector_is_empty(case):
    """One that selects nothing in particular selects every pod of the namespace: other people's too."""
    documents = render(values(case))
    assert not [problem for document in documents for problem in picks.problems(document)]
    assert sum(len(picks.selectors(document)) for document in documents) >= 4


@pytest.mark.parametrize("case", CASES)
def test_pods_meet_the_restricted_standard(case):
    """The Pod Security Standard `restricted`, for every pod and container."""
    documents = render(values(case))
    specs = [pod(documents), *(document["spec"] for document in by_kind(documents, "Pod"))]
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] != 0
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
        kinds = {next(iter(volume.keys() - {"name"})) for volume in spec.get("volumes", [])}
        assert kinds <= {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "image"}


@pytest.mark.parametrize("case", CASES)
def test_grace_covers_lame_duck_and_drain(case):
    documents = render(values(case))
    server = tomllib.loads(by_kind(documents, "ConfigMap")[0]["data"]["frostline.toml"])["server"]
    grace = pod(documents)["terminationGracePeriodSeconds"]
    assert grace >= server["lame_duck_seconds"] + server["drain_seconds"] + 5
    # Long enough for two readiness checks, so that endpoints are gone before calls are refused.
    readiness = pod(documents)["containers"][0]["readinessProbe"]
    assert server["lame_duck_seconds"] >= 2 * readiness["periodSeconds"] * readiness["failureThreshold"]


@pytest.mark.parametrize("case", CASES)
def test_references_inside_the_manifests_hold(case):
    """Names of volumes, ports, labels and targets: no schema sees them."""
    documents = render(values(case))
    deployment = by_kind(documents, "Deployment")[0]
    spec, labels = pod(documents), deployment["spec"]["template"]["metadata"]["labels"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in spec["containers"] + spec.get("initContainers", []):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in spec["containers"][0]["ports"]}
    for service in by_kind(documents, "Service"):
        assert service["spec"]["selector"].items() <= labels.items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()
    for policy in by_kind(documents, "NetworkPolicy") + by_kind(documents, "PodDisruptionBudget"):
        assert picks.at(policy, picks.REQUIRED[policy["kind"]]).items() <= labels.items()
    for scaler in by_kind(documents, "HorizontalPodAutoscaler") + by_kind(documents, "ScaledObject"):
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        assert "replicas" not in deployment["spec"]
    config = tomllib.loads(by_kind(documents, "ConfigMap")[0]["data"]["frostline.toml"])
    assert config["server"]["listen"].endswith(f":{ports['grpc']}")
    assert config["server"]["listen"] == spec["containers"][0]["args"][-1]
    assert config["telemetry"]["admin"].endswith(f":{ports['admin']}")
    mounts = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    files = re.findall(r'"(/etc/frostline/[^"]+|/models)"', json.dumps(config))
    assert all(str(Path(file).parent) in mounts or file in mounts for file in files), (files, mounts)


def test_gpu_pods_do_not_fall_back_to_the_cpu(tmp_path):
    documents = render(values("gpu"))
    assert pod(documents)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    device = tomllib.loads(by_kind(documents, "ConfigMap")[0]["data"]["frostline.toml"])["device"]
    config = tmp_path / "frostline.toml"
    config.write_text(f'[device]\ndevice = "{device["device"]}"\n')
    command = [binary(), "config", "--config", config]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert result.returncode == 0 and "cuda:0" in result.stdout, result.stderr


def test_monitoring_ships_the_files_of_observability():
    documents = render(values("everything"))
    dashboard = json.loads((ROOT / "deploy/observability/dashboard.json").read_text())
    shipped = [d for d in by_kind(documents, "ConfigMap") if d["metadata"]["name"].endswith("-dashboard")]
    assert json.loads(shipped[0]["data"]["frostline.json"]) == dashboard


@pytest.mark.parametrize(
    "given, said",
    [
        ({}, "tls.enabled nor auth"),
        ({"insecure": True, "autoscaling": {"enabled": True}, "keda": {"enabled": True}}, "exclude each other"),
        ({"tls": {"enabled": True, "secretName": "t"}, "probes": {"type": "grpc"}, "insecure": True}, "without TLS"),
        ({"tls": {"enabled": True}}, "tls.secretName"),
        ({"insecure": True, "auth": {"certificates": True}}, "clientCaSecretName"),
        ({"insecure": True, "models": {"type": "persistentVolumeClaim"}}, "claimName"),
        ({"insecure": True, "models": {"type": "initContainer"}}, "initContainer.image"),
        ({"insecure": True, "gateway": {"enabled": True}}, "parentRefs"),
    ],
)
def test_values_that_do_not_go_together_are_refused(given, said):
    with pytest.raises(helm_python.HelmError, match=said):
        render(given)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"replicas": 3}, "replicas"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"models": {"type": "s3"}}, "type"),
        ({"config": {"engin": {}}}, "engin"),
        ({"config": {"server": {"listen": "0.0.0.0:1"}}}, "server"),
        ({"config": {"repository": {"path": "/x"}}}, "repository"),
        ({"service": {"port": 70000}}, "port"),
        ({"autoscaling": {"queuedWorkSeconds": "much"}}, "queuedWorkSeconds"),
    ],
)
def test_the_schema_of_values_refuses(given, said):
    with pytest.raises(helm_python.HelmError, match=said):
        render({"insecure": True} | given)


def test_every_value_has_a_schema():
    """values.yaml and values.schema.json name the same things."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def missing(given: dict, against: dict, path: str) -> list[str]:
        known = against.get("properties")
        if known is None:
            return []
        found = [f"{path}{key}" for key in given.keys() - known.keys() if against.get("additionalProperties") is False]
        for key, value in given.items():
            if isinstance(value, dict) and key in known:
                found += missing(value, known[key], f"{path}{key}.")
        return found

    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert not missing(defaults, schema, "")
    assert schema["properties"].keys() - {"global"} == defaults.keys()


def test_long_names_fit():
    for document in render(values("everything"), release="a" * 53):
        assert len(document["metadata"]["name"]) <= 63
