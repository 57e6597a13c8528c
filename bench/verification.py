"""Comparing two equal tables: ``python -m bench.verification [--between one two majors]``.

Ours is ``backfill verify`` of a finished job at default settings; the peer is reladiff, at every setting of it that
matters here; the limit is one hash over each side, both at once.  Every round runs every way once, in another order
each time.  Before the rounds each way is shown one changed value, and must find it: who looks at nothing is fast.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import asyncpg
import uvloop

from bench.ours import command, environment, run_command
from bench.report import Contender, Ratio, Report, Sample, Target, arguments_for, say, settle
from bench.stage import ORDERS_COLUMNS, Stage, check_equal

ROWS: Final = 3_000_000
SMOKE_ROWS: Final = 20_000
REPEAT: Final = 5
TARGET_RATIO: Final = 5.0
NO_TIMEOUT_S: Final = 3600.0
MISMATCH: Final = 6  # the exit code of a verification that found something

OURS: Final = "ours"
LIMIT: Final = "server limit"
HASH: Final = "SELECT bit_xor(hash_record_extended(t, 0)) FROM {table} AS t"

ARRANGEMENTS: Final = {
    "one": "verify, one database",
    "two": "verify, two databases",
    "majors": "verify, two servers, 16 and 18",
}

RELADIFF: Final = """
import json, sys, time
from reladiff import connect, JoinDiffer, HashDiffer, TableSegment
asked = json.loads(sys.argv[1])
began = time.perf_counter()
threads = asked["threads"]
databases = [connect(one, threads) for one in asked["databases"]]
if asked["databases"][0] == asked["databases"][1]:
    databases[1] = databases[0]
tables = [
    TableSegment(database, ("public", name), ("id",), extra_columns=tuple(asked["columns"]), case_sensitive=True)
    for database, name in zip(databases, asked["tables"])
]
differ = {"joindiff": JoinDiffer, "hashdiff": HashDiffer}[asked["algorithm"]](
    threaded=True, max_threadpool_size=threads * 2, **asked["settings"]
)
rows = set()
with differ.diff_tables(*tables) as found:
    for _, row in found:
        rows.add(row[0])
print(json.dumps({"seconds": time.perf_counter() - began, "rows": len(rows)}))
"""
"""Its command does the same, and imports more: this is the quicker of the two."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One setting of reladiff.  By default it cuts a table into 32 segments and uses one thread for each database."""

    algorithm: str
    threads: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """How reports call it."""
        chosen = [f"{name.removeprefix('bisection_')} {value}" for name, value in self.settings.items()]
        return ", ".join([f"reladiff {self.algorithm}", f"threads {self.threads}", *chosen])


HASHDIFFS: Final = (
    Peer("hashdiff", 1, {}),
    Peer("hashdiff", 2, {}),
    Peer("hashdiff", 4, {}),
    Peer("hashdiff", 2, {"bisection_factor": 8}),
    Peer("hashdiff", 4, {"bisection_factor": 8}),
    Peer("hashdiff", 4, {"bisection_factor": 128, "bisection_threshold": 32_768}),
)
"""Between equal tables its threshold, below which it fetches rows and compares them itself, changes nothing."""

JOINDIFFS: Final = (
    Peer("joindiff", 1, {}),
    Peer("joindiff", 2, {"validate_unique_key": False}),
)
"""Both sides in one query, so only within one database; what it does in threads beside it is to look for duplicates."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two tables."""

    stage: Stage
    database: str
    table: str

    @property
    def dsn(self) -> str:
        """The database it is in."""
        return self.stage.dsn(self.database)

    def sql(self, text: str) -> str:
        """Run SQL where it is."""
        return self.stage.sql(self.database, text)

    @property
    def for_psycopg(self) -> dict[str, Any]:
        """The same connection in the words of the peer's driver."""
        server = self.stage.server
        return {
            "driver": "postgresql",
            "host": str(server.socket_folder),
            "port": server.port,
            "user": "postgres",
            "database": self.database,
        }


