"""How a server is reached."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import grpc
from frostline.v1 import model_pb2_grpc, vision_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Metadata = Union[Mapping[str, Union[str, bytes]], Iterable[tuple[str, Union[str, bytes]]]]
"""What a call carries beside its message: names with texts, or with bytes where the name ends in ``-bin``."""

PathLike = Union[str, "os.PathLike[str]"]

LARGEST_MESSAGE = 256 << 20
"""Bytes; the server's own limits are what counts."""

_ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


@dataclass(frozen=True)
class Target:
    """An address and what it takes to be let in."""

    address: str | Sequence[str]
    token: str | None = field(repr=False)
    ca: PathLike | None
    tls: bool
    cert: PathLike | None
    key: PathLike | None
    authority: str | None
    options: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        # What is wrong is told where the client is made, not at its first call.
        object.__setattr__(self, "token", _token(self.token))
        self.resolved()
        self._secure()

    def resolved(self) -> tuple[str, str | None, bool]:
        """What gRPC resolves, the authority where the target has none of its own, and whether it is many addresses."""
        address = self.address
        if not isinstance(address, str):
            address = _list(address)
        for scheme in ("http://", "https://"):
            if address.startswith(scheme):
                address = address[len(scheme) :].rstrip("/")
        if not address:
            raise ValueError("the address is empty: give host:port")
        scheme, _, rest = address.partition(":")
        if scheme in ("ipv4", "ipv6"):
            # Without one, gRPC makes the whole list the authority, which servers refuse as no name of a host.
            first = rest.split(",")[0]
            return address, self.authority or first, "," in rest
        return address, self.authority, scheme == "dns"

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def _secure(self) -> bool:
        https = isinstance(self.address, str) and self.address.startswith("https://")
        if isinstance(self.address, str) and self.address.startswith("http://") and (self.tls or self.ca):
            raise ValueError("an address that begins with http:// has no TLS, and ca or tls ask for it")
        if not (self.tls or self.ca or https):
            if self.cert or self.key:
                raise ValueError("cert and key need TLS: set ca or tls")
            return False
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key belong together")
        return True

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if not self._secure():
            return None
        ca, key, cert = (Path(path).read_bytes() if path else None for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def open(self, kind: Any) -> Any:
        """A channel, of `grpc` or of `grpc.aio`."""
        address, authority, many = self.resolved()
        options: dict[str, Any] = {
            "grpc.max_receive_message_length": LARGEST_MESSAGE,
            "grpc.max_send_message_length": LARGEST_MESSAGE,
            # Retries are this package's: grpcio's own would not see RetryInfo.
            "grpc.enable_retries": 0,
            "grpc.keepalive_time_ms": 60_000,
            # A server that is back is found within a second or so, however long it was gone.
            "grpc.initial_reconnect_backoff_ms": 100,
            "grpc.max_reconnect_backoff_ms": 1_000,
        }
        if authority:
            options["grpc.default_authority"] = authority
        if many:
            options["grpc.service_config"] = _ROUND_ROBIN
        arguments = list((options | dict(self.options)).items())
        credentials = self._credentials()
        if credentials:
            return kind.secure_channel(address, credentials, arguments)
        return kind.insecure_channel(address, arguments)


def _list(addresses: Sequence[str]) -> str:
    """Addresses by number as one target; names are left to a resolver."""
    families = set()
    for address in addresses:
        host = address.rpartition(":")[0]
        try:
            families.add(ipaddress.ip_address(host.strip("[]")).version)
        except ValueError:
            raise ValueError(
                f"a list of addresses takes IP:port each, not {address!r}; a name that stands for several is dns:///name:port"
            ) from None
    if len(families) != 1:
        raise ValueError("a list of addresses needs at least one, and IPv4 or IPv6, not both")
    return f"ipv{families.pop()}:" + ",".join(addresses)


def _token(token: str | None) -> str | None:
    """A token as it comes from a file, with the line's end, or a clear error that does not tell it."""
    stripped = token.strip() if token is not None else None
    if stripped == "":
        raise ValueError("the token is empty")
    if stripped is not None and not all("!" <= c <= "~" for c in stripped):
        raise ValueError("the token has characters that no token has: spaces, line ends or others outside ASCII")
    return stripped


def pairs(given: Metadata | None) -> tuple[tuple[str, str | bytes], ...]:
    """A call's own metadata, checked."""
    if given is None:
        return ()
    if isinstance(given, (str, bytes)):
        raise TypeError("metadata is a dict or pairs of name and value, not one text")
    items = given.items() if isinstance(given, Mapping) else given
    made = []
    for name, value in items:
        name = name.lower()
        binary = name.endswith("-bin")
        if not name or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name) or name.startswith("grpc-"):
            raise ValueError(f"metadata: {name!r} is no name of metadata: letters, digits, '-', '_' and '.'")
        if not isinstance(value, bytes if binary else str):
            raise TypeError(f"metadata: {name} takes {'bytes' if binary else 'str'}, not {type(value).__name__}")
        if isinstance(value, str) and not all(" " <= c <= "~" for c in value):
            raise ValueError(f"metadata: the value of {name} must be printable ASCII; bytes go under a name with -bin")
        made.append((name, value))
    return tuple(made)


