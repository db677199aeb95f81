"""The short form of `make balance-test`: three servers behind Envoy, with the shipped configuration."""

import asyncio

import pytest

from balance import SETTINGS, scenarios
from fleet import Fleet, envoy, free_ports
from load import Load, frames


@pytest.fixture(scope="module")
def rows():
    if not envoy():
        pytest.fail("no envoy: install tests/requirements.txt")
    return asyncio.run(scenarios("envoy", calls=30))


def test_no_call_fails(rows):
    """Killed, drained, rolled, a head rolled out: nobody notices. What each event did is checked as it happens."""
    assert [row.scenario.split()[0] for row in rows] == ["kill", "drain", "roll", "head", "cache,", "cache,"]
    assert all(row.tally.calls >= 60 for row in rows)
    assert not [(row.scenario, row.tally.failed) for row in rows if row.failed]


def test_frames_stay_where_their_features_are(rows):
    """By frame key the replicas together compute each frame once; a replica that was asked twice has it."""
    keyed, spread = (row.tally for row in rows[-2:])
    assert keyed.sources["computed"] == 48
    assert keyed.hits_by_replica.total() == keyed.calls - 48
    assert spread.sources["computed"] > 1.5 * 48


def test_a_failed_call_is_counted():
    """The load would tell: nobody listens there."""

    async def run() -> Load:
        load = Load(f"127.0.0.1:{free_ports(1)[0]}", frames(1), workers=1)
        async with load:
            await load.reach(1)
        return load

    tally = asyncio.run(run()).tally
    assert tally.calls == tally.failed.total() >= 1
    assert tally.codes["UNAVAILABLE"] >= 2


def test_a_replica_that_cannot_start_is_an_error():
    with pytest.raises(RuntimeError, match="did not start"), Fleet(SETTINGS | {"engine.max_batch": 0}, count=1):
        pass
