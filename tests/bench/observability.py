#!/usr/bin/env python3
"""What telling costs: the same calls against a server that tells nothing and one that tells everything, taking turns.

Everything: JSON logs with a line for each call, the admin port scraped every second, spans at the default sampling. Prints calls
a second and the server's processor time per call for both, the slowest scrape while saturated, and exits with 1 if telling costs
more than 2 % of the calls a second or a scrape takes 50 ms.

    observability.py BINARY [--rounds N] [--calls N]
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

SAMPLES = pathlib.Path(__file__).resolve().parents[2] / "models/demo/samples"
TICKS = os.sysconf("SC_CLK_TCK")


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


def main() -> int:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("target/bench"))
    parser.add_argument("--traces", default="http://127.0.0.1:4317", help="a collector; none need listen there")
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    scenes = sorted(str(path) for path in SAMPLES.glob("*.jpg"))
    images = (scenes * (args.calls // len(scenes) + 1))[: args.calls]
    quiet = Server(args.binary, args.logs / "quiet.log", "--set", "telemetry.log=frostline=info,warn")
    servers = [quiet]
    stop, scrapes = threading.Event(), []
    try:
        telling = Server(
            args.binary,
            args.logs / "telling.log",
            *("--admin", "127.0.0.1:0", "--set", "telemetry.format=json", "--set", f"telemetry.traces={args.traces}"),
            *("--set", "telemetry.log=info,frostline::call=debug"),
        )
        servers.append(telling)
        admin = telling.find(r'address":"(127\.0\.0\.1:\d+)".*admin port|admin port.*address":"(127\.0\.0\.1:\d+)')
        saturated = threading.Event()

        def scrape() -> None:
            while not stop.wait(1):
                begun = time.monotonic()
                with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as answer:
                    answer.read()
                if saturated.is_set():
                    scrapes.append(time.monotonic() - begun)

        threading.Thread(target=scrape, daemon=True).start()
        for server in servers:
            load(args.binary, server, images)
        rates, costs = [], []
        for turn in range(args.rounds):
            order = servers if turn % 2 == 0 else servers[::-1]
            got = {}
            for server in order:
                if server is telling:
                    saturated.set()
                got[server] = load(args.binary, server, images)
                saturated.clear()
            rates.append((got[quiet][0], got[telling][0]))
            costs.append((got[quiet][1], got[telling][1]))
    finally:
        stop.set()
        for server in servers:
            server.process.terminate()
            server.process.wait(timeout=40)
    ratio = statistics.median(b / a for a, b in rates)
    processor = statistics.median(b / a for a, b in costs)
    for name, index in (("quiet", 0), ("telling", 1)):
        rate, cost = statistics.median(r[index] for r in rates), statistics.median(c[index] for c in costs)
        print(f"{name:8} {rate:7.1f} calls/s  {cost * 1e3:6.2f} ms of processor time a call")
    print(f"telling over quiet, medians of {args.rounds} rounds: {ratio:.3f} of the calls/s, {processor:.3f} of the processor time")
    print(f"scrapes while saturated: {len(scrapes)}, median {statistics.median(scrapes) * 1e3:.1f} ms, slowest {max(scrapes) * 1e3:.1f} ms")
    return 0 if ratio >= 0.98 and max(scrapes) < 0.050 else 1


if __name__ == "__main__":
    sys.exit(main())
