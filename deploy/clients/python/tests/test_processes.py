"""Threads, forks, spawned processes, asyncio, and ten thousand calls: nothing hangs and nothing is left behind."""

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from conftest import SAMPLES
from frostline_client import AsyncClient, Client, FrostlineError

SCENE = SAMPLES / "scene-1.jpg"
HERE = psutil.Process()
END = 240
"""Seconds after which a pool that hangs is a failure."""

CLIENT = None


def work(image):
    """In another process, with the client that it has or makes."""
    global CLIENT
    if CLIENT is None:
        CLIENT = Client(os.environ["TEST_ADDRESS"], timeout=120)
    return CLIENT.detect(image)


@pytest.fixture
def address(server, monkeypatch):
    monkeypatch.setenv("TEST_ADDRESS", server)
    return server


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_errors_and_answers_come_out_of_pools(address, method):
    """One bad image is one error, and the pool goes on."""
    with multiprocessing.get_context(method).Pool(2) as pool:
        pending = [pool.apply_async(work, (image,)) for image in (SCENE, b"%PDF-1.7", SCENE, "none.jpg", SCENE)]
        found = [pending[i].get(END) for i in (0, 2, 4)]
        with pytest.raises(FrostlineError) as refused:
            pending[1].get(END)
        with pytest.raises(FileNotFoundError):
            pending[3].get(END)
    error = refused.value
    assert (error.code.name, error.reason, error.field) == ("INVALID_ARGUMENT", "INVALID_IMAGE", "image.encoded")
    assert len(error.request_id) == 32 and "is a PDF document" in str(error)
    assert found[0] == found[1] == found[2] and len(found[0]) > 0 and found[0].draw().size == (640, 480)


FORKED = """
import os, sys, threading
from frostline_client import Client

address, scene = sys.argv[1:]
with Client(address, timeout=120) as client:
    wanted = client.detect(scene)
    for round in range(10):
        child = os.fork()
        if not child:
            # The parent's client, in a process of its own, from two threads.
            answers = []
            threads = [threading.Thread(target=lambda: answers.append(client.detect(scene))) for _ in range(2)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            os._exit(0 if answers == [wanted] * 2 else 1)
        assert client.detect(scene) == wanted
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        assert client.detect(scene) == wanted
print("fine")
"""


def test_a_client_is_used_on_both_sides_of_a_fork(server):
    done = subprocess.run([sys.executable, "-c", FORKED, server, SCENE], capture_output=True, text=True, timeout=END)
    assert done.returncode == 0 and done.stdout == "fine\n", done.stdout + done.stderr


class Measured:
    """What a process holds: memory, files, threads, and Python's objects."""

    def __init__(self):
        gc.collect()
        self.memory, self.files = HERE.memory_info().rss, HERE.num_fds()
        self.threads, self.objects = threading.active_count(), len(gc.get_objects())


def grown(before, after, calls):
    """Nothing that grows with the calls. What gRPC keeps ready is far less than what a leak of one message would be."""
    assert after.files <= before.files + 4, "files"
    assert after.threads <= before.threads + 2, "threads"
    assert after.objects - before.objects < calls / 10, "objects"
    assert after.memory - before.memory < 20_000_000, "memory"


def test_sixteen_threads_make_thousands_of_calls(server):
    calls = 5_000
    with Client(server, timeout=120) as client, ThreadPoolExecutor(16) as pool:

        def call(number):
            if number % 50 == 0:
                return len(client.detect(SCENE, "objects"))
            if number % 50 == 1:
                with pytest.raises(FrostlineError):
                    client.head("nobody")
                return 1
            return len(client.heads())

        # What is made once is there before it is counted.
        assert all(pool.map(call, range(1_000)))
        before = Measured()
        assert all(pool.map(call, range(calls)))
        grown(before, Measured(), calls)


async def test_asyncio_makes_thousands_of_calls(server):
    calls = 5_000
    async with AsyncClient(server, timeout=120) as client:

        async def call(number):
            if number % 50 == 0:
                return len(await client.detect(SCENE, "objects"))
            return len(await client.heads())

        async def some(number):
            for first in range(0, number, 100):
                assert all(await asyncio.gather(*map(call, range(first, first + 100))))

        await some(1_000)
        before = Measured()
        await some(calls)
        grown(before, Measured(), calls)


def test_clients_leave_nothing_behind(server):
    def some(number):
        for _ in range(number):
            with Client(server, timeout=120) as client:
                assert len(client.heads()) == 3
            asyncio.run(once())

    async def once():
        async with AsyncClient(server, timeout=120) as client:
            assert len(await client.heads()) == 3

    some(10)
    before = Measured()
    some(40)
    grown(before, Measured(), 40 * 100)


async def test_a_cancelled_call_ends(server):
    async with AsyncClient(server, timeout=120) as client:
        calls = [asyncio.create_task(client.detect(SCENE)) for _ in range(20)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended[::2])
        assert all(len(one) > 0 for one in ended[1::2])
