"""Which failures are repeated, when, and how often; against a service that fails as told."""

import threading
import time
from concurrent import futures

import grpc
import pytest
from conftest import own_port
from frostline.v1 import model_pb2, model_pb2_grpc
from frostline_client import AsyncClient, Client, FrostlineError, RetryPolicy, errors
from frostline_client.retry import Attempts, Budget
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

FAST = RetryPolicy(attempts=4, base=0.01, most=0.05)


SLOW = object()
"""Answers when it is told to."""


class Failing(model_pb2_grpc.ModelServiceServicer):
    """Answers each call with the next of `failures`, then well."""

    def __init__(self):
        self.failures, self.times, self.go = [], [], threading.Event()

    def _fail(self, context):
        self.times.append(time.monotonic())
        if not self.failures:
            return
        failure = self.failures.pop(0)
        if failure is SLOW:
            self.go.wait(60)
            return
        code, delay = failure
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
    with Client(service.address, retry=FAST) as client, pytest.raises(FrostlineError) as refused:
        client.heads()
    assert len(service.times) == FAST.attempts == refused.value.attempts


def test_it_goes_on_until_the_deadline_and_slows_down(service):
    service.failures = [UNAVAILABLE] * 10_000
    begun = time.monotonic()
    with Client(service.address, retry=RetryPolicy(base=0.01, most=0.2)) as client, pytest.raises(FrostlineError) as gone:
        client.heads(timeout=2.0)
    assert time.monotonic() - begun > 1.9, "it waits as long as the caller does"
    assert gone.value.code is grpc.StatusCode.UNAVAILABLE and gone.value.attempts == len(service.times)
    # Waits of 0.1 to 0.2 s after the first few, and halves of what is left at the end.
    assert len(service.times) < 40


def test_waits_grow_and_are_spread():
    policy = RetryPolicy(base=0.05, most=1.0)
    away, full = (FrostlineError(code, "x") for code in (UNAVAILABLE[0], FULL))
    full.retry_after = 3.0
    calls = [Attempts(policy, Budget(policy), None, True, patient=True) for _ in range(200)]
    for n in range(8):
        waits = [call.wait(away) for call in calls]
        longest = min(1.0, 0.05 * 2**n)
        assert longest / 2 <= min(waits) < 0.6 * longest and 0.9 * longest < max(waits) <= longest
    waits = [call.wait(full) for call in calls]
    assert 3.0 <= min(waits) < 3.2 and 4.3 < max(waits) <= 4.5, "never before the server's word"
    # With little time left, one more try in it; with the server's word beyond it, none.
    call = Attempts(policy, Budget(policy), 0.5, True)
    assert [call.wait(away) is None for _ in range(8)] == [False] * 8 and call.wait(away) < 0.5
    assert call.wait(full) is None


def test_what_cannot_be_sent_twice_waits_for_a_connection():
    """`unload` is sent once, but when a server is there: one that comes while the call waits answers it."""
    address = own_port()
    failing = Failing()
    with Client(address) as client, futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.unload, "scene", timeout=60.0)
        with Client(address) as other:
            assert not other.healthy()
        server = grpc.server(futures.ThreadPoolExecutor(2))
        model_pb2_grpc.add_ModelServiceServicer_to_server(failing, server)
        server.add_insecure_port(address)
        server.start()
        try:
            answer.result(60)
        finally:
            server.stop(None).wait()
    assert len(failing.times) == 1


def test_a_deadline_that_passes_while_a_server_is_away_says_so(service):
    service.failures = [UNAVAILABLE, SLOW]
    with Client(service.address, retry=FAST) as client, pytest.raises(FrostlineError) as late:
        client.heads(timeout=1.0)
    service.go.set()
    error = late.value
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED and error.attempts == 2
    assert "1 tries before it ended in UNAVAILABLE: later" in str(error)
    assert error.__cause__.code is grpc.StatusCode.UNAVAILABLE


def test_no_wait_goes_beyond_the_deadline(service):
    service.failures = [(FULL, 30.0)]
    begun = time.monotonic()
    with Client(service.address, retry=FAST) as client, pytest.raises(FrostlineError) as refused:
        client.heads(timeout=5.0)
    assert refused.value.retry_after == 30.0 and time.monotonic() - begun < 5


def test_a_budget_ends_retries_of_what_a_full_server_refuses(service):
    service.failures = [(FULL, 0.001)] * 1000
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


def test_a_damaged_detail_is_no_second_error(service):
    error = FrostlineError(grpc.StatusCode.INTERNAL, "x")
    error._read(errors._status(b"\xff\xff\xff"))
    status = status_pb2.Status(code=13)
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    error._read(errors._status(status.SerializeToString()))
    assert error.reason == ""


def test_policies_are_checked():
    for wrong in ({"attempts": 0}, {"base": 0.0}, {"base": 3.0, "most": 1.0}):
        with pytest.raises(ValueError):
            RetryPolicy(**wrong)
