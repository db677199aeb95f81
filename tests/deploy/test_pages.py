"""Everything that the pages tell people to type runs or resolves, and everything that they name exists."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grpc
import helm_python
import pytest
import yaml

import pages
from fleet import ROOT, Replica, binary, environment, free_ports
from test_chart import CHART, merged
from test_manifests import KUBECTL

PAGES = {str(page.relative_to(ROOT)): page for page in pages.pages()}
COMMANDS = [
    (name, line) for name, page in PAGES.items() for block in pages.blocks(page) for line in pages.commands(block)
]
SIMPLE = [(name, words) for name, line in COMMANDS for words in pages.words(line)]
CODE = [(name, code) for name, page in PAGES.items() for code in pages.inline(page)]
# `frostline health` in a sentence is a command as well.
SIMPLE += [
    (name, words)
    for name, code in CODE
    if re.match(r"(make|frostline|frostline-models) [a-z]", code) and "…" not in code
    for words in pages.words(code)
]


def of(program: str) -> list[tuple[str, list[str]]]:
    return [(name, words) for name, words in SIMPLE if Path(words[0]).name == program]


def run(*command: object, **more) -> subprocess.CompletedProcess:
    more = {"cwd": ROOT, "env": environment()} | more
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **more)


@functools.cache
def source() -> str:
    """All that is no page: what a name must occur in."""
    suffixes = {".rs", ".py", ".proto", ".toml", ".yml", ".yaml", ".json", ".sh", ".go", ".tpl", ".cfg", ".conf", ".tsv", ".txt"}
    files = [path for path in pages.listed() if path.suffix in suffixes or path.name in ("Makefile", "Dockerfile")]
    # This file names what must not exist.
    return "\n".join(path.read_text(errors="replace") for path in files if path != Path(__file__))


@functools.cache
def targets() -> set[str]:
    return set(re.findall(r"(?m)^([\w./-]+):", (ROOT / "Makefile").read_text()))


@functools.cache
def services() -> dict[str, set[str]]:
    """The methods of each service, by its name without the package."""
    found: dict[str, set[str]] = {"Health": {"Check", "Watch", "List"}, "ServerReflection": {"ServerReflectionInfo"}}
    for path in pages.listed("proto/**/*.proto", "proto/*.proto"):
        for service, body in re.findall(r"(?ms)^service (\w+) \{(.*?)^\}", path.read_text()):
            found[service] = set(re.findall(r"rpc (\w+)\(", body))
    return found


@functools.cache
def reference() -> dict[str, set[str]]:
    """Settings as `section.key`, variables and metrics, as the program tells them."""
    text = run(binary(), "reference").stdout
    sections = dict(re.findall(r"(?ms)^### `\[(\w+)\]`\n(.*?)(?=^##)", text))
    rows = {name: re.findall(r"(?m)^\| `(\w+)` \| `(FROSTLINE_\w+)`", body) for name, body in sections.items()}
    return {
        "sections": set(sections),
        "settings": {f"{name}.{key}" for name, keys in rows.items() for key, _ in keys},
        "variables": {variable for keys in rows.values() for _, variable in keys},
        "metrics": set(re.findall(r"(?m)^\| `(\w+)` \| (?:counter|gauge|histogram) \|", text)),
    }


@functools.cache
def rules() -> tuple[set[str], set[str]]:
    """Names of alerts and of recorded series."""
    groups = yaml.safe_load((ROOT / "deploy/observability/rules.yml").read_text())["groups"]
    every = [rule for group in groups for rule in group["rules"]]
    return {rule["alert"] for rule in every if "alert" in rule}, {rule["record"] for rule in every if "record" in rule}


def test_pages_are_taken_apart():
    """The nets are not empty: each kind of thing is met."""
    assert len(PAGES) > 10 and len(COMMANDS) > 40 and len(CODE) > 500
    for program in ("make", "frostline", "helm", "kubectl", "docker", "curl", "grpcurl", "frostline-models"):
        assert of(program), program
    block = pages.Block(Path(), "sh", "A=1 make x \\\n  y  # why\n# no\necho '# kept' | cat <in >out\n")
    assert [pages.words(line) for line in pages.commands(block)] == [[["make", "x", "y"]], [["echo", "# kept"], ["cat"]]]


# --- commands ---------------------------------------------------------------------------------------------------------


def test_make_targets_exist():
    wrong = {(name, word) for name, words in of("make") for word in words[1:] if not re.match(r"[A-Z]+=|-", word) and word not in targets()}
    assert not wrong


def test_commands_of_frostline_take_what_they_are_given():
    """Each subcommand with each of its flags, by its own help."""

    @functools.cache
    def known(*subcommand: str) -> str:
        result = run(binary(), *subcommand, "--help")
        return result.stdout if result.returncode == 0 else ""

    wrong = []
    for name, words in of("frostline"):
        rest = [word for word in words[1:] if word != "…"]
        subcommand = [rest[0]] if rest and re.fullmatch(r"[a-z]+", rest[0]) else []
        text = known(*subcommand)
        flags = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        unknown = {flag for flag in flags if not re.search(rf"(?<![\w-]){flag}\b", text)}
        if not text or unknown:
            wrong.append((name, " ".join(words), sorted(unknown)))
    assert not wrong


def test_commands_of_frostline_models_exist():
    parsers = "\n".join(path.read_text() for path in pages.listed("models/frostline_models/**/*.py", "models/frostline_models/*.py"))
    wrong = []
    for name, words in of("frostline-models"):
        for word in words[1:]:
            flag = word.split("=")[0]
            if re.match(r"--[a-z]", flag) and f'"{flag}"' not in parsers and f"'{flag}'" not in parsers:
                # click makes names of parameters.
                if not re.search(rf"\b{flag[2:].replace('-', '_')}\b", parsers):
                    wrong.append((name, words))
        if len(words) > 1 and not re.search(rf"\b{words[1].replace('-', '[-_]')}\b", parsers):
            wrong.append((name, words))
    assert not wrong


def helm_values(words: list[str]) -> dict:
    """The values that a command of helm gives."""
    given: dict = {}
    flags = iter(words)
    for word in flags:
        if word in ("-f", "--values"):
            given = merged(given, yaml.safe_load((ROOT / next(flags)).read_text()))
        elif word == "--set":
            for pair in next(flags).split(","):
                path, value = pair.split("=", 1)
                one: object = yaml.safe_load(value)
                for part in reversed(path.split(".")):
                    one = {part: one}
                given = merged(given, one)
    return given


def test_commands_of_helm_render():
    """As pasted: with the values that they give, the chart makes manifests."""
    lines = [line for _, line in COMMANDS if line.startswith("helm ")]
    # The comments of the values are pasted as well.
    for path in pages.listed("deploy/helm/**/*.yaml", "deploy/helm/*.yaml"):
        lines += re.findall(r"(?m)^# +(helm (?:install|upgrade|template) .*)$", path.read_text())
    rendered = 0
    for line in lines:
        words = pages.words(line)[0]
        if words[1] == "test":
            continue
        assert words[1] in ("install", "upgrade", "template") and (ROOT / words[3]) == CHART, line
        with helm_python.Chart.load(CHART) as chart:
            texts = chart.render(helm_values(words[4:]), name=words[2], namespace="vision")
        assert any("kind: Deployment" in text for text in texts.values()), line
        rendered += 1
    assert rendered >= 4


def test_the_pages_values_render():
    """Blocks of YAML in the chart's page that are values."""
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    found = 0
    for block in pages.blocks(PAGES["deploy/KUBERNETES.md"]):
        document = yaml.safe_load(block.text) if block.language == "yaml" else None
        if document and document.keys() <= schema.keys():
            with helm_python.Chart.load(CHART) as chart:
                assert chart.render({"insecure": True} | document, name="demo", namespace="vision")
            found += 1
    assert found


