"""JSON schemas of what the manifests hold, strict: a field that the schema does not know is an error.

Kubernetes' own come with kubernetes-validate. Those of operators are made from their CustomResourceDefinitions, which the
Go module proxy has as part of the operators' source modules; KServe's from the classes that its wheel generated from
its API. Rules in CEL and defaults are not looked at.
"""

import ast
import functools
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

from fleet import ROOT

KUBERNETES = ("1.34", "1.37")
CACHE = ROOT / "target/schemas"
KSERVE = "0.17.0"
# Module, version, and the folder with the definitions that are used here.
MODULES = {
    "monitoring.coreos.com": (
        "github.com/prometheus-operator/prometheus-operator", "v0.85.0", "example/prometheus-operator-crd"
    ),
    "keda.sh": ("github.com/kedacore/keda/v2", "v2.21.0", "config/crd/bases"),
    "gateway.networking.k8s.io": ("sigs.k8s.io/gateway-api", "v1.6.1", "config/crd/standard"),
    "gateway.envoyproxy.io": (
        "github.com/envoyproxy/gateway", "v1.9.1", "charts/gateway-crds-helm/templates/generated"
    ),
}
COMPOSE = ("github.com/compose-spec/compose-go/v2", "v2.16.2", "schema/compose-spec.json")


def has_go() -> bool:
    return shutil.which("go") is not None


@functools.cache
def module(path: str, version: str) -> Path:
    """The folder of a Go module, fetched once."""
    command = ["go", "mod", "download", "-json", f"{path}@{version}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")
    answer = json.loads(result.stdout or "{}")
    if result.returncode or "Dir" not in answer:
        raise RuntimeError(f"{path}@{version}: {answer.get('Error') or result.stderr}")
    return Path(answer["Dir"])


def strict(schema: object) -> object:
    """A structural schema of Kubernetes as JSON Schema, where unknown fields are errors."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: {name: strict(value) for name, value in inner.items()} if key == "properties" else strict(inner)
        for key, inner in schema.items()
        if not key.startswith("x-kubernetes") and key not in ("description", "default", "nullable", "format", "example")
    }
    if schema.get("x-kubernetes-int-or-string"):
        kept.pop("anyOf", None)
        kept["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(kept.get("type"), str):
        kept["type"] = [kept["type"], "null"]
    known = "properties" in schema and "additionalProperties" not in schema and schema.get("type") == "object"
    if known and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept["additionalProperties"] = False
    return kept


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Reads `=`, which YAML 1.1 has another meaning for, as text."""


Loader.add_constructor("tag:yaml.org,2002:value", yaml.SafeLoader.construct_yaml_str)


@functools.cache
def definition(group: str, version: str, kind: str) -> dict | None:
    """The schema of an operator's kind."""
    path, release, folder = MODULES[group]
    plural = kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
    file = module(path, release) / folder / f"{group}_{plural}.yaml"
    if not file.exists():
        return None
    # Envoy Gateway's are in a chart: lines of a template stand around the definition.
    text = re.sub(r"(?m)^\{\{.*\}\}\s*$", "", file.read_text())
    for crd in yaml.load_all(text, Loader):
        for one in crd["spec"]["versions"] if crd else ():
            if one["name"] == version and crd["spec"]["names"]["kind"] == kind:
                schema = strict(one["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                return schema
    return None


@functools.cache
def kserve_models() -> Path:
    """KServe's generated classes, as files: they are read, not run."""
    folder = CACHE / f"kserve-{KSERVE}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        subprocess.run([*pip, "--dest", str(CACHE), f"kserve=={KSERVE}"], check=True, timeout=300)
        part = CACHE / "kserve.part"
        with zipfile.ZipFile(next(CACHE.glob(f"kserve-{KSERVE}-*.whl"))) as wheel:
            wheel.extractall(part, [name for name in wheel.namelist() if name.startswith("kserve/models/")])
        (part / "kserve/models").rename(folder)
    return folder


def kserve_class(name: str) -> dict[str, str] | None:
    """The fields of one class by their names in YAML, with their types; None if KServe has no such class."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    file = kserve_models() / f"{snake}.py"
    if not file.exists():
        return None
    tables = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("openapi_types", "attribute_map"):
            tables[node.targets[0].id] = ast.literal_eval(node.value)
    return {tables["attribute_map"][field]: kind for field, kind in tables["openapi_types"].items()}


def kserve_schema(kind: str, kubernetes: dict) -> dict:
    """A type of KServe's API as JSON Schema; Kubernetes' own types are those of kubernetes-validate."""
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        return {"type": "array", "items": kserve_schema(match[1], kubernetes)}
    if match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return {"type": "object", "additionalProperties": kserve_schema(match[1], kubernetes)}
    scalars = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}
    if kind in scalars:
        return {"type": scalars[kind]}
    if fields := kserve_class(kind):
        properties = {name: kserve_schema(inner, kubernetes) for name, inner in fields.items()}
        if kind.endswith("PodSpec") or kind.endswith("PredictorSpec"):
            # Inlined in Go, and left out by the generator.
            properties |= kubernetes["io.k8s.api.core.v1.PodSpec"]["properties"]
        return {"type": "object", "properties": properties, "additionalProperties": False}
    name = f"io.k8s.api.core.v1.{kind.removeprefix('V1')}"
    if name in kubernetes:
        return {"$ref": f"#/$defs/{name}"}
    return {}


def kubernetes_definitions() -> dict:
    version = kubernetes_validate.latest_version()
    file = f"kubernetes-json-schema/v{version}-local-strict/_definitions.json"
    return kubernetes_validate.utils.schema_contents(file, version)["$defs"]


@functools.cache
def kserve(kind: str) -> dict:
    kubernetes = kubernetes_definitions()
    prefix = {"InferenceService": "V1beta1", "ServingRuntime": "V1alpha1"}[kind]
    schema = kserve_schema(prefix + kind, kubernetes)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema | {"$defs": kubernetes}


def errors(schema: dict, document: object) -> list[str]:
    """What a document has against a schema, with the places."""
    found = Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, error.absolute_path)) or '.'}: {error.message[:300]}" for error in found]


def problems(document: dict) -> list[str]:
    """What a manifest has against the schema of its kind."""
    group, _, version = document["apiVersion"].rpartition("/")
    kind = document["kind"]
    if group == "serving.kserve.io":
        found = errors(kserve(kind), document)
    elif group in MODULES:
        schema = definition(group, version, kind)
        found = errors(schema, document) if schema else ["no such kind"]
    else:
        found = []
        for release in KUBERNETES:
            try:
                kubernetes_validate.validate(document, release, strict=True)
            except kubernetes_validate.ValidationError as error:
                found.append(f"{release}: {'.'.join(map(str, error.path))}: {error.message[:300]}")
            except kubernetes_validate.SchemaNotFoundError as error:
                found.append(error.message)
    name = document.get("metadata", {}).get("name")
    return [f"{kind} {name}: {problem}" for problem in found]
