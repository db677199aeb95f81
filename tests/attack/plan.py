"""What an attack is: a function that a process of its own runs against a server, for a time, and what it tells of it.

    plan.py NAME       the attack, with its target as JSON on the standard input
"""

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import payloads
import wire
from observers import context
from server import Options

# Attackers come from elsewhere than the good caller and the probes, all of it loopback.
ELSEWHERE = "127.0.0.2"


@dataclass
class Target:
    """A server to attack, and what was done to it."""

    address: wire.Address
    admin: wire.Address
    tokens: dict[str, str]
    seconds: float
    # 1 for the attack as it is described, less for a short form of it.
    scale: float
    certificate: str
    pid: int
    frames: int = 0
    bytes: int = 0
    notes: dict[str, object] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    connections: list[wire.Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.address, self.admin = tuple(self.address), tuple(self.admin)
        self.tls = context(self.certificate)

    @cached_property
    def until(self) -> float:
        """When it is over, from the first look at it on: what it takes to connect and to make messages does not count."""
        return time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def many(self, count: int) -> int:
        """So many in full, fewer in the short form."""
        return max(1, round(count * self.scale))

    def connect(self, source: str = ELSEWHERE, **options: object) -> wire.Connection:
        """A connection from elsewhere."""
        made = wire.Connection(self.address, source=source, tls=self.tls, **options)
        self.connections.append(made)
        # Its windows are those that the server gives, once it has.
        patience = time.monotonic() + 0.5
        while made.room <= 65535 and not made.closed and made.goaway is None and time.monotonic() < patience:
            wire.pump([made], 0.1, first=True)
        return made

    def connects(self, count: int, **options: object) -> Iterator[wire.Connection]:
        """As many connections as can be had."""
        for _ in range(count):
            try:
                yield self.connect(**options)
            except OSError:
                self.count("connections refused")

    def count(self, what: str, by: int = 1) -> None:
        self.notes[what] = self.notes.get(what, 0) + by

    def sent(self, frames: int, size: int = 0) -> None:
        """Counts what was sent: frames, or calls where each has a few."""
        self.frames += frames
        self.bytes += size

    def flood(self, batches: Sequence[bytes], each: int, seconds: float, again: int = 20, **options: object) -> None:
        """Sends batches of `each` frames evenly over `seconds`, on a new connection when one is closed."""
        connect = lambda: self.connect(**options)
        sent, _ = wire.flood(connect, batches, self.until, min(seconds, self.left), again)
        self.sent(sent * each, sum(len(batch) for batch in batches[:sent]))

    def hold(self) -> None:
        """Keeps what is open until the time is over."""
        wire.pump(self.connections, self.left)

    def keep(self, path: str, bodies: Callable[[int], bytes], count: int, identity: str = "evil", **options: object) -> None:
        """Keeps `count` calls under way until the time is over; answers are read."""
        connections = [self.connect(**options).watch() for _ in range(-(-count // 500))]
        fields = wire.call(path, self.tokens[identity])
        open_: list[tuple[wire.Connection, int]] = []
        number = 0
        while self.left > 0:
            before = len(open_)
            open_ = [entry for entry in open_ if entry[1] not in entry[0].answered and not entry[0].closed]
            self.count("calls ended", before - len(open_))
            live = [connection for connection in connections if not connection.closed]
            if not live:
                self.faults.append("the server closed all connections of a caller with a key")
                return
            while len(open_) < count and self.left > 0:
                connection = live[number % len(live)]
                body = wire.message(bodies(number))
                open_.append((connection, connection.call(fields, body)))
                self.sent(1, len(body))
                number += 1
            wire.pump(live, 0.02)

    def result(self) -> dict[str, object]:
        """What the harness is told."""
        statuses, resets = Counter(), Counter()
        for connection in self.connections:
            statuses += connection.statuses
            resets += connection.resets
        goaways = Counter(connection.goaway for connection in self.connections if connection.goaway is not None)
        closed = sum(connection.closed or connection.goaway is not None for connection in self.connections)
        return {
            "frames": self.frames,
            "bytes": self.bytes,
            "connections": len(self.connections),
            "closed": closed,
            "statuses": dict(statuses),
            "resets": dict(resets),
            "goaways": dict(goaways),
            "notes": self.notes,
            "faults": self.faults,
        }


@dataclass
class Attack:
    """One attack."""

    name: str
    # What it shows, for people.
    what: str
    run: Callable[[Target], None]
    # Whether its calls carry a valid token of another identity than the good caller's.
    caller: bool
    seconds: float
    options: Options
    # Whether nobody else calls meanwhile: what a call costs is measured.
    alone: bool


ATTACKS: dict[str, Attack] = {}


def attack(
    name: str,
    what: str,
    caller: bool = False,
    seconds: float = 8,
    options: Options | None = None,
    alone: bool = False,
) -> Callable[[Callable[[Target], None]], Callable[[Target], None]]:
    """Puts a function among the attacks."""

    def add(run: Callable[[Target], None]) -> Callable[[Target], None]:
        assert name not in ATTACKS, name
        ATTACKS[name] = Attack(name, what, run, caller, seconds, options or Options(), alone)
        return run

    return add


def load() -> dict[str, Attack]:
    """All attacks, by name."""
    import calls  # noqa: F401
    import connections  # noqa: F401
    import floods  # noqa: F401
    import media  # noqa: F401
    import messages  # noqa: F401
    import streams  # noqa: F401

    return ATTACKS


def health(token: str | None = None, method: str = "Check") -> list[tuple[str, str]]:
    """Headers of a call that is open to all."""
    return wire.call(f"{payloads.HEALTH}{method}", token)


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # The attacks are in this module as others import it, not as it is run.
    import plan

    target = plan.Target(**json.load(sys.stdin))
    try:
        plan.load()[sys.argv[1]].run(target)
    except Exception as failure:
        # A server that is gone, or refuses connections, is seen in other ways; what was done until then is told.
        target.notes["the attacker ended"] = repr(failure)
    json.dump(target.result(), sys.stdout)


if __name__ == "__main__":
    main()
