"""The client that blocks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import grpc
from frostline.v1 import model_pb2_grpc, vision_pb2_grpc

from . import requests, results
from .connection import Health, Target
from .errors import FrostlineError
from .requests import Answer, Call, ImageLike, Priority
from .retry import Attempts, Budget, RetryPolicy


class Client:
    """A connection to one address, or to several that its name resolves to. Safe to share between threads.

    Args:
        address: ``host:port``, or any name that gRPC resolves (``dns:///frostline:8461``).
        token: bearer token, sent with each call.
        ca: path of the certificates to trust, PEM. This or `tls` turns TLS on.
        tls: TLS with the system's certificates.
        cert, key: paths of this client's certificate and key, PEM, where the server asks for one.
        timeout: seconds that a call may take, its retries included, where the call itself names no other; ``None``
            for no end.
        retry: when calls are repeated.
        options: more channel options, as grpcio takes them.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        ca: str | None = None,
        tls: bool = False,
        cert: str | None = None,
        key: str | None = None,
        timeout: float | None = 30.0,
        retry: RetryPolicy | None = None,
        options: Sequence[tuple[str, object]] = (),
    ):
        target = Target(address, token, ca, tls, cert, key, tuple(options))
        self._channel = target.open()
        self._metadata = target.metadata()
        self._stubs = {
            "vision": vision_pb2_grpc.VisionServiceStub(self._channel),
            "model": model_pb2_grpc.ModelServiceStub(self._channel),
        }
        self._health = Health(self._channel, self._metadata)
        self._timeout = timeout
        self._policy = retry or RetryPolicy()
        self._budget = Budget(self._policy)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls under way are cancelled."""
        self._channel.close()

    def _run(self, call: Call[Answer], timeout: float | None) -> Answer:
        method = getattr(self._stubs[call.service], call.method)
        limit = self._timeout if timeout is None else timeout
        attempts = Attempts(self._policy, self._budget, limit, call.repeatable)
        while True:
            try:
                answer = method(call.request, timeout=attempts.left(), metadata=self._metadata)
            except grpc.RpcError as raised:
                error = FrostlineError.of(raised)
                delay = attempts.wait(error)
                if delay is None:
                    raise error from None
                time.sleep(delay)
            else:
                self._budget.succeeded()
                return call.convert(answer)

    def detect(
        self,
        image: ImageLike,
        head: str = "",
        *,
        score_threshold: float | None = None,
        max_detections: int | None = None,
        masks: bool = True,
        priority: Priority | None = None,
        timeout: float | None = None,
    ) -> results.Detections:
        """Objects in an image. `head` may be left out where one detection head is loaded."""
        call = requests.detect(image, head, score_threshold, max_detections, masks, priority)
        return self._run(call, timeout)

    def segment(
        self, image: ImageLike, head: str = "", *, priority: Priority | None = None, timeout: float | None = None
    ) -> results.Segmentation:
        """A label for each pixel of an image. `head` may be left out where one segmentation head is loaded."""
        return self._run(requests.segment(image, head, priority), timeout)

    def recognize(
        self,
        frames: Iterable[ImageLike],
        head: str = "",
        *,
        top_k: int | None = None,
        priority: Priority | None = None,
        timeout: float | None = None,
    ) -> results.Classification:
        """The action in a clip. `head` may be left out where one action head is loaded."""
        return self._run(requests.recognize(frames, head, top_k, priority), timeout)

    def analyze(
        self,
        image: ImageLike | None = None,
        *,
        frames: Iterable[ImageLike] | None = None,
        heads: Sequence[str] = (),
        score_threshold: float | None = None,
        max_detections: int | None = None,
        masks: bool = True,
        top_k: int | None = None,
        priority: Priority | None = None,
        timeout: float | None = None,
    ) -> results.Analysis:
        """Any heads on one image or clip, from one pass of the backbone. No `heads`: all that the input fits."""
        call = requests.analyze(image, frames, heads, score_threshold, max_detections, masks, top_k, priority)
        return self._run(call, timeout)

    def features(
        self,
        image: ImageLike,
        names: Sequence[str] = (),
        *,
        size: tuple[int, int] | None = None,
        priority: Priority | None = None,
        timeout: float | None = None,
    ) -> results.Features:
        """The backbone's feature maps of an image, all or those named, at an input of `size` (height, width)."""
        return self._run(requests.features(image, names, size, priority), timeout)

    def heads(self, *, timeout: float | None = None) -> list[results.Head]:
        """The loaded heads, by name."""
        return self._run(requests.heads(), timeout)

    def load(self, name: str, *, timeout: float | None = None) -> results.Head:
        """Loads a head from the server's repository, or loads it again."""
        return self._run(requests.load(name), timeout)

    def unload(self, name: str, *, timeout: float | None = None) -> results.Head:
        """Takes a head out of service. Never repeated: a second one would find no head."""
        return self._run(requests.unload(name), timeout)

    def healthy(self, service: str = "", *, timeout: float | None = 5.0) -> bool:
        """Whether the server (or one of its services) takes calls; false too where nothing answers."""
        return self._health.check(service, timeout)
