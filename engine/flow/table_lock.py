"""Changing a table that others write, without making them wait.

A change of a table takes a lock that conflicts with every writer (or with every reader, too), and whoever comes after
us queues behind us while we queue for it.  So nobody who holds the table for long is ever queued behind: we look first,
wait for old transactions without standing in line, stand in line for a moment only (``QUEUE_S``), and do so again and
again until there is no patience left.  Each attempt is one transaction: all of it happens, or nothing.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from engine.clock import Clock, jittered
from engine.db import Connection
from engine.db.failures import classify
from engine.errors import Busy

QUEUE_S: Final = 0.15
"""How long we stand in line for a table; its writers wait as long behind us."""
WHOLE_QUEUE_S: Final = 0.5  # for a partitioned table, which is locked part by part
OLD_S: Final = 1.0
"""Who has been in his transaction for so long is not queued behind: he may stay."""
BETWEEN_ATTEMPTS_S: Final = 0.25
_STATEMENT_S: Final = 60.0
_LOCK_CLASS: Final = 0x62666477  # "bfdw": of the advisory locks that let one at a time make a change
_NAMED: Final = 3  # so many of those who are in the way

_PASSING: Final = frozenset({"55P03", "57014", "40P01", "40001", "XX000"})
"""A lock that was not to be had, a deadlock, DDL beside us: nothing happened, and it may succeed the next time."""

# What conflicts with SHARE ROW EXCLUSIVE; ACCESS EXCLUSIVE conflicts with all.
_WRITERS: Final = (
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
_READERS: Final = ("AccessShareLock", "RowShareLock")

Tell = Callable[[str], None]
Attempt = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try, who hears whom we wait for (once per change of that), and by which clock."""

    patience_s: float
    tell: Tell
    clock: Clock
    rng: random.Random


@dataclass(frozen=True, slots=True)
class _Holder:
    """Somebody who holds a lock that is in our way."""

    id: str
    who: str
    age_s: float | None  # None: we may not know


_HOLDERS: Final = """
WITH tree AS (
  SELECT unnest($1::int8[])::oid AS relid
  UNION
  SELECT p.relid::oid FROM unnest($1::int8[]) given CROSS JOIN LATERAL
         pg_catalog.pg_partition_tree(given::oid::regclass) p
)
SELECT DISTINCT l.virtualtransaction AS id,
       CASE WHEN l.pid IS NULL THEN 'prepared transaction ' || x.gid
            ELSE concat_ws(' ', 'pid', l.pid, coalesce(nullif(a.application_name, ''), a.usename, a.backend_type))
            END AS who,
       extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, x.prepared))::float8 AS age_s
  FROM pg_catalog.pg_locks l
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
  -- A prepared transaction has no process; its own lock on its id tells which one it is.
  LEFT JOIN pg_catalog.pg_locks own ON l.pid IS NULL AND own.pid IS NULL AND own.locktype = 'transactionid'
                                   AND own.virtualtransaction = l.virtualtransaction
  LEFT JOIN pg_catalog.pg_prepared_xacts x ON x.transaction = own.transactionid
 WHERE l.locktype = 'relation' AND l.granted AND l.relation IN (SELECT relid FROM tree)
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
   AND l.mode = ANY ($2::text[]) AND l.pid IS DISTINCT FROM pg_backend_pid()
 ORDER BY age_s DESC NULLS LAST
"""


async def change_table(
    connection: Connection, name: str, relations: Sequence[int], attempt: Attempt, *, exclusive: bool, by: Patience
) -> bool:
    """Run ``attempt`` in a transaction until it succeeds, and give its answer.

    ``name``: of two who change the same thing one waits for the other.  ``relations``: OIDs of the tables that the
    attempt locks by ``take``; ``exclusive``: against readers, too.  Raises ``Busy`` when patience is over, and whatever
    the attempt raises that time cannot mend; nothing has changed then.
    """
    modes = [*_WRITERS, *(_READERS if exclusive else ())]
    deadline = by.clock.now() + by.patience_s
    first_seen: dict[str, float] = {}
    told = ""
    while True:
        holders = await _holders(connection, relations, modes)
        now = by.clock.now()
        first_seen = {holder.id: first_seen.get(holder.id, now) for holder in holders}
        old = [h for h in holders if (now - first_seen[h.id] if h.age_s is None else h.age_s) > OLD_S]
        if not old:
            changed = await _attempt(connection, name, attempt)
            if changed is not None:
                return changed
        waits_for = _named(old)
        if by.clock.now() >= deadline:
            raise Busy(
                f"the table was not to be had for {by.patience_s:g} s: {waits_for}; nothing was changed",
                hint="try again when that has ended, or with more --patience",
            )
        whom = ", ".join(holder.who for holder in old)
        if old and whom != told:
            told = whom
            by.tell(f"waiting: {waits_for}")
        await by.clock.sleep(min(jittered(BETWEEN_ATTEMPTS_S, by.rng), max(0.0, deadline - by.clock.now())))


async def take(connection: Connection, lock: str) -> None:
    """Run a LOCK TABLE statement inside an attempt, for as long as one may stand in line."""
    await connection.execute(f"SET LOCAL statement_timeout = {_milliseconds(WHOLE_QUEUE_S)}")
    await connection.execute(lock)
    await connection.execute(f"SET LOCAL statement_timeout = {_milliseconds(_STATEMENT_S)}")


async def _holders(connection: Connection, relations: Sequence[int], modes: Sequence[str]) -> list[_Holder]:
    if not relations:
        return []
    rows = await connection.fetch(_HOLDERS, list(relations), list(modes))
    return [_Holder(row["id"], row["who"] or "somebody", row["age_s"]) for row in rows]


def _named(holders: Sequence[_Holder]) -> str:
    if not holders:
        return "one short transaction after the other works in it"
    names = [h.who + (f", {h.age_s:.0f} s in a transaction" if h.age_s is not None else "") for h in holders[:_NAMED]]
    more = f" and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
    return f"{'; '.join(names)}{more} {'holds' if len(holders) == 1 else 'hold'} it"


async def _attempt(connection: Connection, name: str, change: Attempt) -> bool | None:
    """One try, in one transaction; None when it has to be tried again."""
    await connection.execute("BEGIN")
    try:
        await connection.execute(f"SET LOCAL lock_timeout = {_milliseconds(QUEUE_S)}")
        await connection.fetchval("SELECT pg_advisory_xact_lock($1::int4, hashtext($2))", _LOCK_CLASS, name)
        changed = await change()
        await connection.execute("COMMIT")
    except BaseException as error:
        await connection.roll_back()
        if isinstance(error, Exception) and classify(error).sqlstate in _PASSING and not connection.is_closed:
            return None
        raise
    return changed


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
