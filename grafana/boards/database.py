"""*The database beside it*: what everybody else feels while a job runs, and what the job costs its servers."""

from __future__ import annotations

from typing import Any, Final

from grafana.boards.board import (
    BAD,
    BYTES,
    BYTES_PER_S,
    COUNT,
    GOOD,
    ROWS,
    SECONDS,
    SHARE,
    WARN,
    Board,
    Query,
    job_variable,
    lines,
    link,
    number,
    side_variable,
    words,
)
from grafana.boards.overview import DATABASE_UID, JOB_UID, UID
from grafana.boards.queries import Scope

SCOPE: Final = Scope('job="$job"', 'side=~"$side"')
OLD_TRANSACTION_S: Final = 300
"""A transaction so old keeps dead rows alive that a job in place needs the room of."""

RECENT: Final = "10m"


def board() -> Board:
    """The dashboard."""
    made = Board(
        uid=DATABASE_UID,
        title="Backfill / The database beside it",
        description="What everybody else feels while a job runs, and what the job costs its servers. Read by the "
        "process that paces the job, while it does: a paused or ended job leaves gaps.",
        scope=SCOPE,
        variables=[job_variable(multi=False), side_variable()],
        links=[link("Overview of jobs", UID, keep_job=False), link("One job", JOB_UID)],
    )
    _now(made)
    made.row("What the foreground feels")
    _foreground(made)
    made.row("What the server writes")
    _writes(made)
    made.row("The job's table")
    _table(made)
    made.row("Sessions and locks")
    _sessions(made)
    return made


def _now(made: Board) -> None:
    made.add(
        number(
            SCOPE.gauge("database_up", "side"),
            COUNT,
            mappings=[words(_0=("not read", BAD), _1=("read", GOOD))],
            steps=((None, BAD), (1, GOOD)),
            none="nobody reads",
        ),
        "Readings",
        "Whether the last look at each server succeeded. nobody reads: no process paces this job now, so this page "
        "stands still.",
        width=4,
        height=4,
    )
    made.add(
        number(
            f"max({SCOPE.gauge('database_lock_waiters', 'side')})",
            COUNT,
            decimals=0,
            steps=((None, GOOD), (1, WARN), (5, BAD)),
        ),
        "Waiting for locks",
        "Sessions that wait for a lock, whoever holds it. Some at once, for long: see who blocks in "
        "`backfill status JOB`, and DDL that queues behind a transaction.",
        width=4,
        height=4,
    )
    made.add(
        number(
            f"max({SCOPE.gauge('database_longest_lock_wait_seconds', 'side')})",
            SECONDS,
            decimals=1,
            steps=((None, GOOD), (1, WARN), (10, BAD)),
        ),
        "Longest wait for a lock",
        "Beyond a second the job gives way if the lock is its own. Longer: it is somebody else's.",
        width=4,
        height=4,
    )
    made.add(
        number(
            f"max({SCOPE.gauge('database_oldest_transaction_seconds', 'side')})",
            SECONDS,
            decimals=1,
            steps=((None, GOOD), (OLD_TRANSACTION_S, WARN), (3600, BAD)),
        ),
        "Oldest transaction",
        "Nothing that died since it began can be vacuumed away. End reports and forgotten sessions before a large "
        "job in place.",
        width=4,
        height=4,
    )
    made.add(
        number(
            f"max({SCOPE.gauge('database_replication_lag_seconds', 'side')})",
            SECONDS,
            decimals=1,
            steps=((None, GOOD), (5, WARN), (30, BAD)),
            none="no standby",
        ),
        "Replication lag now",
        "Replay of the slowest standby. Growing: give the job a replication_lag signal with a target.",
        width=4,
        height=4,
    )
    dead, live = SCOPE.gauge("database_dead_rows", "side"), SCOPE.gauge("database_live_rows", "side")
    made.add(
        number(
            f"max({dead} / ({dead} + {live} > 0))", SHARE, decimals=1, steps=((None, GOOD), (0.2, WARN), (0.5, BAD))
        ),
        "Dead rows",
        "Share of dead rows in the job's table, by statistics. High and staying: autovacuum does not keep up, or "
        "an old transaction forbids it.",
        width=4,
        height=4,
    )


def _foreground(made: Board) -> None:
    made.add(
        _probes('signal=~"read_latency.*"'),
        "Read latency",
        "One indexed read as the application would do it, while the job runs. p90 at the target: the job is at its "
        "pace. p99 far above: checkpoints, vacuum, or somebody else.",
        width=8,
        height=8,
    )
    made.add(
        _probes('signal=~"commit_latency.*"'),
        "Commit latency",
        "One small commit. Rises with fsync, synchronous standbys and WAL; if it leads the pace, "
        "`backfill pace JOB --max-wal-bytes-per-s SIZE` helps more than fewer workers.",
        width=8,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.rate("database_transactions_total", "side", "outcome"), "{{side}} {{outcome}}"),
            unit="cps",
        ),
        "Transactions per second",
        "Of the whole database, the job's chunks and probes included. Committed falling while the job speeds up: the "
        "foreground suffers though its probes do not show it. Rolled back rising: see retries of the job.",
        width=8,
        height=8,
    )


