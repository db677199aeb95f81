"""A server that goes and comes back fails no call that has the time to wait for it."""

import asyncio
import signal
import threading

import pytest
from conftest import SAMPLES, Server, own_port
from frostline_client import AsyncClient, Client, FrostlineError

SCENE = SAMPLES / "scene-1.jpg"
PATIENT = 240.0
"""Seconds; a busy machine starts a server slowly, and how slowly is not what is tested."""


class Load:
    """Threads that call all the time, and what became of it."""

    def __init__(self, client, threads=8):
        self.client, self.errors, self.counts = client, [], [0] * threads
        self._end, self._beginning, self._answered = threading.Event(), threading.Condition(), 0
        self._threads = [threading.Thread(target=self._call, args=(i,)) for i in range(threads)]

    def _call(self, number):
        while not self._end.is_set():
            try:
                if number % 2:
                    assert len(self.client.detect(SCENE, "objects", masks=False)) > 0
                else:
                    assert len(self.client.heads()) == 3
            except Exception as error:
                self.errors.append(error)
            with self._beginning:
                self._answered += 1
                self.counts[number] += 1
                self._beginning.notify_all()

    def answers(self, more):
        """Waits for so many more answers."""
        with self._beginning:
            wanted = self._answered + more
            assert self._beginning.wait_for(lambda: self._answered >= wanted, PATIENT)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENT)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_one_server_restarts(how):
    address = own_port()
    server = Server(listen=address)
    try:
        with Client(address, timeout=PATIENT) as client, Load(client) as load:
            load.answers(20)
            server.process.send_signal(how)
            server._ended(60)
            # Every thread is in a call or begins one, and no server is there.
            server = Server(listen=address)
            load.answers(40)
        assert load.errors == []
        assert all(count > 0 for count in load.counts)
    finally:
        server.kill()


def test_two_servers_restart_in_turn():
    addresses = [own_port(), own_port()]
    servers = [Server(listen=address) for address in addresses]
    try:
        with Client(addresses, timeout=PATIENT) as client, Load(client) as load:
            for i, address in enumerate(addresses):
                load.answers(20)
                assert servers[i].stop() == 0
                # The other one answers meanwhile.
                load.answers(40)
                servers[i] = Server(listen=address)
                load.answers(20)
        assert load.errors == []
    finally:
        for server in servers:
            server.kill()


async def test_asyncio_waits_too():
    address = own_port()
    server = await asyncio.to_thread(Server, listen=address)
    try:
        async with AsyncClient(address, timeout=PATIENT) as client:
            assert len(await client.heads()) == 3
            await asyncio.to_thread(server.kill)
            calls = [asyncio.create_task(client.heads()) for _ in range(50)]
            with pytest.raises(FrostlineError, match="UNAVAILABLE"):
                await client.heads(timeout=0.5)
            server = await asyncio.to_thread(Server, listen=address)
            assert [len(heads) for heads in await asyncio.gather(*calls)] == [3] * 50
    finally:
        await asyncio.to_thread(server.kill)
