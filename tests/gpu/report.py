"""What the kit measured, as a page: what must hold, every line, and what else was seen."""

from __future__ import annotations

import datetime
import os
import platform

#: Multiply-adds of one image in units of 10^9, by model and input size (window 24).
GMACS = {("t", 384): 17.4, ("b", 384): 54.7, ("l", 384): 115.4, ("g", 384): 1539.0}
#: The models of which much is asked, on one H200.
ASKED = ("b-384", "l-384", "g-384")
HOLDS = {"pytorch eager": "PyTorch eager, backbone", "pytorch compile": "`torch.compile`, backbone",
         "bare": "bare ONNX Runtime loop", "engine": "Frostline in process", "grpc": "Frostline over gRPC"}  # fmt: skip


def split(model: str) -> tuple[str, int]:
    name, _, size = model.partition("-")
    return name, int(size)


class Rows:
    """The results, the last of each kind."""

    def __init__(self, rows: list[dict]):
        kept = {(r["part"], r.get("model"), r.get("batch"), r.get("heads")): r for r in rows}
        self.all = list(kept.values())

    def rates(self, part: str, model: str, heads: int) -> dict[int, dict]:
        """Rows with a rate, by batch."""
        return {
            r["batch"]: r for r in self.all
            if r["part"] == part and r.get("model") == model and r.get("heads") == heads and "images_per_s" in r
        }  # fmt: skip

    def best(self, part: str, model: str, heads: int) -> dict | None:
        rows = self.rates(part, model, heads).values()
        return max(rows, key=lambda r: r["images_per_s"], default=None)

    def one(self, part: str, model: str | None = None) -> dict | None:
        found = [r for r in self.all if r["part"] == part and (model is None or r.get("model") == model)]
        return found[-1] if found and "failed" not in found[-1] else None

    def tflops(self) -> float | None:
        rate = self.one("rate")
        return rate and rate["tflops"]

    def share(self, row: dict) -> float | None:
        """Of the device's measured matrix rate."""
        gmacs, tflops = GMACS.get(split(row["model"])), self.tflops()
        return row["images_per_s"] * gmacs * 2e9 / (tflops * 1e12) if gmacs and tflops else None


def bars(rows: Rows, model: str) -> list[tuple[str, str, float | None, bool | None, str]]:
    """``(what, bar, value, holds, how)`` of a model; a value of ``None`` was not measured."""
    out = []

    def add(what: str, bar: str, value: float | None, test=None, how: str = "") -> None:
        out.append((what, bar, value, None if value is None or test is None else bool(test(value)), how))

    def ratio(a: dict | None, b: dict | None) -> tuple[float | None, str]:
        if a is None or b is None:
            return None, ""
        return a["images_per_s"] / b["images_per_s"], f"batch {a['batch']} over batch {b['batch']}"

    best = {(part, heads): rows.best(part, model, heads) for part in ("bare", "engine", "grpc") for heads in (0, 1, 3)}
    for heads in (3, 1, 0):
        value, how = ratio(best["grpc", heads], best["bare", heads])
        add(f"gRPC / bare, {('no head', 'one head', '', 'three heads')[heads]}", "≥ 0.95", value, lambda v: v >= 0.95, how)
    for way, bar in (("compile", 1.0), ("eager", None)):
        value, how = ratio(best["grpc", 0], rows.best(f"pytorch {way}", model, 0))
        add(f"gRPC, no head / PyTorch {way}", f"≥ {bar}" if bar else "", value, bar and (lambda v: v >= bar), how)

    most = {"l-384": 0.10, "g-384": 0.03}.get(model)
    batch = best["grpc", 3] and best["grpc", 3]["batch"]
    time = {
        (part, heads): 1 / row["images_per_s"]
        for part in ("bare", "grpc") for heads in (1, 3) if (row := rows.rates(part, model, heads).get(batch))
    }  # fmt: skip
    more = {p: time[p, 3] / time[p, 1] - 1 for p in ("bare", "grpc") if {(p, 1), (p, 3)} <= time.keys()}
    add("cost of three heads over one, gRPC", f"≤ {most:.0%}" if most else "", more.get("grpc"),
        most and (lambda v: v <= most), f"batch {batch}")  # fmt: skip
    beyond = None if len(more) < 2 else more["grpc"] - more["bare"]
    add("of which beyond the heads' own (the bare loop's)", "≤ 0.01", beyond, lambda v: v <= 0.01, f"batch {batch}")

    grpc, bare = best["grpc", 3], best["bare", 3]
    down = None
    if grpc and bare and grpc.get("to_host_per_image"):
        down = grpc["to_host_per_image"] / bare["outputs_per_image"]
    add("bytes device to host / heads' outputs", "≤ 1.01", down, lambda v: v <= 1.01, "three heads")
    share = rows.share(best["grpc", 3]) if best["grpc", 3] else None
    least = 0.5 if model == "g-384" else None
    add("share of the matrix rate, gRPC, three heads", f"aim {least}" if least else "", share, least and (lambda v: v >= least))
    if soak := rows.one("soak", model):
        for what, key, bar in (("device", "device_bytes", 1.02), ("resident", "resident_bytes_from_to", 1.05)):
            first, last = soak[key]
            grown = last / first if first else None
            add(f"{what} memory after the soak / before", f"≤ {bar}", grown, lambda v, bar=bar: v <= bar, f"{soak['calls']} calls")
    else:
        add("memory after the soak / before", "≤ 1.02", None)
    oom = rows.one("oom", model)
    add("requests lost through out-of-memory", "0", oom and float(oom["lost"]), lambda v: v == 0,
        f"{oom['batches_without_memory']} batches struck" if oom else "")  # fmt: skip
    parity = rows.one("parity", model)
    add("features' cosine to the CPU's", "≥ 0.999", parity and parity["cosine_to_cpu"], lambda v: v >= 0.999)
    return out