class Opened:
    """A channel and what speaks through it."""

    def __init__(self, channel: Any):
        self.channel = channel
        self.stubs: dict[str, Any] = {
            "vision": vision_pb2_grpc.VisionServiceStub(channel),  # type: ignore[no-untyped-call]
            "model": model_pb2_grpc.ModelServiceStub(channel),  # type: ignore[no-untyped-call]
            "health": health_pb2_grpc.HealthStub(channel),
        }


class Link:
    """The channel of a blocking client: one in each process that uses it, so that it survives a fork."""

    def __init__(self, target: Target):
        self._target, self._closed = target, False
        self._lock = threading.Lock()
        self._opened: Opened | None = None
        self.opened()
        _AFTER_FORK.add(self)

    def opened(self) -> Opened:
        opened = self._opened
        if opened is not None:
            return opened
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._opened is None:
                self._opened = Opened(self._target.open(grpc))
            return self._opened

    def close(self) -> None:
        with self._lock:
            opened, self._opened, self._closed = self._opened, None, True
        if opened:
            opened.channel.close()

    def forked(self) -> None:
        self._lock = threading.Lock()
        if self._opened:
            # The parent's: its threads are not here. Not closed, which would wait for them.
            _ABANDONED.append(self._opened)
            self._opened = None


class AsyncLink:
    """The channels of an asyncio client: one for each event loop that uses it."""

    def __init__(self, target: Target):
        self._target, self._closed = target, False
        self._opened: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Opened] = weakref.WeakKeyDictionary()
        _AFTER_FORK.add(self)

    def opened(self) -> Opened:
        if self._closed:
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        opened = self._opened.get(loop)
        if opened is None:
            opened = self._opened[loop] = Opened(self._target.open(grpc.aio))
        return opened

    async def close(self) -> None:
        self._closed = True
        opened = self._opened.pop(asyncio.get_running_loop(), None)
        if opened:
            await opened.channel.close()

    def forked(self) -> None:
        _ABANDONED.extend(self._opened.values())
        self._opened = weakref.WeakKeyDictionary()


_AFTER_FORK: weakref.WeakSet[Any] = weakref.WeakSet()
_ABANDONED: list[Opened] = []


def survives_fork(thing: Any) -> None:
    """`thing.forked()` is called in each new process."""
    _AFTER_FORK.add(thing)


def _forked() -> None:
    for thing in list(_AFTER_FORK):
        thing.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def serving(answer: health_pb2.HealthCheckResponse) -> bool:
    """Whether a health answer says yes."""
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
