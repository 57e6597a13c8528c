"""How far the standbys are behind, in bytes of WAL or in seconds.

``pg_stat_replication.replay_lag`` cannot be believed: it is as old as the standby's last message, and stands still
when the standby hangs.  So the primary's own position is noted again and again, and a standby that has replayed up to
there is as old as that note.  Silence is no lag: a standby that has replayed everything is not behind, however long
nothing was written.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from engine.clock import Clock
from engine.pace.law import SignalPolicy, Unit
from engine.watch.probe import Measured, ProbeFailed
from engine.watch.session import Session

EVERY_S: Final = 1.0

MOST_NOTES: Final = 4096
PRECISION: Final = 0.02
"""Over an hour of notes by the second; then older ones are thinned out, down to this share of their age."""

# Physical standbys and logical subscribers alike; not the copying of a base backup.  Without the right, state is NULL.
# A receiver that never replays (pg_receivewal) has no replay_lsn.  Those that come only to go are left out, or their
# end would be taken for a loss: a subscriber's copying of a table, and whoever has a temporary slot, but for a standby
# that was told to make itself one (wal_receiver_create_temp_slot).
_LOOK: Final = """\
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::float8 AS here,
       coalesce(nullif(r.application_name, ''), 'standby') AS name,
       r.pid IS NOT NULL AND r.state IS NULL AS hidden,
       pg_wal_lsn_diff(r.replay_lsn, '0/0')::float8 AS replayed,
       extract(epoch FROM r.replay_lag)::float8 AS reported_s
  FROM (SELECT) AS one
  LEFT JOIN pg_stat_replication r ON r.state IS DISTINCT FROM 'backup'
   AND coalesce(r.application_name, '') !~ '^pg_[0-9]+_sync_[0-9]+_'
   AND NOT EXISTS (SELECT FROM pg_replication_slots s
                    WHERE s.active_pid = r.pid AND s.temporary AND s.slot_name !~ '^pg_walreceiver_')"""


@dataclass(frozen=True, slots=True)
class Standby:
    """What one look saw of one standby.  Positions are bytes from the beginning of WAL."""

    name: str
    replayed: float | None  # None: not told yet
    reported_s: float | None = None  # the server's own idea of the lag


class Notes:
    """Where the primary stood when.  Pure."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._positions: list[float] = []
        self._times: list[float] = []  # the last time at which it stood there

    def add(self, now: float, position: float) -> None:
        """The primary stands at ``position``.  One that goes back is another primary: the notes begin anew."""
        if self._began is None or (self._positions and position < self._positions[-1]):
            self._began = now
            self._positions.clear()
            self._times.clear()
        if self._positions and position == self._positions[-1]:
            self._times[-1] = now
            return
        self._positions.append(position)
        self._times.append(now)
        if len(self._positions) > MOST_NOTES:
            self._thin_out(now)

    def age(self, now: float, replayed: float) -> float | None:
        """Seconds since the primary stood no further than ``replayed``; 0 when it still does.  None when that was
        before the first note.
        """
        if not self._positions or replayed >= self._positions[-1]:
            return 0.0
        place = bisect_right(self._positions, replayed)
        return None if place == 0 else max(0.0, now - self._times[place - 1])

    def watched_s(self, now: float) -> float:
        """How far the notes reach back."""
        return 0.0 if self._began is None else now - self._began

    def _thin_out(self, now: float) -> None:
        """Drop notes that are nearer to an older one than the precision asks for."""
        kept = [0]
        for place, time in enumerate(self._times):
            if time - self._times[kept[-1]] >= PRECISION * (now - time):
                kept.append(place)
        self._positions = [self._positions[place] for place in kept]
        self._times = [self._times[place] for place in kept]


class Lag:
    """From looks at the primary to the lag of the worst standby.  Pure.

    ``known``: names of standbys that were there before; each is missed until it is back.
    """

    def __init__(self, *, in_bytes: bool, known: Iterable[str] = ()) -> None:
        self._in_bytes = in_bytes
        self._notes = Notes()
        self._known: Counter[str] = Counter(set(known))
        self._replayed: dict[str, float] = {}

    @property
    def known(self) -> frozenset[str]:
        """The names of all standbys that were ever there."""
        return frozenset(self._known)

    def measure(self, now: float, here: float, standbys: Sequence[Standby]) -> Measured:
        """The lag of the one that is most behind; 0 without any.  Raises ``ProbeFailed`` when one that was there is
        gone, or nobody can say how far it is behind.
        """
        self._notes.add(now, here)
        present = Counter(standby.name for standby in standbys if standby.replayed is not None)
        for name in sorted(self._known):
            if present[name] < self._known[name]:
                raise ProbeFailed(f"standby {name} is gone")
        self._known |= present
        before, self._replayed = self._replayed, {s.name: s.replayed for s in standbys if s.replayed is not None}
        lags = [(self._lag(now, here, s.replayed, s, before), s.name) for s in standbys if s.replayed is not None]
        if not lags:
            return Measured(0.0, detail="no standby is connected")
        worst, name = max(lags)
        return Measured(worst, detail=f"standby {name}")

    def _lag(self, now: float, here: float, replayed: float, standby: Standby, before: Mapping[str, float]) -> float:
        if self._in_bytes:
            return max(0.0, here - replayed)
        seconds = self._notes.age(now, replayed)
        if seconds is not None:
            return seconds
        # Behind from before we looked.  While it replays, the server's own figure is current; else nobody knows.
        at_least = self._notes.watched_s(now)
        if standby.reported_s is not None and replayed > before.get(standby.name, replayed):
            return max(at_least, standby.reported_s)
        raise ProbeFailed(f"standby {standby.name} is behind since before we watched, by at least {at_least:.0f}s")


class ReplicationLag:
    """Asks a primary about its standbys every second.  ``known``: names of those that were there before."""

    every_s = quiet_every_s = EVERY_S

    def __init__(self, policy: SignalPolicy, session: Session, clock: Clock, known: Iterable[str] = ()) -> None:
        self.policy = policy
        self.asked_at: float | None = None
        self._session = session
        self._clock = clock
        self._lag = Lag(in_bytes=policy.unit is Unit.BYTES, known=known)

    @property
    def standbys(self) -> frozenset[str]:
        """The names of all standbys that were ever there, gone or not."""
        return self._lag.known

    async def read(self) -> Measured:
        """Seconds, or bytes where the policy says so."""
        rows = await self._session.ask(_LOOK)
        if any(row["hidden"] for row in rows):
            raise ProbeFailed("the standbys' positions are hidden from us: grant pg_read_all_stats")
        standbys = [Standby(row["name"], row["replayed"], row["reported_s"]) for row in rows]
        return self._lag.measure(self._clock.now(), rows[0]["here"], standbys)

    async def close(self) -> None:
        """End the session, if another of its users has not done so."""
        await self._session.close()
