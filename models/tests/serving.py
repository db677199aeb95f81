"""The server's binary, where it was built: checking repositories and serving them."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def binary() -> Path:
    """The newest build; skips the test where there is none."""
    built = [b for b in (ROOT / "target" / k / "frostline" for k in ("release", "debug")) if b.exists()]
    if not built or not (ROOT / "target" / "onnxruntime" / "libonnxruntime.so").exists():
        pytest.skip("target/{release,debug}/frostline is not built (make build)")
    return max(built, key=lambda b: b.stat().st_mtime)


def environment() -> dict[str, str]:
    library = ROOT / "target" / "onnxruntime" / "libonnxruntime.so"
    # Graphs run by a session in fp32 are what the server is held against: no trial, no other precision.
    return os.environ | {"ORT_DYLIB_PATH": str(library), "NO_COLOR": "1", "FROSTLINE_DEVICE_DEVICE": "cpu"}


def check(repository: Path) -> str:
    """``frostline check`` passes; what it printed."""
    done = subprocess.run(
        [str(binary()), "check", str(repository)], capture_output=True, text=True, env=environment(),
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def serve(repository: Path):
    """The address of a server of the repository, on a free port."""
    process = subprocess.Popen(
        [str(binary()), "serve", "--listen", "127.0.0.1:0", "--repository", str(repository)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(),
    )  # fmt: skip
    seen = []
    try:
        for line in process.stdout:
            seen.append(line)
            if match := re.search(r"127\.0\.0\.1:([1-9]\d*)", line):
                yield f"127.0.0.1:{match[1]}"
                return
        pytest.fail("the server did not start: " + "".join(seen))
    finally:
        process.terminate()
        process.wait(30)
