"""Packs the server as a wheel: `pip install frostline` puts the program on the path, and PyPI's onnxruntime is its library.

usage: wheel.py BINARY FOLDER

The wheel has the program as its one script and no Python of its own; the client is a package beside it, frostline-client,
which the extra `client` installs.
"""

import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import licences

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = re.search(r'LIBRARY_VERSION: &str = "([^"]+)"', (ROOT / "src/backend/library.rs").read_text())[1]
PLUGIN = re.search(r"^openvino=(\S+)$", (ROOT / "deploy/fetch_onnxruntime.sh").read_text(), re.M)[1]


def platform_tag(binary: Path) -> str:
    """By the newest symbol of glibc that the program needs (PEP 600)."""
    output = subprocess.run(["readelf", "--version-info", "--wide", binary], check=True, capture_output=True, text=True).stdout
    minors = [int(minor) for minor in re.findall(r"GLIBC_2\.(\d+)", output)]
    machine = re.search(r"Machine: +(.*)", subprocess.run(["readelf", "-h", binary], check=True, capture_output=True, text=True).stdout)[1]
    arch = {"Advanced Micro Devices X86-64": "x86_64", "AArch64": "aarch64"}.get(machine, platform.machine())
    return f"manylinux_2_{max(minors)}_{arch}"


def metadata(package: dict) -> str:
    readme = (ROOT / "README.md").read_text()
    head = [
        "Metadata-Version: 2.4",
        "Name: frostline",
        f"Version: {package['version']}",
        f"Summary: {package['description']}",
        f"License-Expression: {package['license']}",
        "License-File: LICENSE",
        "License-File: THIRD_PARTY.txt",
        "Requires-Python: >=3.11",
        f"Requires-Dist: onnxruntime=={RUNTIME}",
        "Provides-Extra: client",
        f"Requires-Dist: frostline-client=={package['version']}; extra == 'client'",
        "Provides-Extra: openvino",
        f"Requires-Dist: onnxruntime-ep-openvino=={PLUGIN}; platform_machine == 'x86_64' and extra == 'openvino'",
        "Description-Content-Type: text/markdown",
    ]
    return "\n".join(head) + "\n\n" + readme


def pack(binary: Path, folder: Path) -> Path:
    package = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
    named = f"frostline-{package['version']}"
    with tempfile.TemporaryDirectory() as work:
        root = Path(work) / named
        scripts, info = root / f"{named}.data/scripts", root / f"{named}.dist-info"
        (info / "licenses").mkdir(parents=True)
        scripts.mkdir(parents=True)
        program = scripts / "frostline"
        subprocess.run(["strip", "-o", program, binary], check=True)
        program.chmod(0o755)
        (info / "METADATA").write_text(metadata(package))
        tag = platform_tag(binary)
        (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nGenerator: frostline\nRoot-Is-Purelib: false\nTag: py3-none-{tag}\n")
        (info / "licenses/LICENSE").write_text((ROOT / "LICENSE").read_text())
        (info / "licenses/THIRD_PARTY.txt").write_text(licences.page())
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "wheel", "pack", "--dest-dir", folder, root], check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob(f"{named}-*.whl"))


if __name__ == "__main__":
    print(pack(Path(sys.argv[1]), Path(sys.argv[2])))
