"""The Helm chart: linted, rendered with every set of values that matters, and held against the schemas."""

import copy
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import helm_python
import pytest
import yaml

import picks
import schemas
from fleet import ROOT, binary, environment

sys.path.insert(0, str(ROOT / "deploy/helm"))

import config_schema

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
        "BackendTLSPolicy", "BackendTrafficPolicy", "ConfigMap", "Deployment", "GRPCRoute", "HorizontalPodAutoscaler", "NetworkPolicy", "Pod",
        "PodDisruptionBudget", "PrometheusRule", "ScaledObject", "Service", "ServiceAccount", "ServiceMonitor",
    }


def test_a_scraper_brings_the_admin_ports_token():
    secret = {"credentials": {"name": "frostline-admin", "key": "token"}}
    given = {
        "insecure": True,
        "serviceMonitor": {"enabled": True, "authorization": secret},
        "config": {"telemetry": {"admin_tokens": "/etc/frostline/admin/tokens"}},
    }
    documents = render(given)
    monitor = by_kind(documents, "ServiceMonitor")[0]
    assert monitor["spec"]["endpoints"][0]["authorization"] == secret
    assert not schemas.has_go() or not schemas.problems(monitor)
    assert any("admin_tokens" in str(document.get("data")) for document in by_kind(documents, "ConfigMap"))


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
        ("BackendTLSPolicy", "spec.validation.hostName"),
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
    # A pod that is deleted leaves the endpoints by its deletion, not by failing checks: two checks' time to be told is enough.
    readiness = pod(documents)["containers"][0]["readinessProbe"]
    assert server["lame_duck_seconds"] >= 2 * readiness["periodSeconds"]
    # And one late answer takes nobody out.
    assert readiness["failureThreshold"] >= 2 and readiness["timeoutSeconds"] > 1


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


def test_the_tag_is_of_the_image_that_holds_the_library():
    def image(**given) -> str:
        return pod(render(merged(values("embedded"), given)))["containers"][0]["image"]

    plain = image()
    assert image(openvino={"enabled": True}) == f"{plain}-openvino"
    # A pod with a GPU has no use for it.
    assert image(openvino={"enabled": True}, gpu={"enabled": True}) == f"{plain}-gpu"
    named = {"repository": "registry.example/frostline", "tag": "mine"}
    assert image(openvino={"enabled": True}, image=named) == "registry.example/frostline:mine"


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
        ({"config": {"engine": {"max_bach": 4}}}, "max_bach"),
        ({"config": {"engine": {"max_batch": "four"}}}, "max_batch"),
        ({"config": {"limits": {"image_byte": 1}}}, "image_byte"),
        ({"config": {"telemetry": {"admin": "0.0.0.0:1"}}}, "admin"),
        ({"config": {"telemetry": {"format": "xml"}}}, "format"),
        ({"config": {"tls": {"cert": "/x"}}}, "cert"),
        ({"config": {"auth": {"jwks": "/x"}}}, "jwks"),
        ({"config": {"server": {"drain_seconds": 99999}}}, "drain_seconds"),
        ({"gateway": {"backendTls": {"ca": "x"}}}, "backendTls"),
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


def test_the_schema_of_config_is_the_servers():
    """An unknown key is refused before anything is installed, and not by pods that do not become ready."""
    assert config_schema.FILE.read_text() == config_schema.made(binary()), "values.schema.json is old: make reference"


def test_pods_keep_their_labels_when_only_the_chart_changes(tmp_path):
    """A new version of the chart that runs the same image replaces no pod."""
    shutil.copytree(CHART, tmp_path / "frostline", symlinks=False)
    meta = (tmp_path / "frostline/Chart.yaml").read_text()
    (tmp_path / "frostline/Chart.yaml").write_text(meta.replace("version: 0.1.0", "version: 9.9.9", 1))
    given = merged(values("everything"), {"image": {"digest": "sha256:" + "0" * 64}})
    with helm_python.Chart.load(tmp_path / "frostline") as chart:
        rendered = chart.render(given, name="demo", namespace="vision")
    documents = [d for path, text in rendered.items() if not path.endswith(".txt") for d in yaml.safe_load_all(text) if d]
    new, old = by_kind(documents, "Deployment")[0], by_kind(render(given), "Deployment")[0]
    assert new["metadata"]["labels"]["helm.sh/chart"] == "frostline-9.9.9" != old["metadata"]["labels"]["helm.sh/chart"]
    assert new["spec"] == old["spec"]


def test_the_image_is_taken_by_digest_everywhere():
    digest = "sha256:" + "a" * 64
    documents = render(values("embedded") | {"image": {"tag": "7", "digest": digest}})
    specs = [pod(documents), *(document["spec"] for document in by_kind(documents, "Pod"))]
    images = [container["image"] for spec in specs for container in spec["containers"]]
    assert images == [f"ghcr.io/frostline/frostline@{digest}"] * 2


def peers(policy: dict, port: str) -> list[dict]:
    """Whom a NetworkPolicy lets in to a port."""
    rules = policy["spec"]["ingress"]
    return [peer for rule in rules if port in [p["port"] for p in rule["ports"]] for peer in rule["from"]]


def namespace(name: str) -> dict:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


