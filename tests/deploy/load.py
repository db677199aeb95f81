"""A closed-loop load through a balancer, by a client that tries again as the server and gRPC ask."""

import asyncio
import collections
import hashlib
import io
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
from PIL import Image

from fleet import CHANNEL, ROOT, protocol

ATTEMPTS = 5
DEADLINE_SECONDS = 20
RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
SOURCES = {1: "computed", 2: "shared", 3: "cached"}
KEY = "x-frostline-frame-key"


@dataclass(frozen=True)
class Frame:
    """An encoded image and the key that sends it to its replica."""

    data: bytes
    key: str


def frames(count: int) -> list[Frame]:
    """Different JPEG images, made from the demo's samples."""
    samples = [Image.open(path) for path in sorted((ROOT / "models/demo/samples").glob("scene-*.jpg"))]
    made = []
    for index in range(count):
        image = samples[index % len(samples)].rotate(7 * (index // len(samples)))
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=85)
        made.append(Frame(packed.getvalue(), hashlib.sha256(packed.getvalue()).hexdigest()[:16]))
    return made


def passes(images: list[Frame]) -> Iterator[Frame]:
    """All images, in another order each time, without end."""
    chance = random.Random(0)
    while True:
        yield from chance.sample(images, len(images))


@dataclass
class Tally:
    """What happened to the calls of one scenario."""

    calls: int = 0
    retried: int = 0
    failed: collections.Counter = field(default_factory=collections.Counter)
    codes: collections.Counter = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)
    by_replica: collections.Counter = field(default_factory=collections.Counter)
    hits_by_replica: collections.Counter = field(default_factory=collections.Counter)
    sources: collections.Counter = field(default_factory=collections.Counter)
    versions: collections.Counter = field(default_factory=collections.Counter)

    def quantile(self, share: float) -> float:
        """A latency in milliseconds, tries included."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Load:
    """Workers that call one after another until told to stop."""

    def __init__(self, address: str, images: list[Frame], workers: int = 6, keyed: bool = True) -> None:
        self.address = address
        self.workers = workers
        self.keyed = keyed
        self.tally = Tally()
        self.stopping = False
        self.order = passes(images)
        self.vision = protocol("vision_pb2")
        self.types = protocol("types_pb2")

    async def __aenter__(self) -> "Load":
        self.channel = grpc.aio.insecure_channel(self.address, options=CHANNEL)
        self.detect = protocol("vision_pb2_grpc").VisionServiceStub(self.channel).Detect
        self.tasks = [asyncio.create_task(self._work()) for _ in range(self.workers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopping = True
        try:
            await asyncio.gather(*self.tasks)
        finally:
            await self.channel.close()

    async def _work(self) -> None:
        while not self.stopping:
            await self.call(next(self.order))

    async def reach(self, calls: int) -> None:
        """Waits until so many more calls have ended."""
        goal = self.tally.calls + calls
        async with asyncio.timeout(120):
            while self.tally.calls < goal:
                await asyncio.sleep(0.01)
                for task in self.tasks:
                    if task.done():
                        task.result()

    async def call(self, frame: Frame) -> None:
        """One call, tried again where that is safe and asked for."""
        request = self.vision.DetectRequest(image=self.types.Image(encoded=frame.data), head="objects")
        metadata = ((KEY, frame.key),) if self.keyed else ()
        started = time.monotonic()
        for attempt in range(ATTEMPTS):
            call = self.detect(request, metadata=metadata, timeout=DEADLINE_SECONDS)
            try:
                response = await call
                self._count(response, dict(await call.initial_metadata()))
                break
            except grpc.aio.AioRpcError as error:
                self.tally.codes[error.code().name] += 1
                if error.code() not in RETRIED or attempt + 1 == ATTEMPTS:
                    self.tally.failed[f"{error.code().name}: {error.details()}"] += 1
                    break
                if attempt == 0:
                    self.tally.retried += 1
                await asyncio.sleep(random.uniform(0.5, 1) * 0.05 * 2**attempt)
        self.tally.calls += 1
        self.tally.seconds.append(time.monotonic() - started)

    def _count(self, response: object, metadata: dict[str, str]) -> None:
        upstream, source = metadata.get("x-frostline-replica", ""), SOURCES[response.provenance.feature_source]
        self.tally.by_replica[upstream] += 1
        self.tally.hits_by_replica[upstream] += source != "computed"
        self.tally.sources[source] += 1
        self.tally.versions[response.version] += 1
