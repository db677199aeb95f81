"""The GPU kit: makes models with random weights, measures PyTorch and Frostline beside each other, writes one table.

Run by run.sh, which sets the libraries' paths.  See deploy/GPU.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import report

HERE = Path(__file__).resolve().parent
for place in (HERE, HERE.parents[1] / "models"):
    if (place / "frostline_models").is_dir():
        sys.path.insert(0, str(place))

#: Light heads, as many as are asked for in this order: name, task, form, options.
HEADS = (
    ("objects", "detection", "single-stage", {}),
    ("scene", "segmentation", "linear", {}),
    ("parts", "segmentation", "upernet", {"width": 64}),
)
WHAT = ("export", "torch", "frostline", "parity", "oom", "soak", "variants")
FORMS = ("matmul", "fused", "mha")
#: Seconds of one call: what is left then is measured by the next.
LIMIT = 520.0


class OutOfTime(Exception):
    """This call's time is over."""


class Kit:
    """One call of the kit."""

    def __init__(self, cpu: bool, out: Path, limit: float):
        self.cpu, self.out, self.until = cpu, out, time.monotonic() + limit
        self.out.mkdir(parents=True, exist_ok=True)
        self.results = self.out / "results.jsonl"
        self.device = "cpu" if cpu else "cuda:0"
        self.seconds = 0.4 if cpu else 3.0
        self.program = Path(os.environ.get("KIT_PROGRAM", HERE / "gpu"))

    def rows(self) -> list[dict]:
        text = self.results.read_text() if self.results.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def note(self, **values) -> None:
        with self.results.open("a") as file:
            file.write(json.dumps(values) + "\n")
        print(json.dumps(values), flush=True)

    def done(self, **key) -> bool:
        """Whether an earlier call has measured this."""
        return any(all(row.get(k) == v for k, v in key.items()) and "failed" not in row for row in self.rows())

    def left(self, least: float = 5.0) -> float:
        """Seconds until this call's limit, for something that takes at least so many."""
        left = self.until - time.monotonic()
        if left < least:
            raise OutOfTime
        return left

    def folder(self, model: str) -> Path:
        return self.out / "models" / model

    def batches(self) -> list[int]:
        default = "1,4" if self.cpu else "1,8,32,64"
        return [int(b) for b in os.environ.get("KIT_BATCHES", default).split(",")]

    # === steps in this process ===

    def rate(self) -> None:
        """The matrix rate that this device reaches, for shares of it."""
        import onnx
        import torch

        size, kind = (1024, torch.float32) if self.cpu else (8192, torch.float16)
        a, b = (torch.randn(size, size, device=self.device, dtype=kind) for _ in range(2))
        seconds = self.timed(lambda: a @ b, 3 if self.cpu else 20)
        name = platform.processor() or platform.machine() if self.cpu else torch.cuda.get_device_name(0)
        self.note(part="rate", tflops=2 * size**3 / median(seconds) / 1e12, device=f"{self.device} ({name})",
                  torch=torch.__version__, cuda=torch.version.cuda, onnx=onnx.__version__)  # fmt: skip

    def export(self, model: str) -> None:
        """The backbone with random weights, the heads, and one that stands for none."""
        if self.done(part="export", model=model) and (self.folder(model) / "backbone.toml").exists():
            return
        from frostline_models.backbones import export
        from frostline_models.backbones.sources import randomize
        from frostline_models.taskheads import registry
        from frostline_models.taskheads.spec import from_manifest

        form, began = os.environ.get("KIT_ATTENTION", "matmul"), time.perf_counter()
        levels = self.backbone(model, self.folder(model), form)
        spec = from_manifest(self.folder(model) / "backbone.toml", classes=20)
        sha = export.file_sha256(self.folder(model) / "backbone.onnx")
        for head, task, kind, more in HEADS:
            made = randomize(registry.build(task, kind, spec, more), 1).eval()
            registry.publish(self.folder(model), head, made, spec, [f"label{i}" for i in range(20)], sha, {}, {})
        pooled(self.folder(model), spec, sha)
        self.note(part="export", model=model, precision=self.precision(), attention=form,
                  seconds=time.perf_counter() - began, cosine_to_pytorch=min(v.cosine for v in levels))  # fmt: skip

    def precision(self) -> str:
        return "fp32" if self.cpu else "fp16"

    def request(self, model: str):
        from frostline_models.backbones import sources

        name, size = report.split(model)
        return sources.Request(name=f"swinv2-{name}", size=size, window=window(size), seed=0)

    def backbone(self, model: str, folder: Path, form: str) -> list:
        """Exports the backbone into ``folder``; its agreement with PyTorch on the CPU."""
        import torch
        from frostline_models.backbones import export, sources

        torch.set_num_threads(os.cpu_count() or 1)
        options = export.Options(precision=self.precision(), attention=form, threads=os.cpu_count() or 1, licence="none")
        return export.export(sources.load(self.request(model)), folder, options, say=lambda _: None)

    def torch(self, model: str) -> None:
        """PyTorch eager and compiled, the backbone alone, its input on the device."""
        import torch
        from frostline_models.backbones import sources

        ways = ["eager"] if self.cpu else ["eager", "compile"]
        wanted = [(way, b) for way in ways for b in self.batches()
                  if not self.done(part=f"pytorch {way}", model=model, batch=b)]  # fmt: skip
        if not wanted:
            return
        module = sources.load(self.request(model)).module.eval().bake().to(self.device)
        if not self.cpu:
            module = module.half()
            for layer in module.modules():
                if getattr(layer, "baked", None) is not None:
                    layer.baked = tuple(t.half().to(self.device) for t in layer.baked)
        compiled = None if self.cpu else torch.compile(module, dynamic=False)
        size = report.split(model)[1]
        for way, batch in wanted:
            run = compiled if way == "compile" else module
            image = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=self.device)
            with torch.inference_mode():
                seconds = self.timed(lambda: run(image), 5 if self.cpu else 20)
            rates = sorted(batch / s for s in seconds)
            self.note(part=f"pytorch {way}", model=model, batch=batch, heads=0, low=rates[0],
                      images_per_s=median(rates), high=rates[-1])  # fmt: skip

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

    # === steps in the measuring program ===

    def frostline(self, model: str) -> None:
        """Graphs in a bare loop, the engine, and gRPC: the backbone alone, one head, three."""
        for batch in self.batches():
            for heads in (0, 1, 3):
                for part in ("bare", "engine", "grpc"):
                    self.measure(part, model, batch, self.seconds / 5, heads)

    def soak(self, model: str) -> None:
        seconds = 30 if self.cpu else 420
        self.left(seconds + 60)
        self.measure("soak", model, self.batches()[-1], seconds, 3)

    def oom(self, model: str) -> None:
        self.measure("oom", model, max(self.batches()[-1], 2), self.seconds, 3)

    def parity(self, model: str) -> None:
        self.measure("parity", model, 1, 1, 0)

    def variants(self, model: str) -> None:
        """Ways to write attention, each in the bare loop without heads."""
        for form in FORMS:
            folder = self.folder(f"{model}-{form}")
            if not (folder / "backbone.toml").exists():
                self.child(f"{model}:form-{form}")
            for batch in self.batches():
                self.measure("bare", model, batch, self.seconds / 5, 0, folder, f"bare, attention {form}")

    def form(self, model: str, form: str) -> None:
        levels = self.backbone(model, self.folder(f"{model}-{form}"), form)
        self.note(part=f"export, attention {form}", model=model, cosine_to_pytorch=min(v.cosine for v in levels))

    def measure(
        self, part: str, model: str, batch: int, seconds: float, heads: int, folder: Path | None = None,
        label: str | None = None,
    ) -> None:  # fmt: skip
        label, folder = label or part, folder or self.folder(model)
        if self.done(part=label, model=model, batch=batch, heads=heads):
            return
        names = ",".join(name for name, *_ in HEADS[:heads])
        command = [self.program, part, folder, self.device, batch, seconds, names]
        try:
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=self.left())
        except subprocess.TimeoutExpired:
            raise OutOfTime from None
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        for line in lines:
            self.note(**json.loads(line) | {"part": label, "model": model})
        if done.returncode or not lines:
            reason = (done.stderr.strip().splitlines() or [f"no output, exit code {done.returncode}"])[-1]
            self.note(part=label, model=model, batch=batch, heads=heads, failed=reason)

    # === calls ===

    def child(self, step: str) -> None:
        """A step in a process of its own, which ends at this call's limit."""
        command = [sys.executable, __file__, "--out", self.out, "--child", step, *(["--cpu"] if self.cpu else [])]
        try:
            done = subprocess.run([str(c) for c in command], timeout=self.left(), stderr=subprocess.PIPE, text=True)
        except subprocess.TimeoutExpired:
            raise OutOfTime from None
        if done.returncode:
            model, _, what = step.partition(":")
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            self.note(part=what, model=model, failed=reason)

    def step(self, model: str, what: str) -> None:
        if what.startswith("form-"):
            self.form(model, what.removeprefix("form-"))
        else:
            getattr(self, what)(model)

    def report(self) -> Path:
        path = self.out / "RESULTS.md"
        path.write_text(report.table(self.rows(), self.cpu))
        return path


