"""The attacks in a short form, against one server, with the bounds that a busy machine keeps: `make attack` has the others."""

import os
import time
from pathlib import Path

import attack
import plan
import pytest
from observers import PATIENCE, Observer
from server import ROOT, Options, Server

BINARY = Path(os.environ.get("FROSTLINE_BINARY", ROOT / "target/debug/frostline"))
SECONDS = 1
CAP = 2048 << 20
# How long a machine with other things to do may take.
LONG = 30

# Each with the part of it that is sent.
SHORT = {
    "entries": 0.05,
    "in-flight": 0.1,
    "made-reset-window": 0.05,
    "narrow": 1,
    "ping-answers": 0.05,
    "resets": 0.05,
    "shapes": 1,
    "silent": 0.1,
    "stranger-flood": 0.05,
    "toggle": 0.1,
    "unfinished-health": 0.02,
    "unknown-fields": 0.05,
    "watch": 0.2,
    "zstd-bombs": 0.05,
}


@pytest.fixture(scope="module")
def attacked():
    """A server and a good caller of it."""
    server = Server(BINARY, Options(), CAP)
    good = None
    try:
        good = Observer("good", *server.address, server.tokens["good"], "")
        good.wait()
        yield server, good
    finally:
        if good:
            good.stop()
        server.stop()


@pytest.mark.parametrize("name", SHORT)
def test_a_server_outlives(attacked, name):
    server, good = attacked
    before, internal, lines = server.state(), attack.faults_counted(server), len(server.lines)
    server.forget_peak()
    begun = time.monotonic()
    told = attack.strike(plan.load()[name], server, SECONDS, SHORT[name])
    ended = time.monotonic()
    assert server.alive(), f"killed: {server.killed}, {server.lines[-3:]}"
    took, after = attack.given_back(server, before, ended, LONG)
    assert took is not None, f"not given back: {before} before, {after} after"
    assert told.get("frames", 0) > 0 and not told["faults"], told
    assert server.peak() < CAP
    assert attack.faults_counted(server) == internal
    # However many frames there were.
    assert len(server.lines) - lines < 100, server.lines[lines : lines + 5]
    # The good caller was waited for as long as it waits itself.
    until = time.monotonic() + PATIENCE + LONG
    while not good.seen("call", ended, until).took and time.monotonic() < until:
        time.sleep(0.05)
    assert good.seen("call", ended, until).took, "the good caller is not answered any more"
    # A machine that has no time for it lets its deadlines pass, and nothing else.
    seen = good.seen("call", begun, ended)
    assert not [error for error in seen.errors if "deadline" not in error.lower()], seen.errors
