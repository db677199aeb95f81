"""What a release carries: the wheel with the server, licence texts, versions that agree, and a recipe that runs dry."""

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import yaml

from fleet import ROOT, Replica, binary, free_ports

sys.path.insert(0, str(ROOT / "deploy/release"))

import licences
import wheel

# The Python client has versions of its own.
CLIENT = re.search(r'(?m)^__version__ = "(.*)"$', (ROOT / "deploy/clients/python/frostline_client/version.py").read_text())[1]
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]


def bare() -> dict[str, str]:
    """No variable says where anything is."""
    names = ("ORT_DYLIB_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in names and not name.startswith("FROSTLINE_")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """An empty environment after `pip install frostline`."""
    root = tmp_path_factory.mktemp("wheel")
    packed = wheel.pack(binary(), root / "dist")
    venv.create(root / "venv", with_pip=True)
    install = [root / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--find-links", root / "dist", "frostline"], check=True, timeout=600)
    assert packed.name == f"frostline-{VERSION}-py3-none-{wheel.platform_tag(binary())}.whl"
    return root / "venv"


def test_a_wheel_carries_the_server(installed):
    """`pip install frostline`, then `frostline serve` answers, by PyPI's onnxruntime and without a variable."""
    program = installed / "bin/frostline"
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True, env=bare()).stdout
    library = list(installed.glob("lib/python*/site-packages/onnxruntime/capi/libonnxruntime.so.*"))
    assert len(library) == 1 and said.startswith(f"frostline {VERSION}\n")
    at = said.splitlines()[-1].rpartition(" at ")[2]
    assert Path(at).resolve() == library[0].resolve()
    [port] = free_ports(1)
    one = Replica("wheel", port, None, {})
    one.command[0] = str(program)
    one.environment = bare()
    one.start()
    try:
        picture = ROOT / "models/demo/samples/scene-1.jpg"
        asked = [program, "detect", "--addr", f"http://127.0.0.1:{port}", picture]
        answer = subprocess.run(asked, capture_output=True, text=True, env=bare(), timeout=120)
        assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr
    finally:
        one.kill()


def test_the_wheel_carries_licences_and_names_its_library(installed):
    [info] = installed.glob("lib/python*/site-packages/frostline-*.dist-info")
    text = (info / "METADATA").read_text()
    pinned = re.search(r"^version=(\S+)$", (ROOT / "deploy/fetch_onnxruntime.sh").read_text(), re.M)[1]
    plugin = re.search(r"^openvino=(\S+)$", (ROOT / "deploy/fetch_onnxruntime.sh").read_text(), re.M)[1]
    extra = f"onnxruntime-ep-openvino=={plugin}; platform_machine == 'x86_64' and extra == 'openvino'"
    assert f"\nProvides-Extra: openvino\nRequires-Dist: {extra}\n" in text
    assert f"\nRequires-Dist: onnxruntime=={pinned}\n" in text and "\nLicense-Expression: Apache-2.0\n" in text
    assert (info / "licenses/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "tokio" in (info / "licenses/THIRD_PARTY.txt").read_text()


def test_every_linked_crate_is_listed_and_permissive():
    packages = licences.linked()
    page = licences.page()
    locked = {(p["name"], p["version"]) for p in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]}
    assert len(packages) > 150 and {(p["name"], p["version"]) for p in packages} <= locked
    # Each has a choice that asks for no more than its text and notices.
    allowed = {"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "0BSD", "Unlicense", "CC0-1.0", "Unicode-3.0",
               "IJG", "BSL-1.0", "MIT-0", "OpenSSL", "CDLA-Permissive-2.0", "libpng-2.0"}
    for package in packages:
        assert f"\n{package['name']} {package['version']}  " in page
        terms = re.findall(r"[\w.+-]+", re.sub(r"\bWITH [\w-]+", "", package["license"] or ""))
        terms = [term for term in terms if term not in ("OR", "AND")]
        assert terms and (set(terms) <= allowed or " OR " in package["license"] and set(terms) & allowed), package["license"]
    # Build tools and tests are in no program.
    names = {package["name"] for package in packages}
    assert not names & {"protox", "tonic-prost-build", "tempfile", "promql-parser"}


def test_versions_agree():
    chart = yaml.safe_load((ROOT / "deploy/helm/frostline/Chart.yaml").read_text())
    images = [yaml.safe_load((ROOT / f"deploy/kubernetes/{name}/kustomization.yaml").read_text())["images"][0] for name in ("base", "gpu")]
    runtime = yaml.safe_load((ROOT / "deploy/kserve/servingruntime.yaml").read_text())
    served = runtime["spec"]["containers"][0]["image"].rpartition(":")[2]
    assert {chart["version"], chart["appVersion"], images[0]["newTag"], served} == {VERSION}
    assert images[1]["newTag"] == f"{VERSION}-gpu"
    assert wheel.RUNTIME in (ROOT / "deploy/fetch_onnxruntime.sh").read_text()


def test_the_release_runs_dry(tmp_path):
    """Every step is said, everything that needs no registry is made, and nothing leaves the machine."""
    command = [ROOT / "deploy/release/release.sh", "--dry", "--binary", binary(), "--out", tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHON": sys.executable})
    assert result.returncode == 0, result.stdout + result.stderr
    for step in ("git tag", "image", "chart", "wheel", "checksums", "signatures"):
        assert re.search(rf"(?m)^== {step}", result.stdout), (step, result.stdout)
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"frostline-{VERSION}.tgz", "SHA256SUMS", "THIRD_PARTY.txt", "LICENSE"} <= made
    assert any(name.startswith(f"frostline-{VERSION}-py3-none-") for name in made)
    assert any(name.startswith(f"frostline_client-{CLIENT}-") for name in made)
    sums = (tmp_path / "out/SHA256SUMS").read_text().split()[1::2]
    assert {name.lstrip("*") for name in sums} == made - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out", check=True)
    tags = subprocess.run(["git", "tag", "--list", f"v{VERSION}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not tags, "a dry run tags nothing"


def test_the_gpu_kit_leaves_the_release_build_alone():
    """Cargo builds the server beside every benchmark: without its models it must not land in target/release."""
    text = (ROOT / "tests/gpu/prepare.sh").read_text().replace("\\\n", " ")
    builds = [line for line in text.splitlines() if re.search(r"\bcargo (bench|build|test|run)\b", line) and not line.startswith("#")]
    assert builds
    for line in builds:
        assert "--no-default-features" not in line or "--target-dir" in line, line


def test_base_images_can_be_named_by_digest():
    text = (ROOT / "Dockerfile").read_text()
    arguments = set(re.findall(r"(?m)^ARG (\w+_IMAGE)=", text))
    bases = set(re.findall(r"(?m)^FROM \$\{(\w+)\}", text)) - {"BINARY", "LIBRARY"}
    assert arguments == bases == {"RUST_IMAGE", "PYTHON_IMAGE", "DEBIAN_IMAGE"}
    stages = set(re.findall(r"(?m)^FROM .* AS (\S+)$", text))
    plain = set(re.findall(r"(?m)^FROM ([a-z][\w-]*)", text)) - stages
    assert plain == {"scratch"}, "no base image but by an argument"
