"""What a server refuses, as an exception."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2


class FrostlineError(Exception):
    """A call that got no answer. Can be pickled, so that it comes out of a process pool as it went in.

    Attributes:
        code: the gRPC status code.
        message: what is wrong, for people.
        reason: the server's stable name of the kind of error, such as ``INVALID_IMAGE``; empty where the error is not
            the server's own, as when nothing listens at the address.
        field: path of the request's field at fault, such as ``image.encoded``; empty where none is.
        retry_after: seconds after which the server says that the same call may succeed; ``None`` where it does not.
        details: values that the server names beside its sentence.
        request_id: what the call is called in the server's log; empty where no call was made.
        attempts: how often the call was tried.
        source: the image that the call was about, from `Client.map`; ``None`` elsewhere.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after: float | None = None,
        details: dict[str, str] | None = None,
        request_id: str = "",
        attempts: int = 1,
        source: Any = None,
    ):
        super().__init__(code, message)
        self.code, self.message = code, message
        self.reason, self.field, self.retry_after = reason, field, retry_after
        self.details: dict[str, str] = dict(details or {})
        self.request_id, self.attempts, self.source = request_id, attempts, source

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"

    def __repr__(self) -> str:
        named = {"reason": self.reason, "field": self.field, "request_id": self.request_id}
        said = "".join(f", {name}={value!r}" for name, value in named.items() if value)
        return f"FrostlineError({self.code.name}, {self.message!r}{said})"

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict(self.__dict__)
        if not isinstance(self.source, (str, os.PathLike)):
            # An open file does not travel, and pixels are not worth it.
            state["source"] = None
        return _again, (type(self), self.code, self.message), state

    @classmethod
    def of(cls, error: Any, request_id: str = "") -> FrostlineError:
        """From the `grpc.RpcError` that grpcio raises, with the details that the server sent along."""
        made = cls(error.code(), error.details() or "", request_id=request_id)
        for key, value in [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]:
            if key == "x-request-id":
                made.request_id = value
            elif key == "grpc-status-details-bin":
                made._read(_status(value))
        return made

    @classmethod
    def of_status(cls, code: grpc.StatusCode, status: status_pb2.Status) -> FrostlineError:
        """From the part of an answer that says why there is no result."""
        made = cls(code, status.message)
        made._read(status)
        return made

    def _read(self, status: status_pb2.Status) -> None:
        for detail in _details(status):
            if isinstance(detail, error_details_pb2.ErrorInfo):
                self.reason, self.details = detail.reason, dict(detail.metadata)
            elif isinstance(detail, error_details_pb2.BadRequest):
                self.field = detail.field_violations[0].field if detail.field_violations else ""
            elif isinstance(detail, error_details_pb2.RetryInfo):
                self.retry_after = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9


def _again(cls: type[FrostlineError], code: grpc.StatusCode, message: str) -> FrostlineError:
    return cls(code, message)


def _status(packed: bytes) -> status_pb2.Status:
    """What does not parse (a proxy's, perhaps) says nothing."""
    try:
        return status_pb2.Status.FromString(packed)
    except DecodeError:
        return status_pb2.Status()


def _details(status: status_pb2.Status) -> Iterator[Any]:
    """The messages of known kinds in a `google.rpc.Status`; what does not parse is left out."""
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    for any_ in status.details:
        for kind in kinds:
            if any_.Is(kind.DESCRIPTOR):
                try:
                    yield kind.FromString(any_.value)
                except DecodeError:
                    continue
