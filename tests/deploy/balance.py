"""Three real servers behind a real balancer, under load: one killed, one drained, all rolled, a head rolled out, and the
cache kept local. Prints a table; exits 1 if a call failed.

usage: balance.py [--balancer envoy|haproxy|nginx]... [--calls N]
"""

import argparse
import asyncio
import re
import shutil
import sys
from collections import Counter
from dataclasses import dataclass

import grpc

from fleet import Balancer, Fleet, Replica, envoy, protocol
from load import CHANNEL, Load, Tally, frames

# Longer than two health checks of the balancers' configurations.
SETTINGS = {
    "server.lame_duck_seconds": 2,
    "server.drain_seconds": 20,
    "engine.lanes": 1,
    "engine.max_batch": 4,
    "engine.buckets": "[1, 4]",
    "repository.watch_seconds": 0,
}


@dataclass
class Row:
    """One scenario's outcome."""

    balancer: str
    scenario: str
    tally: Tally
    note: str

    @property
    def failed(self) -> int:
        return self.tally.failed.total()


def shares(counted: Counter[str], fleet: Fleet) -> str:
    """What was counted by upstream, for each replica."""
    counts = {replica.name: 0 for replica in fleet.replicas}
    for upstream, count in counted.items():
        name = fleet.name_of(upstream)
        counts[name] = counts.get(name, 0) + count
    return "/".join(str(count) for count in counts.values())


async def off_loop(function, *arguments):
    """A blocking step, while the load goes on."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


async def kill(fleet: Fleet, load: Load, calls: int) -> str:
    """SIGKILL under load; the others take over; then it comes back."""
    victim = fleet.replicas[0]
    await load.reach(calls)
    await off_loop(victim.kill)
    await load.reach(calls)
    await off_loop(victim.start)
    await load.reach(calls)
    return "killed with SIGKILL, started again"


async def drain(fleet: Fleet, load: Load, calls: int) -> str:
    """SIGTERM under load; the others take over; then it comes back."""
    await load.reach(calls)
    code = await off_loop(fleet.replicas[1].drain)
    await load.reach(calls)
    await off_loop(fleet.replicas[1].start)
    await load.reach(calls)
    require(code == 0, f"the drained server ended with {code}")
    return "SIGTERM, exit 0, started again"


async def roll(fleet: Fleet, load: Load, calls: int) -> str:
    """All replicas, one after another; each must be found again before the next goes."""
    await load.reach(calls)
    for replica in fleet.replicas:
        code = await off_loop(replica.drain)
        require(code == 0, f"{replica.name} ended with {code}")
        await off_loop(replica.start)
        await used(fleet, load, replica)
    await load.reach(calls)
    return "all drained and started again, one after another"


async def used(fleet: Fleet, load: Load, replica: Replica) -> None:
    """Waits until the balancer sends calls to a replica again."""

    def count() -> int:
        return sum(n for upstream, n in load.tally.by_replica.items() if fleet.name_of(upstream) == replica.name)

    before = count()
    async with asyncio.timeout(60):
        while count() == before:
            await load.reach(1)


async def head_rollout(fleet: Fleet, load: Load, calls: int) -> str:
    """A new version of a head, loaded by one replica after another while all of them serve the old or the new one."""
    await load.reach(calls)
    stub, model = protocol("model_pb2_grpc").ModelServiceStub, protocol("model_pb2")
    for index, replica in enumerate(fleet.replicas):
        manifest = fleet.repository(index) / "heads/objects/head.toml"
        text, changed = re.subn(r'(?m)^version = "1"$', 'version = "2"', manifest.read_text())
        require(changed == 1, f"{manifest} is not at version 1")
        manifest.write_text(text)
        async with grpc.aio.insecure_channel(replica.address, options=CHANNEL) as channel:
            answer = await stub(channel).LoadHead(model.LoadHeadRequest(name="objects"), timeout=60)
        require(answer.head.version == "2", f"{replica.name} serves version {answer.head.version}")
        await load.reach(calls)
    load.tally.versions.clear()
    await load.reach(calls)
    # Calls that were under way when the last replica changed may still tell of the old one; later ones must not.
    require(load.tally.versions["2"] >= calls - load.workers, f"versions after the rollout: {load.tally.versions}")
    return "version 1 to 2 by LoadHead on each replica"


async def locality(kind: str, calls: int, count: int) -> list[Row]:
    """Equal frames, seen several times: by frame key against round robin, with the feature cache on."""
    images, rows = frames(count), []
    for hashed in (True, False):
        settings = SETTINGS | {"engine.cache_bytes": 256 << 20}
        with Fleet(settings) as fleet:
            async with Balancer(kind, fleet, hashed) as balancer:
                async with Load(balancer.address, images, keyed=hashed) as load:
                    await load.reach(calls)
            tally = load.tally
            repeated = tally.calls - len(images)
            hits = tally.sources["cached"] + tally.sources["shared"]
            note = (
                f"{tally.sources['computed']} backbone runs for {len(images)} frames, {hits} hits of {repeated} possible "
                f"[{shares(tally.hits_by_replica, fleet)}]"
            )
            name = "by frame key" if hashed else "round robin"
            rows.append(Row(kind, f"cache, {name} [{shares(tally.by_replica, fleet)}]", tally, note))
    keyed, spread = (row.tally.sources["computed"] for row in rows)
    require(keyed < spread, f"{kind}: {keyed} backbone runs by frame key, {spread} round robin")
    return rows


async def scenarios(kind: str, calls: int) -> list[Row]:
    """All that may happen to replicas behind one balancer."""
    rows, images = [], frames(64)
    with Fleet(SETTINGS) as fleet:
        async with Balancer(kind, fleet) as balancer:
            for scenario in (kill, drain, roll, head_rollout):
                async with Load(balancer.address, images) as load:
                    note = await scenario(fleet, load, calls)
                name = scenario.__name__.replace("_", " ")
                rows.append(Row(kind, f"{name} [{shares(load.tally.by_replica, fleet)}]", load.tally, note))
                show(rows[-1])
    for row in await locality(kind, 6 * calls, 48):
        rows.append(row)
        show(row)
    return rows


def require(holds: bool, what: str) -> None:
    """Ends the run where something does not hold."""
    if not holds:
        raise RuntimeError(what)


def head() -> None:
    print(f"{'balancer':9}{'scenario [calls by replica]':46}{'calls':>6}{'failed':>7}{'retried':>8}{'p50 ms':>8}{'p99 ms':>8}  what")


def show(row: Row) -> None:
    tally = row.tally
    print(
        f"{row.balancer:9}{row.scenario:46}{tally.calls:6}{row.failed:7}{tally.retried:8}"
        f"{tally.quantile(0.5):8.0f}{tally.quantile(0.99):8.0f}  {row.note}",
        flush=True,
    )
    for what, count in (*tally.failed.items(), *tally.codes.items()):
        print(f"{'':9}{count} x {what}", flush=True)


def available(kind: str) -> bool:
    return bool(envoy() if kind == "envoy" else shutil.which(kind))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--balancer", action="append", choices=("envoy", "haproxy", "nginx"))
    parser.add_argument("--calls", type=int, default=150, help="calls before and after each event")
    arguments = parser.parse_args()
    kinds = arguments.balancer or ["envoy", "haproxy", "nginx"]
    if missing := [kind for kind in kinds if not available(kind)]:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    head()
    rows = [row for kind in kinds for row in asyncio.run(scenarios(kind, arguments.calls))]
    failed = sum(row.failed for row in rows)
    calls = sum(row.tally.calls for row in rows)
    print(f"{calls} calls, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