@dataclass(frozen=True, slots=True)
class Way:
    """A contender: ``run`` gives its time, and how many rows it says are different."""

    name: str
    detail: str
    run: Callable[[], tuple[Sample, int]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rounds and report."""
    parser = arguments_for(str(__doc__), rows=ROWS, smoke_rows=SMOKE_ROWS, repeat=REPEAT)
    parser.add_argument("--between", nargs="+", choices=tuple(ARRANGEMENTS), default=tuple(ARRANGEMENTS))
    options = settle(parser, arguments)
    with ExitStack() as stack:
        stage = stack.enter_context(Stage(options.server, smoke=options.smoke))
        report = Report(
            "verification",
            f"Verifying {options.rows:,} rows",
            options.smoke,
            {
                "rows": options.rows,
                "repeat": options.repeat,
                "server": stage.settings,
                "ours": "the whole process of `backfill verify --json`, at default settings",
                "order": "every round runs each way of one arrangement once, in rotating order",
            },
            {**stage.versions, "reladiff": version("reladiff") if _has_reladiff() else None},
        )
        if not _has_reladiff():
            report.skip("reladiff", "not installed (the extra `bench` brings it)")
        for arrangement in options.between:
            with _arranged(arrangement, stage, options) as (source, target):
                _compare(report, ARRANGEMENTS[arrangement], source, target, options)
    report.finish(options)


@contextmanager
def _arranged(arrangement: str, stage: Stage, options: Any) -> Iterator[tuple[Side, Side]]:
    """A full table, and an empty one of the same shape."""
    with ExitStack() as stack:
        source = Side(stage, "source", "orders")
        target = Side(stage, "source", "orders_v2")
        if arrangement == "two":
            target = Side(stage, "target", "orders")
        elif arrangement == "majors":
            other = 18 if options.server != 18 else 16
            target = Side(stack.enter_context(Stage(other, smoke=options.smoke)), "target", "orders")
        for side in {side.dsn: side for side in (source, target)}.values():
            side.stage.create(side.database)
        source.stage.make_orders(source.database, options.rows, source.table)
        target.stage.make_empty_orders(target.database, target.table)
        yield source, target
        for side in (source, target):
            side.stage.drop(side.database)


def _compare(report: Report, work: str, source: Side, target: Side, options: Any) -> None:
    spec = {
        "name": "bench-verification",
        "source": {"dsn": source.dsn, "table": source.table},
        "target": {"dsn": target.dsn, "table": target.table},
    }
    run_command(spec)
    target.sql(f"VACUUM (FREEZE, ANALYZE) {target.table}")
    source.sql(f"VACUUM (FREEZE, ANALYZE) {source.table}")
    check_equal(
        "the copy",
        source.stage.digest(source.database, source.table),
        target.stage.digest(target.database, target.table),
    )
    ways = _ways(spec, source, target, options)
    _see_that_each_finds(ways, target, options.rows // 2)
    contenders = [report.contender(work, way.name, way.detail) for way in ways]
    for number in range(options.repeat):
        start = number % len(ways)
        for place in (*range(start, len(ways)), *range(start)):
            way = ways[place]
            say(f"round {number + 1} of {options.repeat}: {work}: {way.name}")
            for side in (source, target):
                side.stage.settle(side.database, side.table)
            sample, differences = way.run()
            if differences:
                raise AssertionError(f"{way.name} sees {differences} differences between equal tables")
            contenders[place].samples.append(sample)
            own = f", {sample.own_seconds:.2f} s by its own clock" if sample.own_seconds else ""
            say(f"    {sample.seconds:.2f} s{own}")
    _judge(report, work)


def _ways(spec: dict[str, Any], source: Side, target: Side, options: Any) -> list[Way]:
    rows = options.rows
    ways = [
        Way(OURS, "backfill verify, default settings (2 workers)", lambda: _ours(spec, rows)),
        Way(
            LIMIT,
            "bit_xor(hash_record_extended(t, 0)) over each side, both at once",
            lambda: _limit(source, target, rows),
        ),
    ]
    if _has_reladiff():
        detail = "its Python interface, in a process of its own"
        joins = JOINDIFFS if source.dsn == target.dsn else ()
        peers = (*HASHDIFFS[:1], *joins[:1]) if options.smoke else (*HASHDIFFS, *joins)
        ways += [Way(peer.name, detail, _asked(peer, source, target, rows)) for peer in peers]
    return ways


def _see_that_each_finds(ways: list[Way], target: Side, key: int) -> None:
    change = f"UPDATE {target.table} SET amount = amount {{}} 0.01 WHERE id = {key}"
    target.sql(change.format("+"))
    for way in ways:
        _, differences = way.run()
        if differences != 1:
            raise AssertionError(f"{way.name} sees {differences} differences where there is one")
    target.sql(change.format("-"))
    target.sql(f"VACUUM (FREEZE) {target.table}")


def _judge(report: Report, work: str) -> None:
    """The ratio that is promised, against the peer's best setting of this run: of whole processes, and inside them.
    The best setting of its other algorithm is shown as well.
    """
    for inside in (False, True):
        best: list[Contender] = []
        for kind in ("reladiff hashdiff", "reladiff joindiff"):
            peers = [c for c in report.contenders if c.work == work and c.name.startswith(kind) and c.samples]
            best += sorted(peers, key=lambda c: statistics.median(_seconds(c, inside=inside)))[:1]
        best.sort(key=lambda c: statistics.median(_seconds(c, inside=inside)))
        for place, peer in enumerate(best):
            target = TARGET_RATIO if place == 0 and not inside else None
            _ratio(report, work, peer, inside=inside, target=target, note="its best setting")
    for inside in (False, True):
        limit = report.find(work, LIMIT)
        if limit is not None:
            _ratio(report, work, limit, inside=inside, target=None, note="which has no start-up")


def _ratio(report: Report, work: str, other: Contender, *, inside: bool, target: float | None, note: str) -> None:
    ours = report.find(work, OURS)
    if ours is None:
        return
    pairs = zip(_seconds(ours, inside=inside), _seconds(other, inside=inside), strict=True)
    what = ", without start-up and imports" if inside else ""
    name = f"{work}: {OURS} against {other.name}{what}"
    goal = None if target is None else Target(target)
    report.ratios.append(Ratio(name, tuple(theirs / mine for mine, theirs in pairs), goal, note))


def _seconds(contender: Contender, *, inside: bool) -> list[float]:
    """Of each round: the whole process, or what the program's own clock says where it has one."""
    return [(s.own_seconds if inside else None) or s.seconds for s in contender.samples]


# -- the contenders --------------------------------------------------------------------------------------------------


def _ours(spec: dict[str, Any], rows: int) -> tuple[Sample, int]:
    with tempfile.TemporaryDirectory(prefix="backfill-bench-") as folder:
        file = Path(folder, "job.json")
        file.write_text(json.dumps(spec))
        sample, output = _timed([*command(), "verify", str(file), "--json"], rows, accepted=(0, MISMATCH))
    last = json.loads(output.splitlines()[-1])
    if last.get("event") != "verify.finished" or last["rows"] < rows:
        raise RuntimeError(f"backfill verify ended with {last}")
    differences = last["mismatched"] + last["missing"] + last["extra"]
    if last["verified"] != (differences == 0):
        raise RuntimeError(f"backfill verify ended with {last}")
    return _with_own_clock(sample, last["seconds"]), differences


def _asked(peer: Peer, source: Side, target: Side, rows: int) -> Callable[[], tuple[Sample, int]]:
    asked = {
        "algorithm": peer.algorithm,
        "threads": peer.threads,
        "settings": peer.settings,
        "databases": [source.for_psycopg, target.for_psycopg],
        "tables": [source.table, target.table],
        "columns": [name for name in ORDERS_COLUMNS if name != "id"],
    }

    def run() -> tuple[Sample, int]:
        sample, output = _timed([sys.executable, "-c", RELADIFF, json.dumps(asked)], rows)
        found = json.loads(output)
        return _with_own_clock(sample, found["seconds"]), found["rows"]

    return run


def _limit(source: Side, target: Side, rows: int) -> tuple[Sample, int]:
    async def one(side: Side) -> int:
        connection = await asyncpg.connect(side.dsn)
        try:
            value: int = await connection.fetchval(HASH.format(table=side.table), timeout=NO_TIMEOUT_S)
        finally:
            await connection.close()
        return value

    async def both() -> tuple[float, list[int]]:
        began = time.perf_counter()
        hashes = await asyncio.gather(one(source), one(target))
        return time.perf_counter() - began, hashes

    seconds, hashes = uvloop.run(both())
    return Sample(seconds, rows), int(hashes[0] != hashes[1])


def _timed(arguments: list[str], rows: int, accepted: tuple[int, ...] = (0,)) -> tuple[Sample, str]:
    """A program from start to exit, with its processor time; what it wrote."""
    before = os.times()
    began = time.perf_counter()
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=False, timeout=NO_TIMEOUT_S, env=environment()
    )
    seconds = time.perf_counter() - began
    after = os.times()
    if done.returncode not in accepted:
        raise RuntimeError(f"{arguments[:3]} ended with {done.returncode}: {done.stderr[-2000:]}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Sample(seconds, rows, client_cpu_s=cpu_s), done.stdout


def _with_own_clock(sample: Sample, seconds: float) -> Sample:
    return Sample(sample.seconds, sample.rows, client_cpu_s=sample.client_cpu_s, own_seconds=seconds)


def _has_reladiff() -> bool:
    return importlib.util.find_spec("reladiff") is not None


if __name__ == "__main__":
    main()
