"""The GPU kit's own logic: what holds, what is missed, what was not measured, what a later call does again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KIT = Path(__file__).resolve().parents[2] / "tests" / "gpu"
sys.path.insert(0, str(KIT))

import kit  # noqa: E402
import report  # noqa: E402


def rate(part: str, heads: int, images: float, batch: int = 8, **more) -> dict:
    row = {"part": part, "model": "l-384", "batch": batch, "heads": heads, "images_per_s": images}
    return row | {"low": images, "high": images} | more


ROWS = [
    {"part": "rate", "tflops": 100.0, "device": "cuda:0 (NVIDIA H200)", "torch": "2"},
    rate("bare", 0, 100.0), rate("bare", 1, 96.0), rate("bare", 3, 90.0, outputs_per_image=1000),
    rate("bare", 3, 40.0, batch=1, outputs_per_image=1000),
    rate("grpc", 0, 97.0), rate("grpc", 1, 80.0), rate("grpc", 3, 75.0, to_host_per_image=1000.0),
    rate("pytorch compile", 0, 99.0, batch=32),
    {"part": "soak", "model": "l-384", "calls": 9, "device_bytes": [100, 101], "resident_bytes_from_to": [100, 120]},
    {"part": "oom", "model": "l-384", "failed": "the program ended"},
]  # fmt: skip


def test_bars_are_held_missed_or_not_measured():
    found = {what: (value, holds) for what, _, value, holds, _ in report.bars(report.Rows(ROWS), "l-384")}
    assert found["gRPC / bare, three heads"] == (pytest.approx(75 / 90), False)
    assert found["gRPC / bare, no head"] == (pytest.approx(0.97), True)
    assert found["gRPC, no head / PyTorch compile"] == (pytest.approx(97 / 99), False)
    assert found["gRPC, no head / PyTorch eager"] == (None, None)
    assert found["cost of three heads over one, gRPC"] == (pytest.approx(80 / 75 - 1), True)
    assert found["of which beyond the heads' own (the bare loop's)"] == (pytest.approx(80 / 75 - 96 / 90), True)
    assert found["bytes device to host / heads' outputs"] == (1.0, True)
    assert found["share of the matrix rate, gRPC, three heads"] == (pytest.approx(75 * 115.4 * 2e9 / 1e14), None)
    assert found["device memory after the soak / before"] == (pytest.approx(1.01), True)
    assert found["resident memory after the soak / before"] == (pytest.approx(1.2), False)
    # What failed was not measured.
    assert found["requests lost through out-of-memory"] == (None, None)


def test_the_page_says_what_it_is_and_which_models_are_missing():
    page = report.table(ROWS, cpu=True)
    assert "dry run on a CPU" in page and "dry run on a CPU" not in report.table(ROWS, cpu=False)
    assert "| g-384 | all of it | | | not measured | |" in page
    assert "| l-384 | gRPC / bare, three heads | ≥ 0.95 | 0.8333 | missed |" in page
    assert "the program ended" in page


def test_a_later_call_measures_only_what_is_missing(tmp_path):
    kit.Kit(True, tmp_path, 60).results.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    call = kit.Kit(True, tmp_path, 60)
    assert call.done(part="bare", model="l-384", batch=8, heads=3)
    assert not call.done(part="bare", model="l-384", batch=32, heads=3)
    assert not call.done(part="oom", model="l-384")


def test_a_call_whose_time_is_over_says_so_and_still_writes_the_page(tmp_path):
    command = [sys.executable, KIT / "kit.py", "--cpu", "--out", tmp_path, "--limit", "1", "n-128:soak"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert "the same command again" in done.stdout and (tmp_path / "RESULTS.md").exists()
