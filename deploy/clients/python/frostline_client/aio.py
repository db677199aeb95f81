"""The client for asyncio: the same methods as `client.Client`, awaited."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar


import grpc
from grpc_health.v1 import health_pb2

from . import bulk, models, requests, results
from . import images as _images
from .connection import AsyncLink, Metadata, PathLike, Target, pairs, serving, survives_fork
from .convert import About
from .errors import FrostlineError
from .images import Frames, ImageLike
from .requests import Answer, Call, Priority
from .retry import Attempts, Budget, RetryPolicy
from .stream import Policy, Stream, StreamHead, settings

_P = ParamSpec("_P")
_Made = TypeVar("_Made")


class AsyncClient:
    """A connection to one address, or to several. May be made before an event loop runs, and used in several in turn.

    Args:
        address: ``host:port``; any name that gRPC resolves (``dns:///frostline:8461``, ``ipv4:10.0.0.1:8461,10.0.0.2:8461``);
            or a list of ``IP:port``. Calls go to all addresses of a list and of a ``dns:`` name in turn.
        token: bearer token, sent with each call; space around it is taken off.
        ca: path of the certificates to trust, PEM. This, `tls`, or an address that begins with ``https://`` turns TLS on.
        tls: TLS with the system's certificates.
        cert, key: paths of this client's certificate and key, PEM, where the server asks for one.
        authority: the name that the server goes by, in its certificate too, where the address is none.
        timeout: seconds that a call may take, waiting for the server and retries included, where the call itself names
            no other; ``None`` for no end.
        retry: when calls are repeated.
        remember: whether answers remember the image that they are about, so that they can be drawn: the path, or the
            object that was given.
        options: more channel options, as grpcio takes them.

    Methods about images take `metadata` for the call (a dict, or pairs), `priority`, and `timeout` in seconds. They raise
    `FrostlineError` for what the server refuses, `TypeError` and `ValueError` for what is no image or option, and
    `OSError` for files that cannot be read.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        token: str | None = None,
        ca: PathLike | None = None,
        tls: bool = False,
        cert: PathLike | None = None,
        key: PathLike | None = None,
        authority: str | None = None,
        timeout: float | None = 30.0,
        retry: RetryPolicy | None = None,
        remember: bool = True,
        options: Sequence[tuple[str, Any]] = (),
    ):
        target = Target(address, token, ca, tls, cert, key, authority, tuple(options))
        self._link, self._metadata = AsyncLink(target), target.metadata()
        self._address, self._timeout, self._remember = address, timeout, remember
        self._policy = retry or RetryPolicy()
        self._budget = Budget(self._policy)
        survives_fork(self._budget)

    def __repr__(self) -> str:
        return f"AsyncClient({self._address!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; calls under way are cancelled."""
        await self._link.close()

    def _carried(self, metadata: Metadata | None) -> tuple[tuple[tuple[str, str | bytes], ...], str]:
        """What a call carries, and its id: the caller's, or a new one, so that a call that gets no answer has one too."""
        own = pairs(metadata)
        named = dict(own)
        ours = () if "authorization" in named else self._metadata
        if "x-request-id" in named:
            return (*ours, *own), str(named["x-request-id"])
        request_id = uuid.uuid4().hex
        return (*ours, ("x-request-id", request_id), *own), request_id

    async def _run(
        self,
        call: Call[Answer],
        timeout: float | None,
        metadata: Metadata | None,
        *,
        patient: bool = False,
    ) -> Answer:
        carried, request_id = self._carried(metadata)
        limit = self._timeout if timeout is None else timeout
        attempts = Attempts(self._policy, self._budget, limit, call.repeatable, patient)
        while True:
            opened = self._link.opened()
            method = getattr(opened.stubs[call.service], call.method)
            try:
                pending = method(
                    call.request,
                    timeout=attempts.left(),
                    metadata=carried,
                    wait_for_ready=attempts.wait_for_ready() or None,
                )
                answer = await pending
                headers = await pending.initial_metadata()
            except grpc.RpcError as raised:
                error = FrostlineError.of(raised, request_id)
                delay = attempts.wait(error)
                if delay is None:
                    raise error from error.__cause__
                await asyncio.sleep(delay)
            else:
                self._budget.succeeded()
                request_id = next((value for key, value in headers or () if key == "x-request-id"), request_id)
                about = About(request_id, call.image if self._remember else None)
                return call.convert(answer, about)

    async def _build(self, make: Callable[_P, _Made], /, *args: _P.args, **kwargs: _P.kwargs) -> _Made:
        """`make` of an image: on a thread where a file is read or pixels are copied, so that the loop goes on."""
        if isinstance(args[0], bytes):
            return make(*args, **kwargs)
        return await asyncio.to_thread(make, *args, **kwargs)

    def stream(
        self,
        heads: Sequence[str | StreamHead] = (),
        *,
        name: str = "",
        policy: Policy = "latest",
        queue_length: int = 0,
        every: int = 1,
        max_age: float | None = None,
        frames_per_second: float = 0.0,
        priority: Priority | None = None,
        metadata: Metadata | None = None,
    ) -> Stream:
        """A stream of live frames; begin it with ``async with``, send frames, iterate over the answers.

        Args:
            heads: names of heads, or `StreamHead` for what differs from their manifests; none: all that there are.
            name: of the camera. Streams of one name share one part of what the server gives this caller.
            policy: what becomes of frames when more come than can be computed.
            queue_length: frames that wait, for the policies ``queue`` and ``wait``; 0 for the server's choice.
            every: takes each n-th frame.
            max_age: seconds after which a frame is dropped.
            frames_per_second: what is promised not to be exceeded; the server refuses what it cannot hold.
        """
        message = settings(heads, policy, queue_length, every, max_age, frames_per_second, priority)
        carried, _ = self._carried(metadata)
        return Stream(lambda: self._link.opened().stubs["vision"].AnalyzeStream(metadata=carried), name, message)

    async def detect(
        self,
        image: ImageLike,
        head: str = "",
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        masks: bool = True,
        priority: Priority | None = None,
        metadata: Metadata | None = None,
        timeout: float | None = None,
    ) -> results.Detections:
        """Objects in an image. `head` may be left out where one detection head is loaded."""
        call = await self._build(requests.detect, image, head, score_threshold, max_detections, masks, priority)
        return await self._run(call, timeout, metadata)

    async def segment(
        self,
        image: ImageLike,
        head: str = "",
        *,
        priority: Priority | None = None,
        metadata: Metadata | None = None,
        timeout: float | None = None,
    ) -> results.Segmentation:
        """A label for each pixel of an image. `head` may be left out where one segmentation head is loaded."""
        call = await self._build(requests.segment, image, head, priority)
        return await self._run(call, timeout, metadata)

    async def recognize(
        self,
        frames: Frames,
        head: str = "",
        *,
        top_k: int | None = None,
        priority: Priority | None = None,
        metadata: Metadata | None = None,
        timeout: float | None = None,
    ) -> results.Classification:
        """The action in a clip. `head` may be left out where one action head is loaded."""
        call = await self._build(requests.recognize, frames, head, top_k, priority)
        return await self._run(call, timeout, metadata)

    async def analyze(
        self,
        image: ImageLike | None = None,
        *,
        frames: Frames | None = None,
        heads: Sequence[str] = (),
        score_threshold: float | None = None,
        max_detections: int | None = None,
        masks: bool = True,
        top_k: int | None = None,
        priority: Priority | None = None,
        metadata: Metadata | None = None,
        timeout: float | None = None,
    ) -> results.Analysis:
        """Any heads on one image or clip, from one pass of the backbone. No `heads`: all that the input fits."""
        options = (score_threshold, max_detections, masks, top_k, priority)
        call = await self._build(requests.analyze, image, frames, heads, *options)
        return await self._run(call, timeout, metadata)

    def map(
        self,
        images: Iterable[ImageLike] | PathLike,
        heads: Sequence[str] = (),
        *,
        at_once: int = 8,
        progress: bulk.Progress = False,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        masks: bool = True,
        top_k: int | None = None,
        priority: Priority | None = None,
        metadata: Metadata | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[results.Analysis | FrostlineError]:
        """`analyze` of many images, or of all pictures in a folder, in their order.

        An image that got no answer gives its error, which names it (`source`), in its place. Images are taken and read as
        they are needed, so that any number of them goes through. Answers remember paths only.

        Args:
            at_once: calls under way at most.
            progress: shows a bar (needs tqdm); or is called with the numbers of images done and in all.
        """
        source, total = _images.several(images)
        bulk.check(at_once)
        chosen = (requests.names(heads, "heads"), score_threshold, max_detections, masks, top_k, priority)
        requests.priority(priority)
        carried = pairs(metadata)

        async def one(image: ImageLike) -> results.Analysis:
            call = await self._build(requests.analyze, image, None, *chosen)
            if not isinstance(image, (str, os.PathLike)):
                call = replace(call, image=None)
            return await self._run(call, timeout, carried, patient=True)

        return bulk.run_async(one, source, total, at_once, progress)

    async def features(
        self,
        image: ImageLike,
        names: Sequence[str] = (),
        *,
        size: tuple[int, int] | None = None,
        priority: Priority | None = None,
        metadata: Metadata | None = None,
        timeout: float | None = None,
    ) -> results.Features:
        """The backbone's feature maps of an image, all or those named, at an input of `size` (height, width)."""
        call = await self._build(requests.features, image, names, size, priority)
        return await self._run(call, timeout, metadata)

    async def backbone(self, *, metadata: Metadata | None = None, timeout: float | None = None) -> models.Backbone:
        """The frozen backbone: its name, fingerprint, input sizes and feature maps."""
        return await self._run(requests.backbone(), timeout, metadata)

    async def heads(self, *, metadata: Metadata | None = None, timeout: float | None = None) -> list[models.Head]:
        """The loaded heads, by name."""
        found, page = await self._run(requests.heads(), timeout, metadata)
        while page:
            more, page = await self._run(requests.heads(page), timeout, metadata)
            found += more
        return found

    async def head(self, name: str, *, metadata: Metadata | None = None, timeout: float | None = None) -> models.Head:
        """A loaded head."""
        return await self._run(requests.head(name), timeout, metadata)

    async def load(self, name: str, *, metadata: Metadata | None = None, timeout: float | None = None) -> models.Head:
        """Loads a head from the server's repository, or loads it again."""
        return await self._run(requests.load(name), timeout, metadata)

    async def unload(self, name: str, *, metadata: Metadata | None = None, timeout: float | None = None) -> models.Head:
        """Takes a head out of service. Never sent twice: a second one would find no head."""
        return await self._run(requests.unload(name), timeout, metadata)

    async def healthy(self, service: str = "", *, timeout: float | None = 5.0) -> bool:
        """Whether the server (or one of its services) takes calls; false too where nothing answers. Tried once."""
        check = self._link.opened().stubs["health"].Check
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            return serving(await check(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError:
            return False
