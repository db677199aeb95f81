"""The kustomize folders, KServe's manifests and the compose file, held against their schemas and the server."""

import copy
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import picks
import schemas
from fleet import ROOT, binary, environment

DEPLOY = ROOT / "deploy"
KUBECTL = Path(sys.executable).parent / "kubectl"
needs_go = pytest.mark.skipif(not schemas.has_go(), reason="no go on the path: the schema comes from the Go module proxy")


def build(folder: str) -> list[dict]:
    """What `kubectl apply -k` would apply."""
    command = [KUBECTL, "kustomize", DEPLOY / "kubernetes" / folder]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def one(documents: list[dict], kind: str, name: str = "frostline") -> dict:
    found = [d for d in documents if d["kind"] == kind and re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", d["metadata"]["name"])]
    assert len(found) == 1, [d["metadata"]["name"] for d in documents]
    return found[0]


def accepted(settings: dict[str, object]) -> subprocess.CompletedProcess:
    """`frostline config` with these variables."""
    variables = environment() | {name: str(value) for name, value in settings.items()}
    return subprocess.run([binary(), "config"], capture_output=True, text=True, timeout=60, env=variables)


@pytest.mark.parametrize("folder", ["base", "gpu", "tls"])
def test_kustomize_builds_what_kubernetes_knows(folder, tmp_path):
    documents = build(folder)
    assert sorted(d["kind"] for d in documents) == [
        "ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "Service",
    ]
    assert not [problem for document in documents for problem in schemas.problems(document)]
    config = tmp_path / "frostline.toml"
    text = one(documents, "ConfigMap")["data"]["frostline.toml"]
    config.write_text(text)
    result = subprocess.run(
        [binary(), "config", "--config", config], capture_output=True, text=True, timeout=60, env=environment()
    )
    assert result.returncode == 0, result.stderr
    pod = one(documents, "Deployment")["spec"]["template"]
    server = tomllib.loads(text)["server"]
    assert pod["spec"]["terminationGracePeriodSeconds"] >= server["lame_duck_seconds"] + server["drain_seconds"] + 5
    for document in documents:
        wanted = picks.at(document, picks.REQUIRED.get(document["kind"], "none"))
        assert wanted is None or wanted.items() <= pod["metadata"]["labels"].items(), document["kind"]
    mounted = {mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert all(str(Path(file).parent) in mounted for file in re.findall(r'"(/etc/[^"]+)"', text))


def shipped() -> dict[str, dict]:
    """Every YAML document below deploy/ that is no template, and what the overlays make of them, by its place."""
    found = {}
    for path in sorted(DEPLOY.rglob("*.y*ml")):
        if "helm" in path.parts or "node_modules" in path.parts:
            continue
        for index, document in enumerate(yaml.safe_load_all(path.read_text())):
            found[f"{path.relative_to(DEPLOY)}.{index}"] = document
    for folder in ("base", "gpu", "tls"):
        found |= {f"{folder}/{d['kind']}/{d['metadata']['name']}": d for d in build(folder)}
    return found


def test_no_selector_is_empty():
    """One that selects nothing in particular selects every pod of the namespace: other people's too."""
    documents = shipped()
    # As files the base's own lack nothing either: what an overlay adds later is no excuse.
    found = {place: picks.problems(document) for place, document in documents.items() if isinstance(document, dict)}
    assert not {place: problems for place, problems in found.items() if problems}
    seen = {place.split("/")[0] for place, document in documents.items() if picks.selectors(document)}
    assert {"kubernetes", "base", "gpu", "tls"} <= seen


@pytest.mark.parametrize(
    "document, said",
    [
        ({"kind": "NetworkPolicy", "spec": {"podSelector": {}}}, "podSelector is empty"),
        ({"kind": "NetworkPolicy", "spec": {"ingress": []}}, "podSelector.matchLabels is missing"),
        ({"kind": "NetworkPolicy", "spec": {"podSelector": {"matchLabels": {"a": "b"}}, "ingress": [{}]}}, "from is missing"),
        ({"kind": "PodDisruptionBudget", "spec": {"selector": {"matchLabels": {}}}}, "selector is empty"),
        ({"kind": "PodDisruptionBudget", "spec": {}}, "selector.matchLabels is missing"),
        ({"kind": "Service", "spec": {"selector": None}}, "selector is empty"),
        ({"kind": "Any", "spec": {"deep": [{"namespaceSelector": {"matchExpressions": []}}]}}, "deep.0.namespaceSelector is empty"),
    ],
)
def test_an_empty_selector_is_found(document, said):
    assert any(said in problem for problem in picks.problems(document))


def test_kustomize_overlays_change_what_they_say():
    gpu = one(build("gpu"), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == 1 and gpu["image"].endswith("-gpu")
    assert accepted({variable["name"]: variable.get("value", "2") for variable in gpu["env"]}).returncode == 0
    tls = build("tls")
    assert "appProtocol" not in one(tls, "Service")["spec"]["ports"][0]
    assert "insecure" not in one(tls, "ConfigMap")["data"]["frostline.toml"]


@pytest.mark.parametrize("name", ["servingruntime", "inferenceservice"])
def test_kserve_manifests_match_kserves_types(name):
    document = yaml.safe_load((DEPLOY / f"kserve/{name}.yaml").read_text())
    assert not schemas.problems(document)
    for path in (("spec", "nonsense"), ("nonsense",)):
        wrong = copy.deepcopy(document)
        at = wrong
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = 1
        assert any("nonsense" in problem for problem in schemas.problems(wrong))


def test_kserve_errors_inside_a_container_are_found():
    document = yaml.safe_load((DEPLOY / "kserve/servingruntime.yaml").read_text())
    document["spec"]["containers"][0]["livenessprobe"] = {}
    assert any("livenessprobe" in problem for problem in schemas.problems(document))
    document = yaml.safe_load((DEPLOY / "kserve/inferenceservice.yaml").read_text())
    document["spec"]["predictor"]["model"]["storageURI"] = ""
    assert any("storageURI" in problem for problem in schemas.problems(document))


def test_kserve_conventions():
    """What KServe finds by name: the container, the models' folder, the port, the runtime and its format."""
    runtime = yaml.safe_load((DEPLOY / "kserve/servingruntime.yaml").read_text())
    service = yaml.safe_load((DEPLOY / "kserve/inferenceservice.yaml").read_text())
    container = runtime["spec"]["containers"][0]
    assert container["name"] == "kserve-container" and "/mnt/models" in container["args"]
    assert container["ports"][0]["name"].startswith("h2c")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in [f["name"] for f in runtime["spec"]["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    settings = {variable["name"]: variable.get("value", "2") for variable in container["env"]}
    result = accepted(settings)
    assert result.returncode == 0, result.stderr
    grace = service["spec"]["predictor"]["terminationGracePeriodSeconds"]
    drain = int(settings["FROSTLINE_SERVER_LAME_DUCK_SECONDS"]) + int(settings["FROSTLINE_SERVER_DRAIN_SECONDS"])
    assert grace >= drain + 5


@needs_go
def test_compose_file_matches_the_compose_specification():
    path, version, file = schemas.COMPOSE
    schema = yaml.safe_load((schemas.module(path, version) / file).read_text())
    document = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
    assert not schemas.errors(schema, document)
    document["services"]["frostline"]["helthcheck"] = {}
    assert any("helthcheck" in error for error in schemas.errors(schema, document))


def test_compose_file_holds_together():
    document = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
    services = document["services"]
    result = accepted(services["frostline"]["environment"] | {"FROSTLINE_SERVER_LISTEN": "0.0.0.0:8461"})
    assert result.returncode == 0, result.stderr
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert set(service.get("depends_on", [])) <= services.keys()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (DEPLOY / "compose" / source).exists() if source.startswith(".") else source in document["volumes"]
            assert known, f"{name}: {source}"


def test_compose_services_find_each_other():
    document = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
    frostline = document["services"]["frostline"]["environment"]
    scrape = yaml.safe_load((DEPLOY / "compose/prometheus.yml").read_text())
    admin = frostline["FROSTLINE_TELEMETRY_ADMIN"].rsplit(":", 1)[1]
    assert scrape["scrape_configs"][0]["static_configs"][0]["targets"] == [f"frostline:{admin}"]
    mounted = [volume.split(":")[1] for volume in document["services"]["prometheus"]["volumes"]]
    assert [f"/etc/prometheus/{name}" for name in scrape["rule_files"]] == [m for m in mounted if "rules" in m]
    collector = yaml.safe_load((DEPLOY / "observability/collector.yaml").read_text())
    endpoint = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    assert frostline["FROSTLINE_TELEMETRY_TRACES"] == f"http://collector:{endpoint.rsplit(':', 1)[1]}"
    source = yaml.safe_load((DEPLOY / "compose/grafana-datasources.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090" and source["type"] == "prometheus"
