"""Writes the licence texts of everything that is linked into the program, each text once with the crates that carry it.

usage: licences.py FILE

Crates are those that cargo links for Linux, no build tools and no tests; their texts are the files that their authors
ship. A crate without a file is listed with its licence's name and where it comes from. ONNX Runtime's notices travel with
its library and are put beside it by deploy/fetch_onnxruntime.sh.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = re.compile(r"(?i)^(licen[cs]e|copying|copyright|notice|unlicense)([-._].*)?$")


def linked() -> list[dict]:
    """The packages that are linked, by name and version."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    meta = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    nodes = {node["id"]: node for node in meta["resolve"]["nodes"]}
    kept, todo = set(), [meta["resolve"]["root"]]
    while todo:
        one = todo.pop()
        if one in kept:
            continue
        kept.add(one)
        for dependency in nodes[one]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    packages = [package for package in meta["packages"] if package["id"] in kept and package["source"]]
    return sorted(packages, key=lambda package: (package["name"], package["version"]))


def texts(package: dict) -> list[str]:
    folder = Path(package["manifest_path"]).parent
    files = sorted(path for path in folder.iterdir() if path.is_file() and NAMES.match(path.name))
    for below in ("LICENSES", "licenses"):
        files += sorted(path for path in (folder / below).glob("*") if path.is_file())
    return ["\n".join(line.rstrip() for line in path.read_text(errors="replace").strip().splitlines()) for path in files]


def page() -> str:
    packages = linked()
    carriers: dict[str, list[str]] = defaultdict(list)
    lines = ["Software that is linked into frostline, with its licences.", ""]
    for package in packages:
        name = f"{package['name']} {package['version']}"
        lines.append(f"{name}  {package['license'] or 'see its file'}  {package['repository'] or ''}".rstrip())
        for text in texts(package):
            carriers[text].append(name)
    for text, names in carriers.items():
        lines += ["", "=" * 100, ", ".join(names), "=" * 100, "", text]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