@pytest.mark.parametrize(
    "gateway, admitted",
    [
        ({"parentRefs": [{"name": "edge", "namespace": "gateways"}]}, ["gateways"]),
        ({"parentRefs": [{"name": "edge"}]}, ["vision"]),
        ({"parentRefs": [{"name": "edge", "namespace": "g"}], "envoyGateway": {"enabled": True}}, ["g", "envoy-gateway-system"]),
        ({"parentRefs": [{"name": "edge", "namespace": "g"}], "namespaces": ["proxies"]}, ["proxies"]),
    ],
)
def test_the_network_policy_admits_the_gateways_proxies(gateway, admitted):
    callers = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "cameras"}}}
    given = {"insecure": True, "networkPolicy": {"from": [callers]}, "gateway": {"enabled": True} | gateway}
    policy = by_kind(render(given), "NetworkPolicy")[0]
    for name in admitted:
        assert namespace(name) in peers(policy, "grpc") and namespace(name) not in peers(policy, "admin")
    assert callers in peers(policy, "grpc")
    without = by_kind(render({"insecure": True}), "NetworkPolicy")[0]
    assert not [name for name in admitted if name != "vision" and namespace(name) in peers(without, "grpc")]


def test_a_gateway_speaks_tls_to_pods_that_do():
    tls = {"tls": {"enabled": True, "secretName": "t"}, "auth": {"keys": {"secretName": "k"}}}
    gateway = {"gateway": {"enabled": True, "parentRefs": [{"name": "edge"}]}}
    documents = render(tls | gateway)
    policy = by_kind(documents, "BackendTLSPolicy")[0]["spec"]
    target, service = policy["targetRefs"][0], by_kind(documents, "Service")[0]
    route = by_kind(documents, "GRPCRoute")[0]["spec"]["rules"][0]["backendRefs"][0]
    assert target["name"] == service["metadata"]["name"] == route["name"]
    assert {p["name"]: p["port"] for p in service["spec"]["ports"]}[target["sectionName"]] == route["port"]
    assert policy["validation"] == {"hostname": "demo-frostline.vision.svc", "wellKnownCACertificates": "System"}
    given = merged(tls | gateway, {"gateway": {"backendTls": {"caConfigMapName": "ca", "hostname": "a.example"}}})
    validation = by_kind(render(given), "BackendTLSPolicy")[0]["spec"]["validation"]
    assert validation["hostname"] == "a.example" and validation["caCertificateRefs"][0]["name"] == "ca"
    assert "wellKnownCACertificates" not in validation
    assert not by_kind(render({"insecure": True} | gateway), "BackendTLSPolicy"), "plain pods"
    assert not by_kind(render(tls), "BackendTLSPolicy"), "no gateway"


def test_what_fetches_models_gets_out():
    given = values("initcontainer")
    egress = by_kind(render(given), "NetworkPolicy")[0]["spec"]["egress"]
    assert {"ports": [{"port": 443, "protocol": "TCP"}]} in egress
    bucket = {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 9000, "protocol": "TCP"}]}
    given = merged(given, {"models": {"initContainer": {"egress": [bucket]}}})
    egress = by_kind(render(given), "NetworkPolicy")[0]["spec"]["egress"]
    assert bucket in egress and {"ports": [{"port": 443, "protocol": "TCP"}]} not in egress
    # Who fetches nothing calls nobody but the name service.
    egress = by_kind(render(values("embedded")), "NetworkPolicy")[0]["spec"]["egress"]
    assert [port["port"] for rule in egress for port in rule["ports"]] == [53, 53]


@pytest.mark.parametrize("case", CASES)
def test_helm_test_asks_what_answers_and_is_let_in(case):
    documents = render(values(case))
    test = by_kind(documents, "Pod")[0]
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    command, flag, address = test["spec"]["containers"][0]["args"]
    name, port = address.removeprefix("http://").split(":")
    service = next(s for s in by_kind(documents, "Service") if s["metadata"]["name"] == name)
    target = next(p["targetPort"] for p in service["spec"]["ports"] if p["port"] == int(port))
    secure = values(case).get("tls", {}).get("enabled", False)
    assert (command, flag, target) == (("health", "--admin", "admin") if secure else ("health", "--addr", "grpc"))
    for policy in by_kind(documents, "NetworkPolicy"):
        admitted = [p["podSelector"]["matchLabels"] for p in peers(policy, target) if "podSelector" in p]
        assert any(labels.items() <= test["metadata"]["labels"].items() for labels in admitted)
    # It is no replica: no Service may send it calls.
    for service in by_kind(documents, "Service"):
        assert not service["spec"]["selector"].items() <= test["metadata"]["labels"].items()


def test_long_names_fit():
    for document in render(values("everything"), release="a" * 53):
        assert len(document["metadata"]["name"]) <= 63


def container_of(given: dict) -> dict:
    deployment = by_kind(render({"insecure": True} | given), "Deployment")[0]
    return deployment["spec"]["template"]["spec"]["containers"][0]


def test_lanes_follow_the_cpu_request():
    """Where there is one, and nobody says otherwise."""
    asked = {"name": "FROSTLINE_ENGINE_CORES", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}}
    own = {"name": "A", "value": "b"}
    assert container_of({"env": [own]})["env"] == [asked, own]
    assert "env" not in container_of({"resources": {"requests": {"cpu": None}}})
    assert "env" not in container_of({"config": {"engine": {"cores": 3}}})


def test_a_start_that_is_over_is_not_repeated_for_want_of_a_head():
    """Not ready is no reason for a restart."""
    probes = container_of({})
    assert probes["startupProbe"]["httpGet"]["path"] == "/startedz"
    assert probes["readinessProbe"]["httpGet"]["path"] == "/readyz"
