"""Runs the decoder over files: `tests/corpus/decode.rs`, which the Rust tests build."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("FROSTLINE_DECODE", ROOT / "target/debug/examples/decode"))


def decode_files(paths: list[Path], folder: Path) -> list[dict]:
    """One answer a path: `width`, `height` and `pixels` [H, W, 3], or `error`, or `panic`; and what `probe` said."""
    names = "".join(f"{path}\n" for path in paths)
    # Large pieces go back at once: what a file takes is not hidden by what one before it left.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([BINARY, folder], input=names, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(paths)
    for number, answer in enumerate(answers):
        if "width" in answer:
            file = folder / f"{number}.rgb"
            answer["pixels"] = np.fromfile(file, np.uint8).reshape(answer["height"], answer["width"], 3)
            file.unlink()
    return answers