def test_commands_of_kubectl_hold(tmp_path):
    """`apply` by the files that it names, `create` by a dry run."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x",
         "-keyout", "tls.key", "-out", "tls.crt"],
        cwd=tmp_path, check=True, capture_output=True,
    )
    (tmp_path / "keys.toml").write_text("")
    applied = re.findall(r"kubectl apply -k (\S+)", "\n".join(p.read_text() for p in pages.listed("deploy/**/kustomization.yaml")))
    for folder in applied:
        assert run(KUBECTL, "kustomize", ROOT / folder.rstrip(":")).returncode == 0, folder
    for name, words in of("kubectl"):
        if words[1] == "apply":
            files = [words[index + 1] for index, word in enumerate(words) if word == "-f"]
            assert files and all((ROOT / file).is_file() for file in files), (name, words)
        elif words[1] == "create":
            result = run(KUBECTL, *words[1:], "--dry-run=client", "-o", "yaml", cwd=tmp_path)
            assert result.returncode == 0 and yaml.safe_load(result.stdout)["kind"], (name, words, result.stderr)
        else:
            raise AssertionError(f"{name}: how is {words} tried?")


def test_commands_of_docker_name_stages():
    stages = set(re.findall(r"(?m)^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text()))
    for name, words in of("docker"):
        if words[1] == "build":
            assert words[words.index("--target") + 1] in stages, (name, words)


def test_programs_and_files_of_commands_exist():
    """A path that is typed is there, or is made by what stands before it."""
    made = re.compile(r"target/|tests/\.venv|\.venv/|out\b|/tmp/|trees/|repository$|report$")
    wrong = []
    for name, words in SIMPLE:
        for word in words:
            # An extra of a package.
            word = re.sub(r"\[[\w,]+\]$", "", word)
            if "/" not in word or re.search(r"[:…$*{<=]|^/|^-|^https?:", word) or made.match(word):
                continue
            # An image, a service's method, a path of the admin port, or the kit's own folder.
            if re.match(r"registry\.example/|localhost|[\w.]+/[A-Z]\w+$|127\.|\./run\.sh", word):
                continue
            places = [ROOT / word, (PAGES[name].parent / word)]
            if not any(place.exists() for place in places):
                wrong.append((name, word))
    assert not wrong


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port, admin = free_ports(2)
    one = Replica("pages", port, None, {"telemetry.admin": f"127.0.0.1:{admin}"})
    one.start()
    yield port, admin
    one.kill()


def test_commands_of_curl_are_answered(server):
    """Every one of them, at a server that runs."""
    _, admin = server
    asked = set()
    for name, words in of("curl"):
        command = [word.replace("127.0.0.1:8462", f"127.0.0.1:{admin}") for word in words]
        result = run(*command[:1], "--fail", "--max-time", "20", *command[1:])
        assert result.returncode == 0, (name, words, result.stderr)
        asked.add(command[-1].rsplit("/", 1)[1])
    assert {"readyz", "livez", "metrics", "log"} <= asked


def test_the_first_five_minutes_are_as_the_readme_says(server, tmp_path):
    """The README's commands one after another, with this build and a server that runs."""
    port, _ = server
    ran = []
    for line in (line for name, line in COMMANDS if name == "README.md"):
        if not line.startswith("target/release/frostline") or " serve" in line:
            continue
        line = line.replace("target/release/frostline", str(binary())).replace(":8461", f":{port}")
        result = subprocess.run(
            ["bash", "-c", line.replace("/tmp/out", str(tmp_path))], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0 and result.stdout, (line, result.stderr)
        ran.append(line)
    assert len(ran) >= 5 and list(tmp_path.glob("*")), "pictures were drawn"


# --- names ------------------------------------------------------------------------------------------------------------


def test_methods_exist():
    """`Service/Method`, `Service.Method`, and methods alone."""
    every = set().union(*services().values())
    wrong = set()
    texts = [(name, code) for name, code in CODE] + [(name, " ".join(words)) for name, words in SIMPLE]
    for name, code in texts:
        for service, method in re.findall(r"\b(\w*(?:Service|Health|Reflection))[/.]([A-Z]\w*\*?)", code):
            if (service, method) == ("Service", "Method"):
                continue
            known = services().get(service)
            prefix = method.rstrip("*")
            if known is None or not any(one == method or method.endswith("*") and one.startswith(prefix) for one in known):
                wrong.add((name, code))
        # Verbs that this protocol's methods begin with.
        bare = re.fullmatch(r"(?:Analyze|Detect|Segment|Recognize|Extract|List|Get|Load|Unload|Promote|Infer)[A-Za-z]*", code)
        if bare and code not in every and not re.search(rf"\b{code}\b", source()):
            wrong.add((name, code))
    assert not wrong
    assert "AnalyzeVideo" not in every and not re.search(r"\bAnalyzeVideo\b", source())


def test_metrics_and_alerts_exist():
    alerts, records = rules()
    metrics = reference()["metrics"]
    wrong = set()
    for name, page in PAGES.items():
        text = page.read_text()
        for metric in re.findall(r"\b(frostline_[a-z0-9_]+|process_[a-z_]+)\b", text):
            base = re.sub(r"_(bucket|sum|count)$", "", metric)
            # Packages and modules of Python are called alike, and are found in the tree.
            package = any(path.exists() for path in (ROOT / "deploy/clients/python" / metric, ROOT / "models" / metric))
            if not {metric, base} & metrics and not package and metric not in source():
                wrong.add((name, metric))
        wrong |= {(name, record) for record in re.findall(r"\bfrostline:[a-z_]+:[a-z0-9_]+\b", text) if record not in records}
        wrong |= {(name, alert) for alert in re.findall(r"\bFrostline[A-Z]\w+", text) if alert not in alerts and alert not in source()}
    assert not wrong


def test_settings_and_values_exist():
    """`section.key` of the configuration, a value of the chart, and variables."""
    known = reference()
    chart = yaml.safe_load((CHART / "values.yaml").read_text())

    def value(path: str) -> bool:
        at: object = chart
        for part in path.split("."):
            if not isinstance(at, dict) or part not in at:
                return False
            at = at[part]
        return True

    wrong = set()
    for name, code in CODE:
        for path in re.findall(r"^([a-z_]+\.[a-z_]+)(?= ?=| ?[<>]|$)", code):
            section = path.split(".")[0]
            if section in known["sections"] and path not in known["settings"] and not value(path):
                # A file, or an attribute in code.
                if not path.endswith((".rs", ".py")) and f'"{path}"' not in source() and path not in source():
                    wrong.add((name, path))
        for path in re.findall(r"^([a-z]\w*(?:\.[a-zA-Z]\w*)+)(?:=\S+)?$", code) if name == "deploy/KUBERNETES.md" else ():
            section = path.split(".")[0]
            if section in chart and section not in known["sections"] and not value(path):
                wrong.add((name, path))
    for name, page in PAGES.items():
        for variable in re.findall(r"\bFROSTLINE_[A-Z_]+\b", page.read_text()):
            if variable not in known["variables"] and variable not in source():
                wrong.add((name, variable))
    assert not wrong


def test_files_and_links_exist():
    wrong = set()
    for name, page in PAGES.items():
        for link in pages.links(page):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                wrong.add((name, link))
            elif anchor and target.suffix == ".md" and anchor not in pages.anchors(target):
                wrong.add((name, link))
    for name, code in CODE:
        # Paths from the top of the repository.
        if re.fullmatch(r"(?:deploy|src|tests|models|proto)/[\w./-]+", code):
            made = code.startswith(("target/", "tests/.venv"))
            if not made and not (ROOT / code).exists() and not (PAGES[name].parent / code).exists():
                wrong.add((name, code))
    assert not wrong


def test_names_in_code_are_somewhere_in_the_code(tmp_path):
    """Any name with underscores or of several words: it is in the source, or belongs to somebody else, who is listed."""
    foreign = (ROOT / "tests/deploy/foreign.txt").read_text().split()
    wrong = set()
    for name, code in CODE:
        if re.fullmatch(r"[a-z]+(?:_[a-z0-9]+)+|[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]+)+", code):
            if code not in foreign and not re.search(rf"(?<![A-Za-z]){re.escape(code)}", source()):
                wrong.add((name, code))
    assert not wrong
    unused = [word for word in foreign if word not in {code for _, code in CODE}]
    assert not unused, "listed, and on no page"


def test_configuration_in_pages_is_accepted(tmp_path):
    """Blocks of TOML that are settings: every key is one."""
    found = 0
    for name, page in PAGES.items():
        for block in pages.blocks(page):
            document = tomllib.loads(block.text) if block.language == "toml" else {}
            if not document or not document.keys() <= reference()["sections"]:
                continue
            for section, keys in document.items():
                assert {f"{section}.{key}" for key in keys} <= reference()["settings"], (name, section)
            found += 1
    assert found >= 2
