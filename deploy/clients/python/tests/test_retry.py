"""Which failures are repeated, when, and how often; against a service that fails as told."""

import threading
import time
from concurrent import futures

import grpc
import pytest
from frostline.v1 import model_pb2, model_pb2_grpc
from frostline_client import AsyncClient, Client, FrostlineError, RetryPolicy
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

FAST = RetryPolicy(attempts=4, base=0.01, most=0.05)


class Failing(model_pb2_grpc.ModelServiceServicer):
    """Answers each call with the next of `failures`, then well."""

    def __init__(self):
        self.failures, self.times = [], []

    def _fail(self, context):
        self.times.append(time.monotonic())
        if not self.failures:
            return
        code, delay = self.failures.pop(0)
        if delay is not None:
            status = status_pb2.Status(code=code.value[0], message="later")
            info = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=int(delay), nanos=int(delay % 1 * 1e9)))
            status.details.add().Pack(info)
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, "later")

    def ListHeads(self, request, context):
        self._fail(context)
        return model_pb2.ListHeadsResponse()

    def UnloadHead(self, request, context):
        self._fail(context)
        return model_pb2.UnloadHeadResponse()


@pytest.fixture
def service():
    failing = Failing()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    model_pb2_grpc.add_ModelServiceServicer_to_server(failing, server)
    failing.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield failing
    server.stop(None).wait()


UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, None)
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


def test_it_goes_on_where_that_helps(service):
    service.failures = [UNAVAILABLE, UNAVAILABLE, (FULL, 0.05)]
    with Client(service.address, retry=FAST) as client:
        assert client.heads() == []
    assert len(service.times) == 4
    assert service.times[3] - service.times[2] >= 0.05, "RetryInfo is the least wait"


async def test_asyncio_goes_on_too(service):
    service.failures = [UNAVAILABLE, (FULL, 0.02)]
    async with AsyncClient(service.address, retry=FAST) as client:
        assert await client.heads() == []
    assert len(service.times) == 3


@pytest.mark.parametrize(
    "failure",
    [(FULL, None), (grpc.StatusCode.INTERNAL, None), (grpc.StatusCode.INVALID_ARGUMENT, 0.01),
     (grpc.StatusCode.DEADLINE_EXCEEDED, None)],
    ids=lambda failure: failure[0].name,
)  # fmt: skip
def test_what_does_not_help_is_not_repeated(service, failure):
    service.failures = [failure]
    with Client(service.address, retry=FAST) as client, pytest.raises(FrostlineError) as refused:
        client.heads()
    assert refused.value.code is failure[0] and len(service.times) == 1


def test_what_is_not_safe_twice_is_not_repeated(service):
    service.failures = [UNAVAILABLE]
    with Client(service.address, retry=FAST) as client, pytest.raises(FrostlineError):
        client.unload("scene")
    assert len(service.times) == 1


def test_it_ends(service):
    service.failures = [UNAVAILABLE] * 100
    with Client(service.address, retry=FAST) as client, pytest.raises(FrostlineError):
        client.heads()
    assert len(service.times) == FAST.attempts


def test_no_wait_goes_beyond_the_deadline(service):
    service.failures = [(FULL, 30.0)]
    begun = time.monotonic()
    with Client(service.address, retry=FAST) as client, pytest.raises(FrostlineError) as refused:
        client.heads(timeout=5.0)
    assert refused.value.retry_after == 30.0 and time.monotonic() - begun < 5


def test_a_budget_ends_retries_when_most_calls_fail(service):
    service.failures = [UNAVAILABLE] * 1000
    policy = RetryPolicy(attempts=4, base=0.001, most=0.001, budget=5)
    with Client(service.address, retry=policy) as client:

        def call():
            with pytest.raises(FrostlineError):
                client.heads()

        threads = [threading.Thread(target=call) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(service.times) == 20 + 5
