"""From the signals of a spec to probes, their sessions, and what the law shall make of their readings.

Sessions of one database: one for its read probe, one for its commit probe, one for every query of the user, one for
quick questions to the server and one for slow ones.  Questions that share a session wait for each other, at most for
its deadline.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from engine.clock import Clock
from engine.db import Database
from engine.model import KeyColumn, KeyValue, Side, TableName
from engine.pace.law import OnFailure, SignalPolicy, Statistic, Unit
from engine.spec.signals import SignalKind, SignalSpec, at_side
from engine.watch import server
from engine.watch.custom import SqlProbe
from engine.watch.latency import HEARTBEAT_ROWS, CommitProbe, QueryProbe, ReadProbe
from engine.watch.locks import LockWaits
from engine.watch.outside import HttpProbe, PrometheusProbe
from engine.watch.presence import Presence
from engine.watch.probe import Probe
from engine.watch.session import Session
from engine.watch.standbys import ReplicationLag
from engine.watch.wal import WalRate

QUICK_DEADLINE_S: Final = 2.0
SLOW_DEADLINE_S: Final = 5.0

WINDOW_S: Final = 3.0
STALE_AFTER_S: Final = 5.0
STALE_AFTER_READINGS: Final = 3
"""A signal is stale when so many readings in a row are missing, and never before ``STALE_AFTER_S``."""

_LATENCIES: Final = (SignalKind.READ_LATENCY, SignalKind.COMMIT_LATENCY)
_ON_BOTH_SIDES: Final = (SignalKind.READ_LATENCY, SignalKind.ACTIVE_SESSIONS, SignalKind.LOCK_WAITS)
"""What is watched on the source, too, where that is another database.  The rest is about writing: the target."""

_EVERY_S: Final = {SignalKind.SQL: 2.0, SignalKind.PROMETHEUS: 5.0, SignalKind.HTTP: 2.0}
"""How often signals from elsewhere are asked for, unless their spec says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One database of the job, and the table there whose rows somebody else reads."""

    database: Database
    table: TableName
    key: tuple[KeyColumn, ...]
    random_key: Callable[[], KeyValue | None]  # a place anywhere in the key space, as the source spells keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is to be watched for one job.  ``target`` is None where source and target are one database.

    ``standbys``: names of the standbys that an earlier watch of the job knew: one that is away now is missed.
    """

    job: str
    signals: tuple[SignalSpec, ...]
    source: Place
    target: Place | None
    written: TableName  # the table that the job writes, on the target
    standbys: frozenset[str] = frozenset()

    @property
    def where_written(self) -> Place:
        """The target, or the only database there is."""
        return self.target if self.target is not None else self.source


@dataclass(frozen=True, slots=True)
class Built:
    """All that a watcher runs.  ``wal`` is among the probes, whether or not the spec has it for a signal; ``lag`` is
    where the spec has it.
    """

    probes: tuple[Probe, ...]
    policies: tuple[SignalPolicy, ...]
    presences: tuple[Presence, ...]
    wal: WalRate
    lag: ReplicationLag | None = None


def build(
    watched: Watched,
    *,
    clock: Clock,
    rng: random.Random,
    on_cancel: Callable[[str], None],
    rows_committed: Callable[[], float],
) -> Built:
    """Make the probes; none of them connects before it is asked."""
    maker = _Maker(watched, clock, rng, on_cancel, rows_committed)
    made = [probe for signal in watched.signals for probe in maker.probes(signal)]
    policies = tuple(probe.policy for probe in made)
    wal = next((probe for probe in made if isinstance(probe, WalRate)), None)
    if wal is None:  # what our own rows cost is needed for a limit of WAL, which an operator may give at any time
        wal = maker.wal(SignalPolicy(name=SignalKind.WAL_RATE.value, unit=Unit.BYTES_PER_S))
        made.append(wal)
    places = (watched.source,) if watched.target is None else (watched.source, watched.target)
    presences = tuple(Presence(maker.quick(place), clock) for place in places)
    lag = next((probe for probe in made if isinstance(probe, ReplicationLag)), None)
    return Built(tuple(made), policies, presences, wal, lag)


def policy_of(signal: SignalSpec, name: str, every_s: float) -> SignalPolicy:
    """What the law shall make of a signal that is asked for every ``every_s``."""
    latency = signal.kind in _LATENCIES
    only_steers = signal.maximum is None
    if signal.ignore_failure:
        on_failure = OnFailure.IGNORE
    else:
        on_failure = OnFailure.FREEZE if latency and only_steers else OnFailure.HOLD
    if latency:
        statistic = Statistic.P90
    elif signal.kind is SignalKind.ACTIVE_SESSIONS or (signal.kind in _EVERY_S and only_steers):
        statistic = Statistic.MEDIAN
    else:
        statistic = Statistic.LAST
    return SignalPolicy(
        name=name,
        unit=Unit(signal.unit.value),
        target=signal.target,
        learns=latency and signal.target is None,
        maximum=signal.maximum,
        foreground=latency,
        accumulates=signal.kind in (SignalKind.REPLICATION_LAG, SignalKind.SLOT_RETENTION),
        statistic=statistic,
        window_s=max(WINDOW_S, every_s),
        stale_after_s=max(STALE_AFTER_S, STALE_AFTER_READINGS * every_s),
        on_failure=on_failure,
    )


