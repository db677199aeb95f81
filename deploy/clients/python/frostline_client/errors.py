"""What a server refuses, as an exception."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2, status_pb2


class FrostlineError(Exception):
    """A call that got no answer.

    Attributes:
        code: the gRPC status code.
        reason: the server's stable name of the kind of error, such as ``INVALID_IMAGE``; empty where the error is not
            the server's own, as when nothing listens at the address.
        field: path of the request's field at fault, such as ``image.encoded``; empty where none is.
        retry_after: seconds after which the server says that the same call may succeed; ``None`` where it does not.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after: float | None = None,
    ):
        super().__init__(f"{code.name}: {message}")
        self.code, self.message = code, message
        self.reason, self.field, self.retry_after = reason, field, retry_after

    @classmethod
    def of(cls, error: grpc.RpcError) -> FrostlineError:
        """From what grpcio raises, with the details that the server sent along."""
        reason, field, retry_after = "", "", None
        for key, value in error.trailing_metadata() or ():
            if key != "grpc-status-details-bin":
                continue
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                    info = error_details_pb2.ErrorInfo()
                    detail.Unpack(info)
                    reason = info.reason
                elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                    bad = error_details_pb2.BadRequest()
                    detail.Unpack(bad)
                    field = bad.field_violations[0].field if bad.field_violations else ""
                elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                    info = error_details_pb2.RetryInfo()
                    detail.Unpack(info)
                    retry_after = info.retry_delay.ToTimedelta().total_seconds()
        return cls(error.code(), error.details() or "", reason=reason, field=field, retry_after=retry_after)
