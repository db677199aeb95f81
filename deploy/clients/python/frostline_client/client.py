"""The client that blocks."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from . import bulk, models, requests, results
from . import images as _images
from .connection import Link, Metadata, PathLike, Target, pairs, serving, survives_fork
from .convert import About
from .errors import FrostlineError
from .images import Frames, ImageLike
from .requests import Answer, Call, Priority
from .retry import Attempts, Budget, RetryPolicy


class Client:
    """A connection to one address, or to several. Safe to share between threads, and after a fork.

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
        self._link, self._metadata = Link(target), target.metadata()
        self._address, self._timeout, self._remember = address, timeout, remember
        self._policy = retry or RetryPolicy()
        self._budget = Budget(self._policy)
        survives_fork(self._budget)

    def __repr__(self) -> str:
        return f"Client({self._address!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls under way are cancelled."""
        self._link.close()

    def _carried(self, metadata: Metadata | None) -> tuple[tuple[tuple[str, str | bytes], ...], str]:
        """What a call carries, and its id: the caller's, or a new one, so that a call that gets no answer has one too."""
        own = pairs(metadata)
        named = dict(own)
        ours = () if "authorization" in named else self._metadata
        if "x-request-id" in named:
            return (*ours, *own), str(named["x-request-id"])
        request_id = uuid.uuid4().hex
        return (*ours, ("x-request-id", request_id), *own), request_id

    def _run(
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
                answer, done = method.with_call(
                    call.request,
                    timeout=attempts.left(),
                    metadata=carried,
                    wait_for_ready=attempts.wait_for_ready() or None,
                )
                headers = done.initial_metadata()
            except grpc.RpcError as raised:
                error = FrostlineError.of(raised, request_id)
                delay = attempts.wait(error)
                if delay is None:
                    raise error from error.__cause__
                time.sleep(delay)
            else:
                self._budget.succeeded()
                request_id = next((value for key, value in headers or () if key == "x-request-id"), request_id)
                about = About(request_id, call.image if self._remember else None)
                return call.convert(answer, about)

    def detect(
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
        call = requests.detect(image, head, score_threshold, max_detections, masks, priority)
        return self._run(call, timeout, metadata)

    def segment(
        self,
        image: ImageLike,
        head: str = "",
        *,
        priority: Priority | None = None,
        metadata: Metadata | None = None,
        timeout: float | None = None,
    ) -> results.Segmentation:
        """A label for each pixel of an image. `head` may be left out where one segmentation head is loaded."""
        call = requests.segment(image, head, priority)
        return self._run(call, timeout, metadata)

    def recognize(
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
        call = requests.recognize(frames, head, top_k, priority)
        return self._run(call, timeout, metadata)

    def analyze(
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
        call = requests.analyze(image, frames, heads, *options)
        return self._run(call, timeout, metadata)

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
    ) -> Iterator[results.Analysis | FrostlineError]:
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

        def one(image: ImageLike) -> results.Analysis:
            call = requests.analyze(image, None, *chosen)
            if not isinstance(image, (str, os.PathLike)):
                call = replace(call, image=None)
            return self._run(call, timeout, carried, patient=True)

        return bulk.run(one, source, total, at_once, progress)

    def features(
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
        call = requests.features(image, names, size, priority)
        return self._run(call, timeout, metadata)

    def backbone(self, *, metadata: Metadata | None = None, timeout: float | None = None) -> models.Backbone:
        """The frozen backbone: its name, fingerprint, input sizes and feature maps."""
        return self._run(requests.backbone(), timeout, metadata)

    def heads(self, *, metadata: Metadata | None = None, timeout: float | None = None) -> list[models.Head]:
        """The loaded heads, by name."""
        found, page = self._run(requests.heads(), timeout, metadata)
        while page:
            more, page = self._run(requests.heads(page), timeout, metadata)
            found += more
        return found

    def head(self, name: str, *, metadata: Metadata | None = None, timeout: float | None = None) -> models.Head:
        """A loaded head."""
        return self._run(requests.head(name), timeout, metadata)

    def load(self, name: str, *, metadata: Metadata | None = None, timeout: float | None = None) -> models.Head:
        """Loads a head from the server's repository, or loads it again."""
        return self._run(requests.load(name), timeout, metadata)

    def unload(self, name: str, *, metadata: Metadata | None = None, timeout: float | None = None) -> models.Head:
        """Takes a head out of service. Never sent twice: a second one would find no head."""
        return self._run(requests.unload(name), timeout, metadata)

    def healthy(self, service: str = "", *, timeout: float | None = 5.0) -> bool:
        """Whether the server (or one of its services) takes calls; false too where nothing answers. Tried once."""
        check = self._link.opened().stubs["health"].Check
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            return serving(check(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError:
            return False
