"""A served repository at int8: its backbone calibrated and quantized, its heads on the new one."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .. import export as common
from ..errors import InputError, at
from ..taskheads.spec import read_manifest
from . import export, parity, precision

#: Of the calibration images, those that the result is compared on and ranges are not taken from.
HELD_OUT = 4


def quantize(
    source: Path, out: Path, images: np.ndarray, percentile: float | None = None, force: bool = False,
    say: Callable[[str], None] = print,
) -> list[parity.Level]:  # fmt: skip
    """Writes the repository ``source`` at int8 into ``out``; agreement with its fp32 per level.

    ``images`` are uint8 ``[N, size, size, 3]``: the last four are compared on, the others give
    the activations' ranges.  Heads are copied as they are; they name the new backbone.
    """
    table = read_manifest(source / "backbone.toml")
    if table["precision"] != "fp32":
        raise at(source / "backbone.toml", f"precision is {table['precision']}: only fp32 is quantized")
    if out.resolve() == source.resolve():
        raise InputError(f"--out {out}: is the repository itself; its heads would lose their backbone")
    if len(images) <= HELD_OUT:
        raise InputError(f"--calibration: {len(images)} images, but more than {HELD_OUT} are needed")
    shown, held = images[:-HELD_OUT], images[-HELD_OUT:]
    names = [feature["name"] for feature in table["features"]]
    plain = source / table["file"]
    feed = table["input"]["name"]
    session = ort.InferenceSession(str(plain), providers=["CPUExecutionProvider"])
    rows = [session.run(names, {feed: image[None]}) for image in held]
    wanted = [np.concatenate(level) for level in zip(*rows)]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".quantize-") as folder:
        final = Path(folder) / "backbone.onnx"
        say(f"calibrating on {len(shown)} images")
        external = plain.with_name(plain.name + ".data").exists()
        precision.to_int8(plain, final, shown, percentile, external)
        export.seal(final)
        session = ort.InferenceSession(str(final), providers=["CPUExecutionProvider"])
        levels = parity.compare(names, wanted, session, held)
        del session
        say(parity.table(levels))
        missed = parity.failures(levels, "int8")
        if missed and not force:
            raise InputError(f"int8 does not agree with fp32: {'; '.join(missed)} (--force writes it all the same)")
        sha = export.file_sha256(final)
        table |= {
            "name": f"{table['name']}-int8", "file": "backbone.onnx", "sha256": sha, "precision": "int8",
            "metrics": table.get("metrics", {}) | parity.metrics(levels),
        }  # fmt: skip
        for file in sorted(Path(folder).glob("backbone.onnx*"), reverse=True):
            file.replace(out / file.name)
    common.write(out / "backbone.toml", common.manifest(table))
    for manifest in sorted((source / "heads").glob("*/head.toml")):
        head, folder = tomllib.loads(manifest.read_text()), out / "heads" / manifest.parent.name
        shutil.copytree(manifest.parent, folder, dirs_exist_ok=True)
        common.write(folder / "head.toml", common.manifest(head | {"backbone": sha}))
    return levels
