"""A streaming standby whose replay a test pauses and resumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.clock import SystemClock
from engine.embedded import EmbeddedServer
from tests.support.databases import QUIET

REPLAY_S = 30.0
_POLL = "SELECT pg_sleep(0.02)"


class StandbyPair:
    """A primary of its own and its hot standby; neither is shared with other tests."""

    def __init__(self, primary: EmbeddedServer, standby: EmbeddedServer) -> None:
        self.primary = primary
        self.standby = standby

    def pause(self) -> None:
        """Replay stops; WAL still arrives.  Returns when it has stopped."""
        self.standby.sql("SELECT pg_wal_replay_pause()")
        self._wait("SELECT pg_get_wal_replay_pause_state() = 'paused'")

    def resume(self) -> None:
        """Replay goes on."""
        self.standby.sql("SELECT pg_wal_replay_resume()")

    def wait_replayed(self) -> None:
        """Return when the standby has replayed all that the primary has written by now."""
        here = self.primary.sql("SELECT pg_current_wal_insert_lsn()")
        self._wait(f"SELECT pg_last_wal_replay_lsn() >= '{here}'")

    def _wait(self, condition: str) -> None:
        clock = SystemClock()
        deadline = clock.now() + REPLAY_S
        while self.standby.sql(condition) != "t":
            assert clock.now() < deadline, f"the standby never came to: {condition}"
            self.standby.sql(_POLL)


@contextmanager
def standby_pair(major: int) -> Iterator[StandbyPair]:
    """Start both; gone afterwards."""
    # Of its own: the shared server of that version must not see a walsender come and go.
    with EmbeddedServer(major, settings={**QUIET, "wal_receiver_status_interval": "1s"}, tcp=True) as primary:
        standby = primary.make_standby()
        try:
            yield StandbyPair(primary, standby)
        finally:
            standby.discard()
