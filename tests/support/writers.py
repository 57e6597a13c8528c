"""The application of a stress run: writes through dual-write, close to the job's cursors, all the while.

Each client does transactions of one to four changes (insert, update, delete, key change), source first or target first,
READ COMMITTED or REPEATABLE READ, one in eight rolled back.  No two clients touch the same keys: what is tested is the
job against the application, not the application against itself.

A **race** is a key that a cursor passed while the transaction that wrote it was open: read the cursors, begin, write,
commit, read the cursors again.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import asyncpg

STRIDE: Final = 10
"""Rows are made with every tenth id; the others are for inserts and key changes."""

NEAR_CHUNKS: Final = 2.0
AIMED_NEAR: Final = 0.6
ROLLED_BACK: Final = 1 / 8
PAUSE_S: Final = 0.004
HELD_OPEN: Final = 0.4
LONGEST_HOLD_S: Final = 0.15  # as long as a chunk: so that chunks begin and end inside transactions
LOCK_TIMEOUT_MS: Final = 500
BEATEN: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.UniqueViolationError,
)
"""What an application expects of concurrency, and answers with another try."""

ISOLATION: Final = {"rc": "READ COMMITTED", "rr": "REPEATABLE READ"}

_CURSORS = """
SELECT s.id, s.lo[1]::bigint AS lo, s.hi[1]::bigint AS hi, s.cursor[1]::bigint AS cursor,
       s.scanned::float8 / greatest(s.chunks, 1) AS chunk_rows
  FROM backfill.span s JOIN backfill.job j ON j.id = s.job_id
 WHERE j.name = $1 AND s.phase = 'move' AND j.phase = 'move'
"""


class Undo(Exception):
    """The application changed its mind: the row was not there."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one row.  ``to``: its new id, for a key change."""

    kind: str  # insert update delete rekey
    id: int
    n: int
    note: str
    to: int | None = None

    @property
    def keys(self) -> tuple[int, ...]:
        """Every id that it touches."""
        return (self.id,) if self.to is None else (self.id, self.to)


class Application(Protocol):
    """How an application writes to both tables."""

    async def begin(self, isolation: str, first: str) -> None:
        """Begin a transaction; ``first``: which table is written first, source or target."""

    async def apply(self, change: Change) -> None:
        """Write a change to both tables."""

    async def end(self, *, commit: bool) -> None:
        """Commit or roll back."""


class Triggers:
    """One database: triggers on the source write the target (or, in place, finish the row)."""

    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection

    async def begin(self, isolation: str, first: str) -> None:
        await self._connection.execute(f"BEGIN ISOLATION LEVEL {isolation}; SET LOCAL stress.first = '{first}'")

    async def apply(self, change: Change) -> None:
        await write_source(self._connection, change)

    async def end(self, *, commit: bool) -> None:
        await self._connection.execute("COMMIT" if commit else "ROLLBACK")


class TwoConnections:
    """Two databases: the application writes to both and commits both while it holds both."""

    def __init__(self, source: asyncpg.Connection[Any], target: asyncpg.Connection[Any]) -> None:
        self._source = source
        self._target = target
        self._first = "source"

    async def begin(self, isolation: str, first: str) -> None:
        self._first = first
        for connection in self._order():
            await connection.execute(f"BEGIN ISOLATION LEVEL {isolation}")

    async def apply(self, change: Change) -> None:
        for connection in self._order():
            if connection is self._target:
                await write_target(connection, change)
            elif not await write_source(connection, change) and change.kind != "delete":
                raise Undo

    async def end(self, *, commit: bool) -> None:
        # Source first commits the target while it holds the source, and the other way round.
        for connection in reversed(self._order()):
            await connection.execute("COMMIT" if commit else "ROLLBACK")

    def _order(self) -> tuple[asyncpg.Connection[Any], asyncpg.Connection[Any]]:
        pair = (self._source, self._target)
        return pair if self._first == "source" else (pair[1], pair[0])


async def write_source(connection: asyncpg.Connection[Any], change: Change) -> bool:
    """Change ``src``; False when the row was not there."""
    match change.kind:
        case "insert":
            tag = await connection.execute(
                "INSERT INTO src (id, n, note) VALUES ($1, $2, $3)", change.id, change.n, change.note
            )
        case "update":
            tag = await connection.execute(
                "UPDATE src SET n = $2, note = $3 WHERE id = $1", change.id, change.n, change.note
            )
        case "rekey":
            tag = await connection.execute(
                "UPDATE src SET id = $4, n = $2, note = $3 WHERE id = $1", change.id, change.n, change.note, change.to
            )
        case _:
            tag = await connection.execute("DELETE FROM src WHERE id = $1", change.id)
    return not tag.endswith(" 0")


async def write_target(connection: asyncpg.Connection[Any], change: Change) -> None:
    """The same in ``dst``, as an application does it that cannot know whether the row has arrived yet."""
    if change.kind in ("delete", "rekey"):
        await connection.execute("DELETE FROM dst WHERE id = $1", change.id)
    if change.kind != "delete":
        await connection.execute(
            "INSERT INTO dst (id, doubled, note) VALUES ($1, $2, $3)"
            " ON CONFLICT (id) DO UPDATE SET doubled = excluded.doubled, note = excluded.note",
            change.id if change.to is None else change.to,
            change.n * 2,
            change.note,
        )


