"""What stands in the way of pacing: rights, signals about nothing, hours, a deadline, dead rows that must stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engine.model import Finding, Side
from engine.plan.preflight.catalogue import Code, finding
from engine.plan.preflight.facts import PacingFacts, PreflightFacts, ServerPacing, in_sql
from engine.spec import SignalKind
from engine.spec.windows import spoken_wait

MAINTAIN_VERSION_NUM: Final = 170000
"""From here on VACUUM asks for MAINTAIN on the table; before, only its owner may."""

_LATENCIES: Final = frozenset({SignalKind.READ_LATENCY, SignalKind.COMMIT_LATENCY})
_READS_ALL_STATS: Final = frozenset({SignalKind.REPLICATION_LAG, SignalKind.ACTIVE_SESSIONS, SignalKind.AUTOVACUUM})
_ALL_STATS: Final = "pg_read_all_stats"
_MONITOR: Final = "pg_monitor"


def role_for(kind: SignalKind) -> str | None:
    """The predefined role that somebody who is not a superuser needs for a signal of that kind; None: no role."""
    if kind is SignalKind.WAL_ARCHIVE:
        return _MONITOR
    return _ALL_STATS if kind in _READS_ALL_STATS else None


def check_pacing(facts: PreflightFacts) -> Iterator[Finding]:
    """Everything about signals, presence, vacuum, windows and the deadline; nothing when nobody looked."""
    pacing = facts.pacing
    if pacing is None:
        return
    for side, server in pacing.servers.items():
        yield from _rights(facts, side, server)
    yield from _subjects(facts, _written(pacing))
    yield from _presence(facts, pacing)
    yield from _vacuum(facts, _written(pacing))
    yield from _hours(facts, pacing)


def _written(pacing: PacingFacts) -> ServerPacing:
    """The server of the table that the job writes."""
    return pacing.servers.get(Side.TARGET) or pacing.servers[Side.SOURCE]


def _user(facts: PreflightFacts, side: Side) -> str:
    """Who watches that side."""
    server = facts.target_server if side is Side.TARGET and facts.target_server is not None else facts.source_server
    return server.user


def _rights(facts: PreflightFacts, side: Side, server: ServerPacing) -> Iterator[Finding]:
    """Signals that the spec names and the role may not read.  Defaults need no right beyond those of the job."""
    is_written = facts.pacing is not None and server is _written(facts.pacing)
    missing: dict[str, list[str]] = {}
    for signal in facts.spec.pace.signals:
        # Standbys, vacuum and the archive are watched where the job writes, sessions on both sides.
        if signal.off or not (is_written or signal.kind is SignalKind.ACTIVE_SESSIONS):
            continue
        role = role_for(signal.kind)
        allowed = server.can_read_archive if role == _MONITOR else server.can_read_stats
        if role is not None and not allowed:
            missing.setdefault(role, []).append(signal.name)
    for role, names in missing.items():
        user = _user(facts, side)
        yield finding(
            Code.SIGNAL_RIGHTS,
            f"{user} may not read what {', '.join(names)} need{'s' if len(names) == 1 else ''} on the {side} server,"
            " and a signal that cannot be read holds the job",
            f"GRANT {role} TO {user}, or turn it off under pace.signals",
        )


def _subjects(facts: PreflightFacts, server: ServerPacing) -> Iterator[Finding]:
    """Signals that the spec names and that there is nothing to be said about."""
    absent = {
        SignalKind.REPLICATION_LAG: "no standby is connected" if not server.standbys else "",
        SignalKind.SLOT_RETENTION: "there is no replication slot" if not server.slots else "",
        SignalKind.WAL_ARCHIVE: "archive_mode is off" if server.archive_mode == "off" else "",
        SignalKind.AUTOVACUUM: "autovacuum is switched off" if not server.autovacuum else "",
    }
    for signal in facts.spec.pace.signals:
        # Who may not read the statistics sees no standby where there is one, which is another finding.
        if signal.off or (role_for(signal.kind) == _ALL_STATS and not server.can_read_stats):
            continue
        if why := absent.get(signal.kind):
            yield finding(
                Code.SIGNAL_WITHOUT_SUBJECT,
                f"{signal.name} is to be watched, and {why}: it will never hold the job back",
                "see that the job is connected to the right server, or take it out of pace.signals",
            )


def _presence(facts: PreflightFacts, pacing: PacingFacts) -> Iterator[Finding]:
    if not any(signal.kind in _LATENCIES for signal in facts.spec.pace.effective_signals()):
        return
    for side, server in pacing.servers.items():
        if not server.can_read_stats:
            user = _user(facts, side)
            yield finding(
                Code.PRESENCE_UNSEEN,
                f"{user} cannot see whether others are at work on the {side} server: the job paces itself as if"
                " somebody always were",
                f"GRANT {_ALL_STATS} TO {user}, and it goes at full speed while nobody is there",
            )


def _vacuum(facts: PreflightFacts, server: ServerPacing) -> Iterator[Finding]:
    growth = facts.spec.bloat.max_growth
    if growth is None or not facts.in_place:
        return
    table = in_sql(facts.source)
    if not server.can_vacuum:
        user = facts.spec.role or facts.source_server.user
        maintain = facts.source_server.version_num >= MAINTAIN_VERSION_NUM
        yield finding(
            Code.VACUUM_NOT_ALLOWED,
            f"{user} may not vacuum {facts.source.name}, and bloat.max_growth is kept by vacuuming in between",
            f"GRANT MAINTAIN ON {table} TO {user}, or leave bloat out"
            if maintain
            else f"run as the owner of {table}, which PostgreSQL before 17 asks for, or leave bloat out",
        )
    if server.oldest_xmin_holder is not None:
        yield finding(
            Code.VACUUM_HELD_BACK,
            f"{server.oldest_xmin_holder} holds an old snapshot: no row that dies from then on can be vacuumed away,"
            f" and the job will wait at {growth:.0%} growth",
            "end it, or wait for its end",
        )


def _hours(facts: PreflightFacts, pacing: PacingFacts) -> Iterator[Finding]:
    pace = facts.spec.pace
    windows, now, deadline = pace.open_windows, pacing.now, pace.finish_by
    if not windows.is_open(now):
        yield finding(
            Code.WINDOW_CLOSED,
            f"nothing is moved now: {windows.reason(now)}",
            "nothing needs doing: a job that runs waits, and goes on by itself",
        )
    if deadline is None:
        return
    if deadline <= now:
        yield finding(
            Code.DEADLINE_UNREACHABLE,
            f"finish_by {deadline.isoformat(sep=' ')} has passed",
            "set a later one, or leave it out",
        )
        return
    limit = pace.max_rows_per_s
    needed_s = pacing.rows / limit if pacing.rows is not None and limit is not None else 0.0
    open_s = windows.open_s(now, deadline, enough_s=needed_s or 1.0)
    if open_s == 0.0:
        yield finding(
            Code.DEADLINE_UNREACHABLE,
            f"no window opens before finish_by {deadline.isoformat(sep=' ')}: {windows.reason(now)}",
            "set a later one, or widen pace.windows",
        )
    elif needed_s > open_s:
        assert pacing.rows is not None
        assert limit is not None
        yield finding(
            Code.DEADLINE_UNREACHABLE,
            f"{pacing.rows:,.0f} rows at max_rows_per_s {limit:,.0f} take {spoken_wait(needed_s)}, and"
            f" {spoken_wait(open_s)} are left to work in until finish_by {deadline.isoformat(sep=' ')}",
            f"raise max_rows_per_s above {pacing.rows / open_s:,.0f}, widen pace.windows, or set a later finish_by",
        )
