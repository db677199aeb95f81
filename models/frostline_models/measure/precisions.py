"""The same evaluation at several precisions: a server of one's own for each, side by side."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
from pathlib import Path

from ..errors import InputError

#: Settings of the server for each; fp32 is what the others are held against.
SETTINGS = {
    "fp32": ("device.device=cpu",),
    "openvino-fp32": ("device.device=openvino:cpu", "device.precision=fp32"),
    "bf16": ("device.device=openvino:cpu", "device.precision=bf16"),
}


@contextlib.contextmanager
def serve(binary: Path, repository: Path, settings: tuple[str, ...] = ()):
    """The address of a server of the repository, on a free port."""
    words = [str(binary), "serve", "--listen", "127.0.0.1:0", "--repository", str(repository)]
    for setting in settings:
        words += ["--set", setting]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"NO_COLOR": "1"}
    )
    seen = []
    try:
        for line in process.stdout:
            seen.append(line)
            if match := re.search(r' ready .*address="?(127\.0\.0\.1:\d+)', line):
                yield match[1]
                return
        raise InputError(f"the server did not start: {''.join(seen).strip()[-500:]}")
    finally:
        process.terminate()
        process.communicate(timeout=60)


def run(arguments: argparse.Namespace, measure) -> dict:
    """``measure(address)`` gives a report; one of each precision, by name, with the difference to the first."""
    if arguments.repository is None:
        raise InputError("--precision: needs --repository, of which it starts a server at each")
    if not arguments.binary.is_file():
        raise InputError(f"{arguments.binary}: no such file; build the server first (make build), or give --binary")
    unknown = [name for name in arguments.precision if name not in SETTINGS]
    if unknown:
        raise InputError(f"--precision {unknown[0]!r}: must be one of {', '.join(SETTINGS)}")
    reports = {}
    for name in dict.fromkeys(arguments.precision):
        # Of options last given wins: what the caller's environment says of the device does not matter here.
        with serve(arguments.binary, arguments.repository, SETTINGS[name]) as address:
            reports[name] = measure(address)
    return reports


def show(reports: dict) -> str:
    """For people: a line for each metric, a column for each precision, and how far each is from the first, in points."""
    names = list(reports)
    first = reports[names[0]]
    lines = [f"{first['head']} ({first['task']}) on {first['samples']} samples, served at each precision"]
    lines.append(f"  {'':<20}" + "".join(f"{name:>16}" for name in names))
    for metric, base in first["metrics"].items():
        cells = [f"{100 * base:16.2f}"]
        for name in names[1:]:
            value = reports[name]["metrics"][metric]
            cells.append(f"{100 * value:8.2f} ({100 * (value - base):+.2f})".rjust(16))
        lines.append(f"  {metric:<20}" + "".join(cells))
    speeds = "".join(f"{report['samples_per_second']:16.2f}" for report in reports.values())
    lines.append(f"  {'samples/s':<20}{speeds}")
    return "\n".join(lines)
