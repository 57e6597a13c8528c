"""One row that a transform cannot do, among very many: it ends in the quarantine, and all others arrive."""

from __future__ import annotations

from typing import Final

import pytest

from engine.spec.models import Errors
from tests.support import functions, hashing
from tests.support.databases import FreshDatabase, TwoDatabases
from tests.support.hashing import HASHED_SQL, POISON
from tests.support.jobs import in_place, into, run_to_done

ROWS: Final = 100_000
A_MILLION: Final = 1_000_000

WAYS: Final = {
    "raises_on_poison": ("BF011", "ValueError at tests/support/hashing.py:"),
    "rejects_poison": ("BF010", "poison"),
    "refused_by_the_table": ("23514", ""),
}
"""Transform -> SQLSTATE, and what the quarantine says first."""

long = pytest.mark.long


def named(function: str) -> str:
    return (hashing if function == "raises_on_poison" else functions).named(function)


def fill(database: FreshDatabase, rows: int) -> int:
    """A table with one poisoned row, not the first of a batch; gives its key."""
    bad = rows * 617 // 1000 + 3
    database.sql(
        "CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL, v text, h bigint CHECK (h >= 0));"
        f"INSERT INTO t SELECT g, g, CASE g WHEN {bad} THEN '{POISON} canary0value' ELSE 'v' || g END"
        f" FROM generate_series(1, {rows}) g; ANALYZE t"
    )
    return bad


def check(database: FreshDatabase, bad: int, function: str) -> None:
    """It is set aside, once, and nothing of it but its key is said."""
    sqlstate, reason = WAYS[function]
    seen = "SELECT key, sqlstate, attempts FROM backfill.quarantine"
    assert database.sql(seen) == f"{{{bad}}}|{sqlstate}|1"
    said = database.sql("SELECT to_jsonb(q) - 'key' FROM backfill.quarantine q")
    assert reason in said
    assert "canary" not in said


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("function", "rows"),
    [
        ("raises_on_poison", ROWS),
        pytest.param("rejects_poison", ROWS, marks=long),
        pytest.param("refused_by_the_table", ROWS, marks=long),
        *(pytest.param(function, A_MILLION, marks=long) for function in WAYS),
    ],
)
async def test_a_poisoned_row_of_a_copy_is_set_aside_and_all_others_arrive(
    databases: TwoDatabases, function: str, rows: int
) -> None:
    bad = fill(databases.source, rows)
    databases.target.sql("CREATE TABLE d (id bigint PRIMARY KEY, v text, h bigint CHECK (h >= 0))")
    spec = into(
        databases.source,
        "t",
        databases.target,
        "d",
        transform=named(function),
        columns={"id": "id", "v": "v"},
        errors=Errors(max_quarantined=1),
    )
    await run_to_done(spec)
    everything = "SELECT count(*), sum(h), sum(hashtext(v)::bigint) FROM"
    right = f"SELECT count(*), sum({HASHED_SQL}), sum(hashtext(v)::bigint) FROM t WHERE id <> {bad}"
    assert databases.target.sql(f"{everything} d") == databases.source.sql(right)
    check(databases.target, bad, function)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("function", "rows"),
    [
        pytest.param("raises_on_poison", ROWS, marks=long),
        ("rejects_poison", ROWS),
        ("refused_by_the_table", ROWS),
        *(pytest.param(function, A_MILLION, marks=long) for function in WAYS),
    ],
)
async def test_a_poisoned_row_in_place_is_set_aside_and_all_others_are_filled(
    database: FreshDatabase, function: str, rows: int
) -> None:
    bad = fill(database, rows)
    await run_to_done(in_place(database, "t", {}, transform=named(function), errors=Errors(max_quarantined=1)))
    assert database.sql(f"SELECT id, h IS NULL FROM t WHERE h IS DISTINCT FROM {HASHED_SQL}") == f"{bad}|t"
    check(database, bad, function)