class Client:
    """One session of the application."""

    def __init__(self, order: Mapping[str, Any], number: int, application: Application, watch: Watch) -> None:
        self.counts: Counter[str] = Counter()
        self._number = number
        self._of = order["of"]
        self._top = order["rows"]
        self._application = application
        self._watch = watch
        self._rng = random.Random(order["seed"] * 1000 + number)

    async def run(self, stop: asyncio.Event) -> None:
        """Transactions, one after another, until told to stop."""
        while not stop.is_set():
            isolation = self._rng.choice(("rc", "rr"))
            first = self._rng.choice(("source", "target"))
            before = await self._watch.cursors()
            changes = [self._change(before) for _ in range(self._rng.randint(1, 4))]
            self.counts["transactions"] += 1
            outcome = await self._transaction(isolation, first, changes)
            self.counts[outcome] += 1
            if outcome == "committed":
                self._note(changes, before, await self._watch.cursors(), f"{first} first, {isolation}")
            await asyncio.sleep(self._rng.expovariate(1 / PAUSE_S))

    async def _transaction(self, isolation: str, first: str, changes: list[Change]) -> str:
        await self._application.begin(ISOLATION[isolation], first)
        try:
            for change in changes:
                await self._application.apply(change)
                if self._rng.random() < HELD_OPEN:
                    await asyncio.sleep(self._rng.uniform(0, LONGEST_HOLD_S))
            commit = self._rng.random() >= ROLLED_BACK
            await self._application.end(commit=commit)
        except BEATEN:
            await self._application.end(commit=False)
            return "beaten"
        except Undo:
            await self._application.end(commit=False)
            return "undone"
        return "committed" if commit else "rolled back"

    def _change(self, cursors: Mapping[int, Cursor]) -> Change:
        kind = self._rng.choices(("insert", "update", "delete", "rekey"), (25, 40, 20, 15))[0]
        row = self._row(cursors)
        number, note = self._rng.randint(0, 9999), f"written {self._rng.random():.9f}"
        odd = row * STRIDE + self._rng.randint(1, STRIDE - 1)
        if kind == "insert":
            return Change(kind, odd, number, note)
        there = odd if self._rng.random() < 0.1 else row * STRIDE
        if kind == "rekey":
            to = self._row(cursors) * STRIDE + self._rng.randint(1, STRIDE - 1)
            return Change("rekey", there, number, note, to if to != there else to + (1 if to % STRIDE < 9 else -1))
        return Change(kind, there, number, note)

    def _row(self, cursors: Mapping[int, Cursor]) -> int:
        """A row of ours, near a cursor more often than not."""
        row = self._rng.randint(1, int(self._top * 1.02))
        running = [c for c in cursors.values() if not c.is_finished]
        if running and self._rng.random() < AIMED_NEAR:
            cursor = self._rng.choice(running)
            offset = self._rng.uniform(-0.2, 1.2) * cursor.chunk_ids
            row = max(1, int((cursor.at + offset) / STRIDE))
        return row - row % self._of + self._number

    def _note(
        self, changes: list[Change], before: Mapping[int, Cursor], after: Mapping[int, Cursor], variant: str
    ) -> None:
        self.counts[variant] += 1
        for change in changes:
            self.counts[change.kind] += 1
            for key in change.keys:
                self.counts["keys"] += any(not c.is_finished for c in before.values())
                self.counts["keys near"] += any(c.is_near(key) for c in before.values())
                passed = any(cursor.at < key <= after[span].at for span, cursor in before.items() if span in after)
                if passed:
                    self.counts["races"] += 1
                    self.counts[f"races: {variant}"] += 1


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a span stands."""

    at: int
    is_finished: bool
    chunk_ids: float

    def is_near(self, key: int) -> bool:
        """Within two chunks."""
        return not self.is_finished and abs(key - self.at) <= NEAR_CHUNKS * self.chunk_ids


class Watch:
    """Reads the cursors of the job."""

    def __init__(self, connection: asyncpg.Connection[Any], job: str) -> None:
        self._connection = connection
        self._job = job
        self._turn = asyncio.Lock()

    async def cursors(self) -> dict[int, Cursor]:
        """Span -> cursor; nothing before there is a job."""
        async with self._turn:
            try:
                rows = await self._connection.fetch(_CURSORS, self._job)
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                return {}
        return {
            row["id"]: Cursor(
                row["cursor"] if row["cursor"] is not None else 0,
                row["cursor"] == row["hi"],
                max(50.0, row["chunk_rows"]) * STRIDE,
            )
            for row in rows
        }


async def write(order: Mapping[str, Any]) -> int:
    """A writer process: ``clients`` clients until SIGTERM; then one line with what they did."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    source_dsn, target_dsn = order["source_dsn"], order["target_dsn"]
    settings = {"application_name": "application", "lock_timeout": str(LOCK_TIMEOUT_MS)}
    watch = Watch(await asyncpg.connect(target_dsn or source_dsn), order["job"])
    clients: list[Client] = []
    for n in range(order["clients"]):
        source = await asyncpg.connect(source_dsn, server_settings=settings)
        application: Application = Triggers(source)
        if target_dsn is not None:
            application = TwoConnections(source, await asyncpg.connect(target_dsn, server_settings=settings))
        clients.append(Client(order, order["number"] + n, application, watch))
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run(stop))
    total = sum((c.counts for c in clients), Counter())
    print(json.dumps({"event": "writer", "counts": dict(total)}), flush=True)
    return 0