def verdicts(rows: Rows) -> list[str]:
    models = [*dict.fromkeys([*ASKED, *(r["model"] for r in rows.all if "model" in r)])]
    lines = ["| model | what | bar | measured | | how |", "|---|---|---|---|---|---|"]
    for model in models:
        entries = bars(rows, model)
        if all(value is None for _, _, value, _, _ in entries):
            lines.append(f"| {model} | all of it | | | not measured | |")
            continue
        for what, bar, value, holds, how in entries:
            verdict = "not measured" if value is None else "" if holds is None else "holds" if holds else "missed"
            shown = "" if value is None else f"{value:.4g}"
            lines.append(f"| {model} | {what} | {bar} | {shown} | {verdict} | {how if value is not None else ''} |")
    return lines


def table(found: list[dict], cpu: bool) -> str:
    """Everything measured, for people."""
    rows = Rows(found)
    rate = rows.one("rate") or {}
    device = max((r["device"].split("): ")[0] for r in rows.all if r.get("device")), key=len, default="unknown")
    library = next((r["onnxruntime"] for r in rows.all if "onnxruntime" in r), "unknown").removeprefix("ORT Build Info: ")
    lines = ["# Measurements of the GPU kit", ""]
    if cpu:
        lines += ["**A dry run on a CPU, at small size: it shows that the kit runs from end to end. No figure here is of a "
                  "GPU, and no verdict here says anything about one.**", ""]  # fmt: skip
    lines += [
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; {device}; {platform.machine()}, {os.cpu_count()} CPU "
        f"cores; ONNX Runtime ({library}); PyTorch {rate.get('torch', 'unknown')}; onnx {rate.get('onnx', 'unknown')}; Python "
        f"{platform.python_version()}; matrix rate {rate.get('tflops', float('nan')):.4g} TFLOP/s.", "",
        "## What must hold", "",
        "Rates are compared at the best batch of each side. With no head, Frostline runs one that averages the last map; "
        "the bare loop and PyTorch run the backbone alone.", "",
        *verdicts(rows), "",
        "## Rates", "",
        "Images/s are medians of 5 turns, with the lowest and the highest; bytes are copies between host and device. The "
        "bare loop's memory is bound once and stays where it is; of its choices the best counts.", "",
        "| model | what | heads | batch | images/s | low | high | share of matrix rate | p50 ms | p99 ms | ready s | "
        "to device B/image | to host B/image | choice |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows.all:
        if "images_per_s" not in row:
            continue
        share = rows.share(row)
        cell = lambda key, form, row=row: form.format(row[key]) if row.get(key) is not None else ""  # noqa: E731
        lines.append(
            f"| {row['model']} | {HOLDS.get(row['part'], row['part'])} | {row.get('heads', '')} | {row['batch']} | "
            f"{row['images_per_s']:.1f} | {row['low']:.1f} | {row['high']:.1f} | {'' if share is None else f'{share:.2f}'} | "
            f"{cell('p50_ms', '{:.1f}')} | {cell('p99_ms', '{:.1f}')} | {cell('ready_s', '{:.1f}')} | "
            f"{cell('to_device_per_image', '{:.0f}')} | {cell('to_host_per_image', '{:.0f}')} | {row.get('choice', '')} |"
        )
    lines += ["", "## Ways to write attention", "", "The bare loop without heads.", "",
              "| model | form | batch | images/s | over matmul |", "|---|---|---|---|---|"]  # fmt: skip
    variants = [r for r in rows.all if r["part"].startswith("bare, attention ") and "images_per_s" in r]
    plain = {(r["model"], r["batch"]): r["images_per_s"] for r in variants if r["part"].endswith(" matmul")}
    for row in variants:
        base = plain.get((row["model"], row["batch"]))
        over = f"{row['images_per_s'] / base:.2f}" if base else ""
        lines.append(f"| {row['model']} | {row['part'].split()[-1]} | {row['batch']} | {row['images_per_s']:.1f} | {over} |")
    lines += ["", "## Else", "", "| part | model | result |", "|---|---|---|"]
    for row in rows.all:
        if "images_per_s" in row:
            continue
        rest = {k: v for k, v in row.items() if k not in ("part", "model", "device", "onnxruntime")}
        text = ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items())
        lines.append(f"| {row['part']} | {row.get('model', '')} | {text} |")
    return "\n".join([*lines, "", *commands()]) + "\n"


def commands() -> list[str]:
    """How a GPU host repeats it."""
    return [
        "## How to measure on a GPU host", "",
        "`make gpu-kit` packs `target/gpu-kit`; on the host each line is one call of less than 9 minutes. A call whose time "
        "is over says so and exits with 75: the same line again goes on where it stopped.", "",
        "```",
        "cd target/gpu-kit",
        "./run.sh rate t-384                                    # all of SwinV2-T: some minutes",
        *(f"./run.sh {m}:export {m}:torch   # then\n./run.sh {m}:frostline   # then\n"
          f"./run.sh {m}:parity {m}:oom {m}:variants   # then\n./run.sh {m}:soak" for m in ASKED),
        "./run.sh b-512 l-512                                   # 512 pixels, window 16",
        "KIT_BATCHES=1,2,4,8,16,32,64 ./run.sh l-384:frostline   # more batches",
        "./run.sh report                                        # writes out/RESULTS.md anew",
        "```",
    ]  # fmt: skip
