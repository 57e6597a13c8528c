"""Replication lag against a real standby whose replay is paused, and that goes away."""

from __future__ import annotations

import asyncio
import os
import re
import signal

import pytest

from engine.clock import SystemClock
from engine.db import Database
from engine.model import Side
from engine.pace.law import SignalPolicy, Unit
from engine.watch import Measured, ProbeFailed
from engine.watch.session import Session
from engine.watch.standbys import ReplicationLag
from tests.support.standby import StandbyPair, standby_pair

CLOCK = SystemClock()


def asking(pair: StandbyPair, unit: Unit, user: str = "postgres") -> ReplicationLag:
    database = Database(pair.primary.dsn().replace("postgres@", f"{user}@"), side=Side.TARGET, job="job")
    policy = SignalPolicy(name="replication_lag", unit=unit)
    return ReplicationLag(policy, Session(database, "watch", clock=CLOCK, deadline_s=2.0), CLOCK)


async def until(probe: ReplicationLag, low: float, high: float) -> Measured:
    measured = None
    for _ in range(200):
        try:
            measured = await probe.read()
        except ProbeFailed:
            measured = None
        if measured is not None and low <= measured.value <= high:
            return measured
        await asyncio.sleep(0.05)
    raise AssertionError(f"last seen: {measured}")


async def failure(probe: ReplicationLag) -> str:
    """Why it fails, once it does."""
    for _ in range(200):
        try:
            await probe.read()
        except ProbeFailed as failed:
            return failed.message
        await asyncio.sleep(0.05)
    raise AssertionError("it never failed")


@pytest.mark.parametrize("major", [16, 18])
async def test_a_paused_standby_grows_old_and_a_lost_one_fails(major: int) -> None:
    with standby_pair(major) as pair:
        pair.primary.sql("CREATE TABLE t (a int, b text)")
        pair.wait_replayed()
        seconds, size = asking(pair, Unit.SECONDS), asking(pair, Unit.BYTES)
        await until(seconds, 0, 0)
        await until(size, 0, 0)
        pair.pause()
        await asyncio.sleep(0.5)
        assert (await seconds.read()).value == 0, "nothing was written: nothing is missing"
        pair.primary.sql("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 3000) i")
        written_at = CLOCK.now()
        measured = await until(size, 3e6, 1e7)
        assert measured.detail.startswith("standby ")
        await asyncio.sleep(2.0)
        before = CLOCK.now()
        value = (await seconds.read()).value
        assert value >= before - written_at > 2.0
        await asyncio.sleep(0.5)
        assert (await seconds.read()).value >= value + 0.4
        pair.resume()
        await until(seconds, 0, 0.2)
        await until(size, 0, 0)
        pair.standby.stop()
        for probe in (seconds, size):
            assert (await failure(probe)).endswith(" is gone")
        pair.standby.start()
        await until(seconds, 0, 0.2)
        await until(size, 0, 0)
        await seconds.close()
        await size.close()


async def rename(pair: StandbyPair, name: str, settings: str = "") -> None:
    """The standby streams again as ``name``."""
    reached = re.sub(r" ?application_name=\S+", "", pair.standby.sql("SHOW primary_conninfo")).replace("'", "''")
    for setting in (f"primary_conninfo = '{reached} application_name={name}'", *filter(None, [settings])):
        pair.standby.sql(f"ALTER SYSTEM SET {setting}")
    pair.standby.sql("SELECT pg_reload_conf()")
    wanted = f"SELECT count(*) FROM pg_stat_replication WHERE application_name = '{name}' AND replay_lsn IS NOT NULL"
    async with asyncio.timeout(20):
        while pair.primary.sql(wanted) != "1":
            await asyncio.sleep(0.05)


async def test_who_comes_only_to_go_is_no_standby() -> None:
    with standby_pair(18) as pair:
        await rename(pair, "pg_16394_sync_16389_7311")  # as a subscriber that copies a table calls itself
        probe = asking(pair, Unit.BYTES)
        assert (await probe.read()).detail == "no standby is connected"
        assert probe.standbys == frozenset()
        # A standby may have a temporary slot, and stays one.
        await rename(pair, "slotted", "wal_receiver_create_temp_slot = on")
        assert pair.primary.sql("SELECT temporary AND active_pid IS NOT NULL FROM pg_replication_slots") == "t"
        assert (await until(probe, 0, 0)).detail == "standby slotted"
        assert probe.standbys == {"slotted"}
        await probe.close()


async def test_without_the_right_nothing_is_known() -> None:
    with standby_pair(16) as pair:
        pair.primary.sql("CREATE ROLE plain LOGIN")
        probe = asking(pair, Unit.SECONDS, "plain")
        with pytest.raises(ProbeFailed, match="grant pg_read_all_stats"):
            await probe.read()
        pair.primary.sql("GRANT pg_read_all_stats TO plain")
        await until(probe, 0, 10)
        await probe.close()


async def test_a_standby_that_says_nothing_grows_old_too() -> None:
    """The server's own figure stands still then: it is as old as the standby's last message."""
    with standby_pair(16) as pair:
        pair.primary.sql("CREATE TABLE t (a int)")
        pair.wait_replayed()
        probe = asking(pair, Unit.SECONDS)
        await until(probe, 0, 0)
        receiver = int(pair.standby.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'"))
        os.kill(receiver, signal.SIGSTOP)
        try:
            pair.primary.sql("INSERT INTO t VALUES (1)")
            await until(probe, 1.5, 10)
            reported = pair.primary.sql("SELECT coalesce(extract(epoch FROM replay_lag), 0) FROM pg_stat_replication")
            assert float(reported) < 1
        finally:
            os.kill(receiver, signal.SIGCONT)
        await until(probe, 0, 0)
        await probe.close()
