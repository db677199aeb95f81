#!/usr/bin/env python3
"""What telling costs: the same calls against a server that tells nothing and one that tells everything, taking turns.

Everything: JSON logs with a line for each call, the admin port scraped every second, spans of every call to a collector that
takes them. Prints calls a second and the server's processor time per call for both, the slowest scrape while saturated, and exits
with 1 if telling costs more than 2 % of the calls a second or a scrape takes 50 ms.

Both servers, the load and the collector share this machine, so a round's calls a second swing with whatever else runs; the
processor time per call, which is the server's own, swings less. Medians over rounds in turns and
over fresh pairs of servers, with their quartiles.

    observability.py BINARY [--pairs N] [--rounds N] [--calls N] [--ratio R]
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

import grpc

SAMPLES = pathlib.Path(__file__).resolve().parents[2] / "models/demo/samples"
TICKS = os.sysconf("SC_CLK_TCK")


class Collector:
    """An OTLP collector that takes what comes and keeps nothing."""

    EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

    def __init__(self) -> None:
        self.bytes = 0
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers([self])
        self.address = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of the one method that there is."""
        return grpc.unary_unary_rpc_method_handler(self.take) if details.method == self.EXPORT else None

    def take(self, spans: bytes, _: grpc.ServicerContext) -> bytes:
        """An empty answer: all of it was taken."""
        self.bytes += len(spans)
        return b""


class Server:
    """A server process on free ports."""

    def __init__(self, binary: str, log: pathlib.Path, *flags: str) -> None:
        self.log = log.open("w")
        command = [binary, "serve", "--listen", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(command, stderr=self.log, stdout=subprocess.DEVNULL)
        try:
            self.address = self.find(r'ready.*?address[="\s:]+(127\.0\.0\.1:\d+)|address[="\s:]+(127\.0\.0\.1:\d+).*ready')
        except BaseException:
            self.process.kill()
            raise

    def find(self, pattern: str) -> str:
        """The first match of `pattern` in the log, waiting for it."""
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            text = re.sub(r"\x1b\[[0-9;]*m", "", pathlib.Path(self.log.name).read_text())
            for line in text.splitlines():
                if found := re.search(pattern, line):
                    return next(group for group in found.groups() if group)
            time.sleep(0.1)
        raise RuntimeError(f"the server did not start: {pathlib.Path(self.log.name).read_text()}")

    def seconds(self) -> float:
        """Processor time so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def load(binary: str, server: Server, images: list[str]) -> tuple[float, float]:
    """Sends the images; calls a second, and the server's processor time per call."""
    busy, begun = server.seconds(), time.monotonic()
    command = [binary, "detect", "--addr", f"http://{server.address}", "--jobs", "16", "--json", *images]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - begun
    return len(images) / took, (server.seconds() - busy) / len(images)


def middle(pairs: list[tuple[float, float]]) -> tuple[float, str]:
    """The median of the second over the first, and its quartiles."""
    low, median, high = statistics.quantiles((b / a for a, b in pairs), n=4)
    return median, f"{low:.3f} to {high:.3f}"


# What warm-up would else choose anew for each process.
SAME = ("--set", "engine.buckets=[1, 2, 4, 8]", "--set", "engine.lanes=2")
QUIET = ("--set", "telemetry.log=frostline=info,warn")
TELLING = ("--admin", "127.0.0.1:0", "--set", "telemetry.format=json", "--set", "telemetry.log=info,frostline::call=debug")


class Scraper:
    """Scrapes an admin port every second until it is stopped; `saturated` says when it counts."""

    def __init__(self, admin: str) -> None:
        self.admin, self.took = admin, []
        self.saturated, self.stop = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        """Scrapes."""
        while not self.stop.wait(1):
            counts, begun = self.saturated.is_set(), time.monotonic()
            with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=10) as answer:
                answer.read()
            if counts and self.saturated.is_set():
                self.took.append(time.monotonic() - begun)


def pair(args: argparse.Namespace, images: list[str], traces: str, turn: int) -> tuple[list, list, list]:
    """Two fresh servers, taking turns: pairs of calls a second and of processor times, and what scrapes took."""
    telling_flags = (*TELLING, "--set", f"telemetry.traces={traces}", "--set", f"telemetry.trace_ratio={args.ratio}")
    flags = {"quiet": QUIET, "telling": (*telling_flags, "--set", "telemetry.trace_queue=65536")}
    servers, rates, costs, scraper = {}, [], [], None
    try:
        for name in sorted(flags, reverse=turn % 2 == 0):
            servers[name] = Server(args.binary, args.logs / f"{name}.log", *SAME, *flags[name])
        scraper = Scraper(servers["telling"].find(r'address":"(127\.0\.0\.1:\d+)".*admin port|admin port.*address":"(127\.0\.0\.1:\d+)'))
        for server in servers.values():
            load(args.binary, server, images)
        for round_ in range(args.rounds):
            got = {}
            for name in sorted(servers, reverse=(turn + round_) % 2 == 0):
                if name == "telling":
                    scraper.saturated.set()
                got[name] = load(args.binary, servers[name], images)
                scraper.saturated.clear()
            rates.append((got["quiet"][0], got["telling"][0]))
            costs.append((got["quiet"][1], got["telling"][1]))
    finally:
        if scraper:
            scraper.stop.set()
            scraper.thread.join()
        for server in servers.values():
            server.process.terminate()
            server.process.wait(timeout=40)
    return rates, costs, scraper.took


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--pairs", type=int, default=10, help="fresh pairs of servers: two processes of one binary differ too")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each pair")
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--ratio", type=float, default=1.0, help="share of the calls that are traced")
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("target/bench"))
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    scenes = sorted(str(path) for path in SAMPLES.glob("*.jpg"))
    images = (scenes * (args.calls // len(scenes) + 1))[: args.calls]
    collector = Collector()
    rates, costs, scrapes = [], [], []
    for turn in range(args.pairs):
        more = pair(args, images, collector.address, turn)
        for all_, new in zip((rates, costs, scrapes), more):
            all_ += new
    collector.server.stop(None)
    ratio, rate_range = middle(rates)
    processor, cost_range = middle(costs)
    for name, index in (("quiet", 0), ("telling", 1)):
        rate, cost = statistics.median(r[index] for r in rates), statistics.median(c[index] for c in costs)
        print(f"{name:8} {rate:7.1f} calls/s  {cost * 1e3:6.2f} ms of processor time a call")
    print(f"telling over quiet, medians of {len(rates)} rounds of {args.pairs} pairs of servers, and their quartiles:")
    print(f"  calls/s {ratio:.3f} ({rate_range}), processor time {processor:.3f} ({cost_range})")
    print(f"spans: {collector.bytes / 1e6:.1f} MB taken by the collector")
    print(f"scrapes while saturated: {len(scrapes)}, median {statistics.median(scrapes) * 1e3:.1f} ms, slowest {max(scrapes) * 1e3:.1f} ms")
    return 0 if ratio >= 0.98 and max(scrapes) < 0.050 else 1


if __name__ == "__main__":
    sys.exit(main())
