"""How a server is reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

LARGEST_MESSAGE = 256 << 20
"""Bytes; the server's own limits are what counts."""


@dataclass(frozen=True)
class Target:
    """An address and what it takes to be let in."""

    address: str
    token: str | None
    ca: str | None
    tls: bool
    cert: str | None
    key: str | None
    options: tuple[tuple[str, object], ...]

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def _options(self) -> list[tuple[str, object]]:
        return [
            ("grpc.max_receive_message_length", LARGEST_MESSAGE),
            ("grpc.max_send_message_length", LARGEST_MESSAGE),
            # Retries are this package's: grpcio's own would not see RetryInfo.
            ("grpc.enable_retries", 0),
            ("grpc.keepalive_time_ms", 60_000),
            *self.options,
        ]

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if not (self.tls or self.ca):
            if self.cert or self.key:
                raise ValueError("cert and key need TLS: set ca or tls")
            return None
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key belong together")
        read = lambda path: Path(path).read_bytes() if path else None
        return grpc.ssl_channel_credentials(read(self.ca), read(self.key), read(self.cert))

    def open(self) -> grpc.Channel:
        credentials = self._credentials()
        if credentials:
            return grpc.secure_channel(self.address, credentials, self._options())
        return grpc.insecure_channel(self.address, self._options())

    def open_async(self) -> grpc.aio.Channel:
        credentials = self._credentials()
        if credentials:
            return grpc.aio.secure_channel(self.address, credentials, self._options())
        return grpc.aio.insecure_channel(self.address, self._options())


class Health:
    """`grpc.health.v1`."""

    def __init__(self, channel, metadata: tuple[tuple[str, str], ...]):
        self._check = health_pb2_grpc.HealthStub(channel).Check
        self._metadata = metadata

    def check(self, service: str, timeout: float | None) -> bool:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            return _serving(self._check(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError:
            return False

    async def check_async(self, service: str, timeout: float | None) -> bool:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            return _serving(await self._check(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError:
            return False


def _serving(answer: health_pb2.HealthCheckResponse) -> bool:
    return answer.status == health_pb2.HealthCheckResponse.SERVING