def _probes(where: str) -> Any:
    return lines(
        Query(SCOPE.quantile(0.5, "probe_seconds", "signal", where=where), "{{signal}} p50"),
        Query(SCOPE.quantile(0.9, "probe_seconds", "signal", where=where), "{{signal}} p90"),
        Query(SCOPE.quantile(0.99, "probe_seconds", "signal", where=where), "{{signal}} p99"),
        Query(SCOPE.gauge("signal_target", "signal", where=where), "{{signal}} target"),
        unit=SECONDS,
        dashed=" target$",
    )


def _writes(made: Board) -> None:
    made.add(
        lines(
            Query(SCOPE.rate("database_wal_bytes_total", "side"), "{{side}} server"),
            Query(SCOPE.rate("wal_bytes_total", "job"), "this job"),
            unit=BYTES_PER_S,
            colours={"this job": WARN},
        ),
        "WAL per second",
        "The whole server's, and this job's part (exact from PostgreSQL 18 on). What archiving and standbys cannot "
        "follow fills the disk: limit it with `backfill pace JOB --max-wal-bytes-per-s SIZE`.",
        width=8,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.rate("database_read_bytes_total", "side"), "{{side}} read"),
            Query(SCOPE.rate("database_written_bytes_total", "side"), "{{side}} written"),
            unit=BYTES_PER_S,
        ),
        "I/O per second",
        "Of the whole server, from pg_stat_io (PostgreSQL 16 on). Reads at the disk's limit: the job pages through "
        "what no cache holds; fewer workers, or order: physical.",
        width=8,
        height=8,
    )
    checkpoints = SCOPE.increase("database_checkpoints_total", "side", "reason", window=RECENT)
    made.add(
        lines(
            Query(f"round({checkpoints})", "{{side}} {{reason}}"),
            unit=COUNT,
        ),
        "Checkpoints within ten minutes",
        "requested: WAL filled max_wal_size before its time, and each checkpoint makes the next writes dearer. Raise "
        "max_wal_size, or limit the job's WAL.",
        width=8,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.gauge("database_replication_lag_seconds", "side"), "{{side}}"),
            unit=SECONDS,
        ),
        "Replication lag",
        "How old the slowest standby's data is. Growing while the job runs: give it a replication_lag signal, or lower "
        "its limit.",
        width=8,
        height=8,
    )
    made.add(
        lines(Query(SCOPE.gauge("database_replication_lag_bytes", "side"), "{{side}}"), unit=BYTES),
        "Replication lag in bytes",
        "WAL that the slowest standby has not replayed: what must fit on disk, and be caught up after the job.",
        width=8,
        height=8,
    )
    made.add(
        lines(Query(SCOPE.gauge("database_standbys", "side"), "{{side}}"), unit=COUNT),
        "Standbys connected",
        "One fewer than usual: a standby has fallen out, and its slot keeps WAL on this disk. Pause the job before "
        "it fills.",
        width=8,
        height=8,
    )


def _table(made: Board) -> None:
    made.add(
        lines(
            Query(SCOPE.gauge("database_table_bytes", "side"), "{{side}} table"),
            Query(SCOPE.gauge("database_index_bytes", "side"), "{{side}} indexes"),
            unit=BYTES,
            stacked=True,
        ),
        "Size of table and indexes",
        "Files on disk. A job in place may double them; bloat.max_growth keeps that in bounds. Watch it against "
        "the free space of the disk, which PostgreSQL does not tell.",
        width=8,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.gauge("database_dead_rows", "side"), "{{side}} dead"),
            Query(SCOPE.gauge("database_live_rows", "side"), "{{side}} live"),
            unit=ROWS,
            dashed=" live$",
        ),
        "Dead and live rows",
        "By the server's statistics. Dead rows that only grow: autovacuum is off, too slow, or kept from its work "
        "by the oldest transaction.",
        width=8,
        height=8,
    )
    made.add(
        lines(Query(SCOPE.gauge("database_vacuums_running", "side"), "{{side}}"), unit=COUNT),
        "VACUUMs at work on it",
        "The job's own, autovacuum's and yours. They raise latency, and the job gives way to them. None for hours, "
        "with dead rows growing: ask why.",
        width=8,
        height=8,
    )


def _sessions(made: Board) -> None:
    made.add(
        lines(
            Query(SCOPE.gauge("database_sessions", "side", "state"), "{{side}} {{state}}"),
            unit=COUNT,
            stacked=True,
        ),
        "Sessions of others",
        "Sessions of this program are not counted. idle_in_transaction is what keeps locks and dead rows: find those "
        "applications. active near the number of processors: the server is busy without us.",
        width=8,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.gauge("database_lock_waiters", "side"), "{{side}}"),
            unit=COUNT,
        ),
        "Sessions waiting for a lock",
        "A queue behind DDL or a forgotten transaction grows like a wall. The job cancels its chunk when it is the "
        "one in the way.",
        width=8,
        height=8,
    )
    made.add(
        lines(
            Query(SCOPE.gauge("database_longest_lock_wait_seconds", "side"), "{{side}} longest wait"),
            Query(SCOPE.gauge("database_oldest_transaction_seconds", "side"), "{{side}} oldest transaction"),
            unit=SECONDS,
        ),
        "Longest wait and oldest transaction",
        "Growing together, second by second: one session blocks, and is to be ended. An old transaction alone "
        "keeps dead rows from being vacuumed.",
        width=8,
        height=8,
    )