class _Maker:
    """Makes probes, and the sessions that they share."""

    def __init__(
        self,
        watched: Watched,
        clock: Clock,
        rng: random.Random,
        on_cancel: Callable[[str], None],
        rows_committed: Callable[[], float],
    ) -> None:
        self._watched = watched
        self._clock = clock
        self._rng = rng
        self._on_cancel = on_cancel
        self._rows_committed = rows_committed
        self._sessions: dict[tuple[int, str], Session] = {}

    def probes(self, signal: SignalSpec) -> list[Probe]:
        """The probes of one signal: one, or one for each side."""
        if signal.kind in _EVERY_S:
            return [self._from_elsewhere(signal)]
        return [self._probe(signal, name, place) for name, place in self._places(signal)]

    def quick(self, place: Place) -> Session:
        """For questions that are answered from memory."""
        return self._shared(place, "watch", QUICK_DEADLINE_S)

    def slow(self, place: Place) -> Session:
        """For questions that read directories or statistics of many tables."""
        return self._shared(place, "watch slowly", SLOW_DEADLINE_S)

    def wal(self, policy: SignalPolicy) -> WalRate:
        """The split of WAL, on the target."""
        session = self.quick(self._watched.where_written)
        return WalRate(policy, session, self._watched.job, self._rows_committed, self._clock)

    def _shared(self, place: Place, purpose: str, deadline_s: float) -> Session:
        key = (id(place), purpose)
        if key not in self._sessions:
            self._sessions[key] = Session(place.database, purpose, clock=self._clock, deadline_s=deadline_s)
        return self._sessions[key]

    def _places(self, signal: SignalSpec) -> Sequence[tuple[str, Place]]:
        """Where a signal is watched, and what it is called there."""
        watched = self._watched
        if watched.target is None:
            return [(signal.name, watched.source)]
        on_target = (at_side(signal.name, Side.TARGET), watched.target)
        if signal.kind not in _ON_BOTH_SIDES:
            return [on_target]
        return [(at_side(signal.name, Side.SOURCE), watched.source), on_target]

    def _probe(self, signal: SignalSpec, name: str, place: Place) -> Probe:
        def policy(every_s: float) -> SignalPolicy:
            return policy_of(signal, name, every_s)

        watched, clock = self._watched, self._clock
        soon, slowly = policy(server.SOON_S), policy(server.SLOWLY_S)
        match signal.kind:
            case SignalKind.READ_LATENCY:
                shape = (place.table, place.key, place.random_key, clock)
                if signal.query is not None and place is watched.source:
                    return QueryProbe(soon, place.database, signal.query, *shape)
                return ReadProbe(soon, place.database, *shape)
            case SignalKind.COMMIT_LATENCY:
                return CommitProbe(soon, place.database, self._rng.randrange(HEARTBEAT_ROWS), clock)
            case SignalKind.REPLICATION_LAG:
                return ReplicationLag(soon, self.quick(place), clock, watched.standbys)
            case SignalKind.LOCK_WAITS:
                return LockWaits(soon, self.quick(place), watched.job, self._on_cancel)
            case SignalKind.WAL_RATE:
                return self.wal(soon)
            case SignalKind.ACTIVE_SESSIONS:
                return server.ServerProbe(soon, self.quick(place), server.ACTIVE_SESSIONS)
            case SignalKind.SLOT_RETENTION:
                return server.ServerProbe(soon, self.quick(place), server.SLOT_RETENTION)
            case SignalKind.AUTOVACUUM:
                return server.ServerProbe(soon, self.quick(place), server.autovacuum(watched.written))
            case SignalKind.VACUUM_DEBT:
                return server.ServerProbe(slowly, self.slow(place), server.vacuum_debt(watched.written))
            case SignalKind.WAL_ARCHIVE:
                return server.ServerProbe(slowly, self.slow(place), server.WAL_ARCHIVE)
            case SignalKind.XID_AGE:
                return server.ServerProbe(slowly, self.slow(place), server.XID_AGE)
            case _:
                raise ValueError(f"{signal.kind} is not asked of a server")

    def _from_elsewhere(self, signal: SignalSpec) -> Probe:
        every_s = signal.every_s or _EVERY_S[signal.kind]
        policy = policy_of(signal, signal.name, every_s)
        query, url = signal.query or "", signal.url or ""
        match signal.kind:
            case SignalKind.SQL:
                place = self._watched.where_written if signal.side is Side.TARGET else self._watched.source
                return SqlProbe(policy, place.database, query, every_s, self._clock)
            case SignalKind.PROMETHEUS:
                return PrometheusProbe(policy, url, query, every_s)
            case _:
                return HttpProbe(policy, url, every_s)
