"""The GPU kit: makes models with random weights, measures PyTorch and Frostline beside each other, writes one table.

Run by run.sh, which sets the libraries' paths.  See deploy/GPU.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
for place in (HERE, HERE.parents[1] / "models"):
    if (place / "frostline_models").is_dir():
        sys.path.insert(0, str(place))

#: Multiply-adds of one image in units of 10^9, by model and input size (window 24 and 16).
GMACS = {("t", 384): 17.4, ("b", 384): 54.7, ("l", 384): 115.4, ("g", 384): 1539.0}
HEADS = (("objects", "detection", "single-stage"), ("scene", "segmentation", "linear"),
         ("class", "segmentation", "upernet"))  # fmt: skip
WHAT = ("export", "torch", "frostline", "soak", "oom", "parity")


class Kit:
    """One call of the kit."""

    def __init__(self, cpu: bool, out: Path):
        self.cpu, self.out = cpu, out
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = "cpu" if cpu else "cuda:0"
        self.seconds = 0.4 if cpu else 3.0
        self.program = Path(os.environ.get("KIT_PROGRAM", HERE / "gpu"))

    def note(self, **values) -> None:
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        print(json.dumps(values), flush=True)

    def folder(self, model: str) -> Path:
        return self.out / "models" / model

    # === parts ===

    def rate(self) -> None:
        """The matrix rate that this device reaches, for shares of it."""
        import torch

        size, kind = (1024, torch.float32) if self.cpu else (8192, torch.float16)
        a, b = (torch.randn(size, size, device=self.device, dtype=kind) for _ in range(2))
        seconds = self.timed(lambda: a @ b, 3 if self.cpu else 20)
        self.note(part="rate", tflops=2 * size**3 / statistics.median(seconds) / 1e12, torch=torch.__version__)

    def export(self, model: str) -> None:
        """The backbone with random weights, and three heads."""
        import torch
        from frostline_models.backbones import export, sources
        from frostline_models.taskheads import registry
        from frostline_models.taskheads.spec import from_manifest

        name, size = split(model)
        torch.set_num_threads(os.cpu_count() or 1)
        request = sources.Request(name=f"swinv2-{name}", size=size, window=window(size), seed=0)
        precision = "fp32" if self.cpu else "fp16"
        options = export.Options(precision=precision, attention=os.environ.get("KIT_ATTENTION", "matmul"),
                                 threads=os.cpu_count() or 1, licence="none")
        began = time.perf_counter()
        levels = export.export(sources.load(request), self.folder(model), options, say=lambda _: None)
        spec = from_manifest(self.folder(model) / "backbone.toml", classes=20)
        sha = export.file_sha256(self.folder(model) / "backbone.onnx")
        for head, task, form in HEADS:
            made = sources.randomize(registry.build(task, form, spec), 1).eval()
            labels = [f"label{i}" for i in range(20)]
            registry.publish(self.folder(model), head, made, spec, labels, sha, {}, {})
        self.note(part="export", model=model, precision=precision, attention=options.attention,
                  seconds=time.perf_counter() - began, cosine_to_pytorch=min(v.cosine for v in levels))

    def torch(self, model: str) -> None:
        """PyTorch eager and compiled, backbone alone."""
        import torch
        from frostline_models.backbones import sources

        name, size = split(model)
        request = sources.Request(name=f"swinv2-{name}", size=size, window=window(size), seed=0)
        module = sources.load(request).module.eval().bake().to(self.device)
        if not self.cpu:
            module = module.half()
            for layer in module.modules():
                for key, value in vars(layer).items():
                    if key == "baked" and value is not None:
                        layer.baked = tuple(t.half().to(self.device) for t in value)
        ways = {"eager": module}
        if not self.cpu:
            ways["compile"] = torch.compile(module)
        for way, run in ways.items():
            for batch in self.batches():
                image = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=self.device)
                with torch.inference_mode():
                    seconds = self.timed(lambda: run(image), 5 if self.cpu else 20)
                rates = sorted(batch / s for s in seconds)
                self.note(part=f"pytorch {way}", model=model, batch=batch, heads=0, low=rates[0],
                          images_per_s=statistics.median(rates), high=rates[-1])

    def frostline(self, model: str) -> None:
        """Graphs in a loop, the engine, and gRPC; one head, then three."""
        for heads in (1, 3):
            for batch in self.batches():
                for part in ("bare", "engine", "grpc"):
                    self.measure(part, model, batch, self.seconds / 5, heads)

    def soak(self, model: str) -> None:
        self.measure("soak", model, self.batches()[-1], 10 if self.cpu else 480, 3)

    def oom(self, model: str) -> None:
        self.measure("oom", model, max(self.batches()[-1], 2), self.seconds, 3)

    def parity(self, model: str) -> None:
        self.measure("parity", model, 1, 1, 0)

    # === helpers ===

    def batches(self) -> list[int]:
        default = "1,4" if self.cpu else "1,8,32,64"
        return [int(b) for b in os.environ.get("KIT_BATCHES", default).split(",")]

    def timed(self, run, rounds: int) -> list[float]:
        import torch

        wait = (lambda: None) if self.cpu else torch.cuda.synchronize
        seconds = []
        for _ in range(rounds + 3):
            wait()
            began = time.perf_counter()
            run()
            wait()
            seconds.append(time.perf_counter() - began)
        return seconds[3:]

    def measure(self, part: str, model: str, batch: int, seconds: float, heads: int) -> None:
        names = ",".join(name for name, _, _ in HEADS[:heads])
        command = [self.program, part, self.folder(model), self.device, str(batch), str(seconds), names]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=540)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        for line in lines:
            self.note(**json.loads(line) | {"model": model})
        if done.returncode or not lines:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            self.note(part=part, model=model, batch=batch, heads=heads, failed=reason)

    def report(self) -> Path:
        rows = [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]
        path = self.out / "RESULTS.md"
        path.write_text(table(rows, self.cpu))
        return path


def split(model: str) -> tuple[str, int]:
    name, _, size = model.partition("-")
    return name, int(size)


def window(size: int) -> int:
    return {128: 8, 256: 16, 384: 24, 512: 16}.get(size, 8)


def table(rows: list[dict], cpu: bool) -> str:
    """Everything measured, for people."""
    tflops = next((r["tflops"] for r in reversed(rows) if r["part"] == "rate"), None)
    device = next((r["device"] for r in reversed(rows) if "device" in r), "unknown")
    lines = ["# Measurements of the GPU kit", ""]
    if cpu:
        lines += ["**A dry run on a CPU at small size: it shows that the kit runs, not how fast a GPU is.**", ""]
    lines += [
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}, {device.split(':')[0]}, {platform.machine()}, "
        f"{os.cpu_count()} CPU cores, Python {platform.python_version()}", "",
        "Images/s are medians of 5 turns, with the lowest and the highest; bytes are copies between host and device.", "",
        "| model | what | heads | batch | images/s | low | high | share of matrix rate | p50 ms | p99 ms | "
        "to device B/image | to host B/image |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        if "images_per_s" not in row:
            continue
        gmacs = GMACS.get(split(row["model"]))
        share = f"{row['images_per_s'] * gmacs * 2e9 / (tflops * 1e12):.2f}" if gmacs and tflops else ""
        cell = lambda key, form: form.format(row[key]) if row.get(key) is not None else ""  # noqa: E731
        lines.append(
            f"| {row['model']} | {row['part']} | {row.get('heads', '')} | {row['batch']} | {row['images_per_s']:.1f} | "
            f"{row['low']:.1f} | {row['high']:.1f} | {share} | {cell('p50_ms', '{:.1f}')} | {cell('p99_ms', '{:.1f}')} | "
            f"{cell('to_device_per_image', '{:.0f}')} | {cell('to_host_per_image', '{:.0f}')} |"
        )
    others = [r for r in rows if "images_per_s" not in r]
    lines += ["", "| part | model | result |", "|---|---|---|"]
    for row in others:
        rest = {k: v for k, v in row.items() if k not in ("part", "model", "device")}
        text = ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items())
        lines.append(f"| {row['part']} | {row.get('model', '')} | {text} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="dry run on the CPU, at small size")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    parser.add_argument("parts", nargs="*", help="rate, MODEL (all of it) or MODEL:WHAT")
    arguments = parser.parse_args()
    kit = Kit(arguments.cpu, arguments.out)
    parts = arguments.parts or (["rate", "n-128"] if arguments.cpu else ["rate", "t-384"])
    for part in parts:
        if part == "rate":
            kit.rate()
            continue
        model, _, what = part.partition(":")
        if what and what not in WHAT:
            parser.error(f"{part}: WHAT must be one of {', '.join(WHAT)}")
        for step in [what] if what else WHAT:
            getattr(kit, step)(model)
    print(f"wrote {kit.report()}")


if __name__ == "__main__":
    main()