def pooled(folder: Path, spec, sha: str) -> None:
    """The head ``pooled``, the mean of the last map: what Frostline runs where the backbone alone is wanted."""
    import onnx
    from frostline_models import export as common
    from onnx import TensorProto, helper

    name, shape = list(spec.shapes().items())[-1]
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", [name], ["mean"], name="mean"),
         helper.make_node("Flatten", ["mean"], ["embedding"], name="flat")],
        "pooled",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", shape[0]])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    common.write(folder / "heads" / "pooled" / "head.onnx", data)
    table = {"name": "pooled", "version": "1", "task": "embedding", "file": "head.onnx", "sha256": common.sha256(data),
             "backbone": sha, "input_size": [spec.size, spec.size], "features": [name]}  # fmt: skip
    common.write(folder / "heads" / "pooled" / "head.toml", common.manifest(table))


def window(size: int) -> int:
    return {128: 8, 256: 16, 384: 24, 512: 16}.get(size, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="dry run on the CPU, at small size")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of this call")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", help="rate, variants, MODEL (all of it) or MODEL:WHAT")
    arguments = parser.parse_args()
    kit = Kit(arguments.cpu, arguments.out, arguments.limit)
    small = "n-128" if arguments.cpu else "t-384"
    if arguments.child:
        kit.step(*arguments.child.split(":"))
        return
    steps = []
    for part in arguments.parts or ["rate", small]:
        model, _, what = part.partition(":")
        if part in ("rate", "report"):
            steps.append((None, part))
        elif part == "variants":
            steps.append((small, part))
        elif what and what not in WHAT:
            parser.error(f"{part}: WHAT must be one of {', '.join(WHAT)}")
        else:
            steps += [(model, step) for step in ([what] if what else WHAT)]
    try:
        for model, what in steps:
            if what == "rate":
                kit.rate()
            elif what in ("export", "torch"):
                kit.child(f"{model}:{what}")
            elif what != "report":
                kit.step(model, what)
    except OutOfTime:
        print("this call's time is over: the same command again goes on where it stopped")
        raise SystemExit(75) from None
    finally:
        print(f"wrote {kit.report()}")


if __name__ == "__main__":
    main()
