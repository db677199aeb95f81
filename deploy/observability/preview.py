#!/usr/bin/env python3
"""Draws dashboard.json's panels from a Prometheus, without Grafana: each panel's own queries, titles, units and places.

    preview.py --prometheus http://127.0.0.1:9090 --minutes 10 --out dashboard.png

It is no Grafana: of each panel it knows what this dashboard uses (time series, stat, bar chart). Needs matplotlib.
"""

import argparse
import json
import pathlib
import re
import time
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as dates  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402

BACKGROUND, PANEL, TEXT, GRID = "#111217", "#181b1f", "#d0d0d8", "#2c3036"
COLUMNS, ROW_INCHES, WIDTH_INCHES = 24, 0.36, 22


def ask(prometheus: str, path: str, **parameters: str) -> list[dict]:
    """One query of Prometheus's HTTP API."""
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]["result"]


def shown(value: float, unit: str) -> str:
    """A value with its unit, as Grafana writes it."""
    if value != value:
        return "-"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for size, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} s"
    if unit == "bytes":
        for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} B"
    suffix = {"reqps": " req/s", "ops": " /s"}.get(unit, "")
    return f"{value:.4g}{suffix}"


def legend(target: dict, labels: dict) -> str:
    """The name of a series, from the target's legend format."""
    text = target.get("legendFormat", "")
    for label, value in labels.items():
        text = text.replace("{{" + label + "}}", value or '""')
    # A series without the label has it empty.
    return re.sub(r"{{.*?}}", '""', text)


def query(target: dict, rate: str) -> str:
    """A target's query with Grafana's variables filled in."""
    text = target["expr"].replace("$__rate_interval", rate)
    for name in ("job", "instance", "head"):
        text = text.replace(f"${name}", ".*")
    return text


def draw(axes, panel: dict, args, start: float, end: float) -> int:
    """Draws a panel; how many series it has."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.set_facecolor(PANEL)
    axes.set_title(panel["title"], loc="left", color=TEXT, fontsize=9)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    count = 0
    if panel["type"] == "stat":
        axes.set_xticks([])
        axes.set_yticks([])
        series = ask(args.prometheus, "query", query=query(panel["targets"][0], args.rate), time=str(end))
        text = shown(float(series[0]["value"][1]), unit) if series else "no data"
        axes.text(0.5, 0.45, text, color="#73bf69", fontsize=17, ha="center", va="center", transform=axes.transAxes)
        return len(series)
    axes.tick_params(colors=TEXT, labelsize=7)
    axes.grid(color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    if panel["type"] == "barchart":
        series = ask(args.prometheus, "query", query=query(panel["targets"][0], args.rate), time=str(end))
        field = panel["options"]["xField"]
        bars = sorted((int(one["metric"][field]), float(one["value"][1])) for one in series)
        axes.bar([str(x) for x, _ in bars], [y for _, y in bars], color="#5794f2")
        axes.set_xlabel(field, color=TEXT, fontsize=7)
        return len(bars)
    step = str(max(1, round((end - start) / 240)))
    for target in panel["targets"]:
        expression = query(target, args.rate)
        for one in ask(args.prometheus, "query_range", query=expression, start=str(start), end=str(end), step=step):
            at = [t / 86400 for t, _ in one["values"]]
            values = [float(value) for _, value in one["values"]]
            axes.plot(at, values, linewidth=1, label=legend(target, one["metric"]))
            count += 1
    axes.set_xlim(start / 86400, end / 86400)
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.set_ylim(bottom=0)
    if count:
        axes.legend(fontsize=6, loc="upper left", ncols=2, facecolor=PANEL, edgecolor=GRID, labelcolor=TEXT, framealpha=0.6)
    else:
        axes.text(0.5, 0.5, "no data", color="#888", ha="center", va="center", transform=axes.transAxes)
    return count


def main() -> None:
    """Reads the dashboard, asks Prometheus, writes a PNG, and says which panels have no data."""
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--dashboard", type=pathlib.Path, default=here / "dashboard.json")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", default="1m", help="what $__rate_interval stands for")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("dashboard.png"))
    args = parser.parse_args()
    dashboard = json.loads(args.dashboard.read_text())
    end = time.time()
    start = end - args.minutes * 60
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    rows = max(place["y"] + place["h"] for place in places)
    figure = plt.figure(figsize=(WIDTH_INCHES, rows * ROW_INCHES), facecolor=BACKGROUND)
    empty = []
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] / COLUMNS, 1 - place["y"] / rows
        if panel["type"] == "row":
            figure.text(0.008, top - 0.6 / rows, panel["title"], color=TEXT, fontsize=12, weight="bold", va="center")
            continue
        width, height = place["w"] / COLUMNS, place["h"] / rows
        plain = panel["type"] == "stat"
        inset = (0.006, 0.3 / rows) if plain else (0.032, 1.3 / rows)
        box = (left + inset[0], top - height + inset[1], width - inset[0] - 0.008, height - inset[1] - 1.2 / rows)
        if not draw(figure.add_axes(box), panel, args, start, end):
            empty.append(panel["title"])
    figure.savefig(args.out, dpi=80, facecolor=BACKGROUND)
    print(f"{args.out}: {len(dashboard['panels'])} panels, without data: {empty or 'none'}")


if __name__ == "__main__":
    main()
