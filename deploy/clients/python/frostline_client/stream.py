"""Live frames: each head's answer as it is ready, and one last word for each frame.

>>> async with AsyncClient("127.0.0.1:8461") as client:
...     async with client.stream(["objects"], name="door") as stream:
...         await stream.send(frame)
...         async for answer in stream:
...             ...
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union

import grpc
from frostline.v1 import stream_pb2
from google.protobuf import duration_pb2, timestamp_pb2

from . import convert, images, requests
from .errors import FrostlineError
from .images import ImageLike
from .requests import Priority
from .results import HeadResult, Provenance

Policy = Literal["latest", "queue", "wait"]
"""What becomes of frames when more come than can be computed: the newest alone waits, the oldest of a queue goes, or the
sender is held up."""

_POLICIES = {
    "latest": stream_pb2.FRAME_POLICY_LATEST,
    "queue": stream_pb2.FRAME_POLICY_QUEUE,
    "wait": stream_pb2.FRAME_POLICY_WAIT,
}


@dataclass(frozen=True)
class StreamHead:
    """One head of a stream; what is ``None`` is as the head's manifest says."""

    name: str
    every: int = 1
    """Runs on each n-th frame."""
    score_threshold: float | None = None
    max_detections: int | None = None
    masks: bool = True
    top_k: int | None = None
    stride: int | float | None = None
    """Of a head that reads clips, the distance of their frames: a number of frames (`int`), or seconds (`float`)."""
    hop: int | float | None = None
    """The distance of the ends of two clips, in the unit of the stride; ``None`` for the stride."""
    track: bool = False
    """Of a detection head: gives objects numbers that stay with them."""

    def _message(self) -> stream_pb2.StreamHead:
        message = stream_pb2.StreamHead(
            name=self.name,
            every=self.every,
            score_threshold=self.score_threshold,
            max_detections=self.max_detections,
            omit_masks=not self.masks,
            top_k=self.top_k,
            track=self.track,
        )
        for what, value in (("stride", self.stride), ("hop", self.hop)):
            if isinstance(value, float):
                getattr(message, f"{what}_time").CopyFrom(_duration(value))
            elif value is not None:
                setattr(message, f"{what}_frames", value)
        return message


@dataclass(frozen=True)
class StreamResult:
    """One head's result for one frame."""

    frame_id: int
    clip_frame_ids: tuple[int, ...]
    """The frames that a head for clips has read, oldest first."""
    result: HeadResult
    track_ids: tuple[int, ...] = ()
    """Of a head that tracks, for each detection the number of its object; 0 for none (yet)."""


@dataclass(frozen=True)
class FrameDone:
    """A frame's last word."""

    frame_id: int
    outcome: str
    """``answered``, or why it was dropped: ``superseded``, ``skipped``, ``too_old``, ``overloaded``, ``over_quota``,
    ``bad_image``, ``duplicate``, ``invalid``, ``failed``, ``stream_ended``."""
    error: FrostlineError | None
    """Why, where there is more to say."""
    results: int
    """Results that came for it."""
    backbone_rows: int
    """Images that the backbone ran on for it."""
    clips_restarted: bool
    """Whether clips begin anew with it."""
    seconds: dict[str, float] = field(hash=False, compare=False)
    """Where its time went."""


@dataclass(frozen=True)
class StreamStatus:
    """How a stream is."""

    state: str
    """``active``, ``ending``, or ``draining`` when the server stops: open another stream then."""
    frames_offered: int
    frames: dict[str, int] = field(hash=False)
    """Frames by how they have ended."""
    offered_per_second: float
    answered_per_second: float
    age: float | None
    """Seconds since the newest frame came that was answered."""
    ring_bytes: int
    grace: float | None
    """Seconds for which a server that stops still takes frames."""


StreamAnswer = Union[StreamResult, FrameDone, StreamStatus]


def _duration(seconds: float) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def _timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    message = timestamp_pb2.Timestamp()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def settings(
    heads: Sequence[str | StreamHead],
    policy: Policy,
    queue_length: int,
    every: int,
    max_age: float | None,
    frames_per_second: float,
    urgency: Priority | None,
) -> stream_pb2.StreamSettings:
    """The message of these settings."""
    if isinstance(heads, str):
        raise TypeError(f"heads takes a list of names, not one text: heads=[{heads!r}]")
    if policy not in _POLICIES:
        raise ValueError(f"policy must be one of {', '.join(map(repr, _POLICIES))}, not {policy!r}")
    named = [StreamHead(head) if isinstance(head, str) else head for head in heads]
    return stream_pb2.StreamSettings(
        heads=[head._message() for head in named],
        policy=_POLICIES[policy],
        queue_length=queue_length,
        every=every,
        max_age=None if max_age is None else _duration(max_age),
        frames_per_second=frames_per_second,
        priority=requests.priority(urgency),
    )


