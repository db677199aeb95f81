#!/usr/bin/env python3
"""Attacks a server as an outsider would, and as a caller would who means no good, and holds what others see to bounds.

Every attack is a program of its own, bounded in count and time, against a fresh server with keys on loopback, in a control group
or under a watchdog. Beside it a good caller of another identity makes ten calls a second, and probes ask for health. Prints a
table, writes target/attack/attack.json, and exits with 1 if a bound is missed.

    attack.py [NAME ...] [--binary PATH] [--cap MIB] [--list]
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import plan
from observers import PATIENCE, PROBE_PATIENCE, Observer, Seen
from server import ROOT, Server, State, environment

QUIET_SECONDS = 8
# Times that quiet is looked for, and its p99 over its p50 that is quiet enough.
QUIET_TRIES, QUIET_SPREAD = 4, 4
GIVEN_BACK_SECONDS = 10

# What must hold.
ANSWERED = 0.99
# The good caller's p99 over its quiet p99: under attack by a stranger, and by a caller with a token.
SLOWER, SLOWER_BY_CALLER = 10, 20
MOST_MEMORY = 1536 << 20
# Lines of the log in a second, whatever is sent, and at the least.
LINES_A_SECOND, LINES = 2, 10
# Memory that may stay: the allocator's, and what is kept for the next calls.
MEMORY_LEFT, MEMORY_LEFT_SHARE = 64 << 20, 0.25
# Series of metrics that an attack may add: a method with a code, or a head with one, is a histogram of some twenty.
SERIES_ADDED = 2000


@dataclass
class Report:
    """What became of one attack."""

    name: str
    what: str
    caller: bool
    seconds: float = 0
    frames: int = 0
    bytes: int = 0
    connections: int = 0
    closed: int = 0
    cpu_seconds: float = 0
    peak_bytes: int = 0
    # What the server says it takes at most; none if it does not say.
    stated_bytes: int | None = None
    quiet_p99_s: float = 0
    p50_s: float = 0
    p99_s: float = 0
    calls: int = 0
    answered: float = 0
    probes: dict[str, list[float]] = field(default_factory=dict)
    log_lines: int = 0
    log_bytes: int = 0
    given_back_s: float | None = None
    before: str = ""
    after: str = ""
    statuses: dict[str, int] = field(default_factory=dict)
    resets: dict[str, int] = field(default_factory=dict)
    goaways: dict[str, int] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)
    # What others were told, and some of the log.
    errors: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    @property
    def slower(self) -> float:
        return self.p99_s / self.quiet_p99_s if self.quiet_p99_s else math.nan


def strike(attack: plan.Attack, server: Server, seconds: float, scale: float) -> dict[str, object]:
    """Runs the attack in a process of its own, which is ended when it takes much longer than it should."""
    target = {
        "address": server.address,
        "admin": server.admin,
        "tokens": server.tokens,
        "seconds": seconds,
        "scale": scale,
        "certificate": str(server.certificate or ""),
        "pid": server.process.pid,
    }
    command = [sys.executable, plan.__file__, attack.name]
    try:
        done = subprocess.run(
            command, input=json.dumps(target), capture_output=True, text=True, timeout=2 * seconds + 30, env=environment()
        )
    except subprocess.TimeoutExpired:
        return {"faults": ["the attacker did not come to its end in time"]}
    if done.returncode == 0:
        return json.loads(done.stdout)
    # A server that is gone, or closes connections, is seen in other ways.
    return {"notes": {"the attacker ended": done.stderr.strip().splitlines()[-1:]}}


def given_back(
    server: Server, before: State, ended: float, patience: float = GIVEN_BACK_SECONDS
) -> tuple[float | None, State]:
    """Seconds until the server holds no more than before, if it does within `patience`; and what it holds then."""
    while True:
        state = server.state()
        took = time.monotonic() - ended
        memory = before.resident + max(MEMORY_LEFT, MEMORY_LEFT_SHARE * before.resident)
        # The good caller and the probes have some open at any moment.
        free = state.calls <= before.calls + 4 and state.images <= before.images + 4
        if free and state.resident <= memory and state.descriptors <= before.descriptors + 8:
            return took, state
        if took > patience or not server.alive():
            return None, state
        time.sleep(0.25)


def run(attack: plan.Attack, binary: Path, cap: int, scale: float = 1, seconds: float | None = None) -> Report:
    """One attack against a fresh server."""
    server = Server(binary, attack.options, cap)
    observers: list[Observer] = []
    try:
        certificate = server.certificate or ""
        good, probe = None, None
        if not attack.alone:
            good = Observer("good", *server.address, server.tokens["good"], certificate)
            observers.append(good)
            good.wait()
        probe = Observer("probe", *server.address, *server.admin, binary, certificate)
        observers.append(probe)
        probe.wait()
        return observe(attack, server, good, probe, scale, seconds or attack.seconds)
    finally:
        for observer in observers:
            observer.stop()
        server.stop()


def observe(
    attack: plan.Attack,
    server: Server,
    good: Observer | None,
    probe: Observer,
    scale: float,
    seconds: float,
) -> Report:
    """One attack against a running server with its observers."""
    report = Report(attack.name, attack.what, attack.caller)
    quiet, idle_share = be_quiet(server, good, 1 if attack.alone else QUIET_SECONDS)
    before, internal = server.state(), faults_counted(server)
    lines = len(server.lines)
    server.forget_peak()

    begun, cpu = time.monotonic(), server.cpu()
    told = strike(attack, server, seconds, scale)
    ended = time.monotonic()
    report.cpu_seconds = server.cpu() - cpu - (ended - begun) * idle_share
    report.given_back_s, after = given_back(server, before, ended)
    report.peak_bytes, report.stated_bytes = server.peak(), server.stated()
    # Those that are under way are waited for: they are of the attack's time.
    time.sleep(max(0.0, ended + PATIENCE + 0.5 - time.monotonic()))

    report.seconds, report.before, report.after = ended - begun, str(before), str(after)
    for name in ("frames", "bytes", "connections", "closed", "statuses", "resets", "goaways", "notes"):
        setattr(report, name, told.get(name, getattr(report, name)))
    log = server.lines[lines:]
    report.log_lines, report.log_bytes = len(log), sum(map(len, log))
    report.log = [line[:400] for line in log[:5]]
    report.missed += told.get("faults", [])
    report.missed += judge_server(server, report, internal)
    if (added := after.series - before.series) > SERIES_ADDED:
        report.missed.append(f"{added} series of metrics were added, at most {SERIES_ADDED}")
    if good:
        report.missed += judge_good(report, quiet, good.seen("call", begun, ended))
    # A probe now and then is late on a machine that does other things; one that stands for all of them is not.
    for kind in ("health", "admin", "command"):
        report.missed += judge_probe(report, kind, probe.seen(kind, begun, ended))
    return report


def be_quiet(server: Server, good: Observer | None, seconds: float) -> tuple[Seen, float]:
    """What a good caller sees while nobody attacks, and the processor's share that it takes. A machine that does other
    things meanwhile is given other chances: what it took then would excuse what an attack does."""
    best, share = Seen(), 0.0
    for _ in range(QUIET_TRIES):
        begun, cpu = time.monotonic(), server.cpu()
        time.sleep(seconds)
        ended = time.monotonic()
        share = (server.cpu() - cpu) / (ended - begun)
        if not good:
            break
        time.sleep(0.5)
        seen = good.seen("call", begun, ended)
        if seen.percentile(0.99) <= best.percentile(0.99):
            best = seen
        if seen.percentile(0.99) <= QUIET_SPREAD * seen.percentile(0.5):
            break
    return best, share


def faults_counted(server: Server) -> float:
    """Calls so far that ended as if the server were at fault."""
    names = ('code="INTERNAL"', 'code="UNKNOWN"', 'code="DATA_LOSS"')
    metrics = server.scrape().items()
    return sum(v for k, v in metrics if k.startswith("frostline_call_duration_seconds_count") and any(n in k for n in names))


def judge_server(server: Server, report: Report, internal: float) -> list[str]:
    """What the server itself missed."""
    missed = []
    if server.killed:
        missed.append(f"killed: memory over the cap of {server.cap >> 20} MiB")
    elif not server.alive():
        missed.append(f"the process ended with {server.process.returncode}")
    if report.peak_bytes > MOST_MEMORY:
        missed.append(f"memory {report.peak_bytes >> 20} MiB, at most {MOST_MEMORY >> 20}")
    if report.stated_bytes and report.peak_bytes > report.stated_bytes:
        missed.append(f"memory {report.peak_bytes >> 20} MiB, at most {report.stated_bytes >> 20} by its own word")
    if report.given_back_s is None:
        missed.append(f"not given back within {GIVEN_BACK_SECONDS} s: {report.before} before, {report.after} after")
    most = LINES + LINES_A_SECOND * (report.seconds + GIVEN_BACK_SECONDS)
    if report.log_lines > most:
        missed.append(f"{report.log_lines} lines of the log, at most {most:.0f}")
    if server.alive() and (faults := faults_counted(server) - internal) > 0:
        missed.append(f"{faults:.0f} calls were counted as the server's fault")
    return missed


def judge_good(report: Report, quiet: Seen, seen: Seen) -> list[str]:
    """What the good caller missed."""
    report.quiet_p99_s, report.p50_s, report.p99_s = quiet.percentile(0.99), seen.percentile(0.5), seen.percentile(0.99)
    report.calls, report.answered = seen.count, seen.answered
    report.errors += sorted(set(seen.errors))[:5]
    missed = []
    if seen.answered < ANSWERED:
        missed.append(f"a good caller had {seen.answered:.1%} of {seen.count} calls answered: {seen.errors[:1]}")
    most = SLOWER_BY_CALLER if report.caller else SLOWER
    if seen.answered >= ANSWERED and not report.slower <= most:
        missed.append(f"a good caller's p99 was {report.slower:.1f} times its quiet one, at most {most}")
    return missed


def judge_probe(report: Report, kind: str, seen: Seen) -> list[str]:
    """What the probes missed."""
    late = sum(took > PROBE_PATIENCE for took in seen.took)
    report.probes[kind] = [seen.count, late + len(seen.errors), round(max(seen.took, default=0), 3)]
    report.errors += sorted(set(seen.errors))[:2]
    # What is over in no time is not seen by all of them.
    if not seen.count and report.seconds > 3:
        return [f"no {kind} probe ended"]
    if late or seen.errors:
        return [f"{late + len(seen.errors)} of {seen.count} {kind} probes failed: {(seen.errors or ['late'])[0]}"]
    return []


# === what is told ===

COLUMNS = "attack,holds,peak MiB,CPU s,answered,p50 ms,p99 ms,x quiet,probes,log,closed,given back s".split(",")


def row(report: Report) -> list[str]:
    """A line of the table."""
    failed = sum(int(entry[1]) for entry in report.probes.values())
    count = sum(int(entry[0]) for entry in report.probes.values())
    alone = report.calls == 0
    return [
        report.name,
        "no" if report.missed else "yes",
        str(report.peak_bytes >> 20),
        f"{report.cpu_seconds:.1f}",
        "" if alone else f"{report.answered:.1%}",
        "" if alone else f"{1000 * report.p50_s:.0f}",
        "" if alone else f"{1000 * report.p99_s:.0f}",
        "" if alone else f"{report.slower:.1f}",
        f"{count - failed}/{count}",
        f"{report.log_lines}/{report.frames}",
        f"{report.closed}/{report.connections}",
        "never" if report.given_back_s is None else f"{report.given_back_s:.1f}",
    ]


def table(reports: list[Report]) -> str:
    """All of them, as Markdown."""
    rows = [COLUMNS, *map(row, reports)]
    widths = [max(len(cells[index]) for cells in rows) for index in range(len(COLUMNS))]
    line = lambda cells: "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"
    return "\n".join([line(COLUMNS), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows[1:])])


def write(reports: list[Report], binary: Path) -> Path:
    """Keeps everything as JSON."""
    folder = ROOT / "target/attack"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "attack.json"
    entries = [asdict(report) for report in reports]
    file.write_text(json.dumps({"binary": str(binary), "attacks": entries}, indent=1, default=str))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="attacks to make; all if none is named")
    default = os.environ.get("FROSTLINE_BINARY", ROOT / "target/release/frostline")
    parser.add_argument("--binary", type=Path, default=Path(default))
    parser.add_argument("--cap", type=int, default=6144, help="MiB of memory beyond which the server is killed")
    parser.add_argument("--list", action="store_true", help="list the attacks")
    args = parser.parse_args()
    attacks = plan.load()
    if args.list:
        for attack in attacks.values():
            print(f"{attack.name:24}{'with a token: ' if attack.caller else ''}{attack.what}")
        return
    if unknown := set(args.names) - set(attacks):
        parser.error(f"no attacks are called {sorted(unknown)}")
    # What was started is ended in any case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    reports = []
    for name in args.names or attacks:
        print(f"-- {name}: {attacks[name].what}", flush=True)
        report = run(attacks[name], args.binary.resolve(), args.cap << 20)
        reports.append(report)
        print("   " + ("holds" if not report.missed else "MISSED " + "; ".join(report.missed)), flush=True)
        write(reports, args.binary)
    print(table(reports))
    print(f"\n{write(reports, args.binary)}")
    if missed := [report.name for report in reports if report.missed]:
        sys.exit(f"missed: {' '.join(missed)}")


if __name__ == "__main__":
    main()