class Stream:
    """A stream: send frames, iterate over the answers. Made by `AsyncClient.stream`, and begun by ``async with``."""

    def __init__(self, make: Any, name: str, wanted: stream_pb2.StreamSettings):
        self._make, self._name, self._wanted = make, name, wanted
        self._call: Any = None
        self._updates: list[asyncio.Future[None]] = []
        self._last = 0
        self.backbone = ""

    async def __aenter__(self) -> Stream:
        self._call = self._make()
        start = stream_pb2.StreamStart(name=self._name, settings=self._wanted)
        await self._write(stream_pb2.AnalyzeStreamRequest(start=start))
        first = await self._read()
        if first is None or not first.HasField("started"):
            raise FrostlineError(grpc.StatusCode.INTERNAL, "the server did not begin the stream")
        self.backbone = first.started.backbone
        return self

    async def __aexit__(self, *_: object) -> None:
        # Ends it at once: who wants to hear the rest says `end` and reads on.
        self._call.cancel()

    async def send(self, image: ImageLike, *, id: int | None = None, captured: float | None = None) -> int:
        """Sends a frame; its number. Waits where the policy holds the sender up.

        `id` is above that of the frame before; by default the next number. `captured` is when it was taken, in seconds of
        any clock that does not run backwards; by default now.
        """
        number = self._last + 1 if id is None else id
        self._last = max(self._last, number)
        shown = images.image(image) if isinstance(image, bytes) else await asyncio.to_thread(images.image, image)
        taken = _timestamp(time.time() if captured is None else captured)
        frame = stream_pb2.StreamFrame(id=number, capture_time=taken, image=shown)
        await self._write(stream_pb2.AnalyzeStreamRequest(frame=frame))
        return number

    async def update(
        self,
        heads: Sequence[str | StreamHead] = (),
        *,
        policy: Policy = "latest",
        queue_length: int = 0,
        every: int = 1,
        max_age: float | None = None,
        frames_per_second: float = 0.0,
        priority: Priority | None = None,
    ) -> None:
        """Other settings from here on, in place of all before. Takes effect while somebody reads the answers.

        Raises:
            FrostlineError: they do not hold, and those before them go on.
        """
        message = settings(heads, policy, queue_length, every, max_age, frames_per_second, priority)
        said = asyncio.get_running_loop().create_future()
        self._updates.append(said)
        update = stream_pb2.StreamUpdate(settings=message)
        await self._write(stream_pb2.AnalyzeStreamRequest(update=update))
        await said

    async def end(self) -> None:
        """No more frames come: the answers under way still do, then the iteration ends."""
        await self._write(stream_pb2.AnalyzeStreamRequest(end=stream_pb2.StreamEnd()))
        await self._call.done_writing()

    async def _write(self, message: stream_pb2.AnalyzeStreamRequest) -> None:
        try:
            await self._call.write(message)
        except asyncio.InvalidStateError:
            await self._read()
            raise FrostlineError(grpc.StatusCode.CANCELLED, "the stream has ended") from None
        except grpc.RpcError as raised:
            raise FrostlineError.of(raised) from raised.__cause__

    async def _read(self) -> Any:
        try:
            message = await self._call.read()
        except grpc.RpcError as raised:
            raise FrostlineError.of(raised) from raised.__cause__
        if message is not grpc.aio.EOF:
            return message
        code = await self._call.code()
        if code != grpc.StatusCode.OK:
            raise FrostlineError(code, await self._call.details())
        return None

    async def __aiter__(self) -> AsyncIterator[StreamAnswer]:
        while (message := await self._read()) is not None:
            kind = message.WhichOneof("message")
            if kind == "updated":
                said = self._updates.pop(0)
                if said.done():
                    continue
                if message.updated.HasField("error"):
                    said.set_exception(convert.failure(message.updated.error))
                else:
                    said.set_result(None)
            elif kind == "result":
                made = Provenance(self.backbone, "", 0, 0, {})
                result = convert.head_result(message.result, made, convert.About())
                clip = tuple(message.result.clip_frame_ids)
                yield StreamResult(message.result.frame_id, clip, result, tuple(message.result.track_ids))
            elif kind == "done":
                yield _done(message.done)
            elif kind == "status":
                yield _status(message.status)


def _outcome(value: Any) -> str:
    return convert.text(stream_pb2.FrameOutcome, value, "FRAME_OUTCOME_")


def _done(message: stream_pb2.FrameDone) -> FrameDone:
    stages = ("queue", "decode", "backbone", "head", "postprocess", "total")
    return FrameDone(
        message.frame_id,
        _outcome(message.outcome),
        convert.failure(message.error) if message.HasField("error") else None,
        message.results,
        message.backbone_rows,
        message.clips_restarted,
        {stage: getattr(message.timing, f"{stage}_us") / 1e6 for stage in stages},
    )


def _status(message: stream_pb2.StreamStatus) -> StreamStatus:
    def seconds(name: str) -> float | None:
        return getattr(message, name).ToNanoseconds() / 1e9 if message.HasField(name) else None

    return StreamStatus(
        convert.text(stream_pb2.StreamState, message.state, "STREAM_STATE_"),
        message.frames_offered,
        {_outcome(count.outcome): count.frames for count in message.frames},
        message.offered_per_second,
        message.answered_per_second,
        seconds("age"),
        message.ring_bytes,
        seconds("grace"),
    )
