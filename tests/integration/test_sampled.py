"""A transform tried before its job starts: on rows from all over the source that the job is about, in good time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.db import Connection
from engine.flow import endpoints_of, inspect, sampled
from engine.flow.prepare import Inspection
from engine.model import Finding, Severity
from tests.support import sampled_transforms
from tests.support.databases import FreshDatabase, on_each_major
from tests.support.jobs import in_place, into
from tests.support.sampled_transforms import named


@pytest.fixture
def numbers(database: FreshDatabase) -> FreshDatabase:
    """10,000 rows to fill."""
    database.sql(
        "CREATE TABLE src (id bigint PRIMARY KEY, n int);"
        "INSERT INTO src SELECT g FROM generate_series(1, 10000) g; ANALYZE src"
    )
    return database


async def tried(database: FreshDatabase, function: str, *, show: int = 0, **settings: Any) -> Inspection:
    spec = in_place(database, "src", {}, transform=named(function), **settings)
    return await inspect(spec, endpoints_of(spec), tries=True, show_rows=show)


def found(seen: Inspection, code: str) -> Finding | None:
    return next((finding for finding in seen.findings if finding.code == code), None)


async def test_rows_come_from_all_over_the_table(numbers: FreshDatabase) -> None:
    seen = await tried(numbers, "rejects_late_rows", workers=8)
    assert seen.sample is not None
    assert 90 <= seen.sample.facts.rows <= 110
    assert 20 <= seen.sample.facts.rejected <= 80
    assert found(seen, "TRANSFORM_REJECTS") is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name text", "md5(g::text)"),
        ("name uuid", "md5(g::text)::uuid"),
        ("name inet", "'10.0.0.0'::inet + g"),
        ("name timestamptz", "'2026-01-01'::timestamptz + g * interval '1 s'"),
    ],
)
@pytest.mark.parametrize("order", ["name, id", "id, name", "name"])
async def test_keys_of_any_kind_lead_to_rows(database: FreshDatabase, key: str, value: str, order: str) -> None:
    database.sql(
        f"CREATE TABLE src (id bigint, {key}, n int, PRIMARY KEY ({order}));"
        f"INSERT INTO src SELECT g % 7, {value} FROM generate_series(1, 3000) g; ANALYZE src"
    )
    seen = await tried(database, "with_state")
    assert seen.sample is not None
    assert seen.sample.facts.rows >= 10


async def test_only_rows_of_the_job_are_tried(numbers: FreshDatabase) -> None:
    assert found(await tried(numbers, "raises_on_odd"), "TRANSFORM_REJECTS") is not None
    for settings in ({"where": "id % 2 = 0"}, {"done": "id % 2 = 1"}):
        seen = await tried(numbers, "raises_on_odd", **settings)
        assert seen.sample is not None
        assert (seen.sample.facts.rejected, seen.sample.facts.failure) == (0, "")
    everything = await tried(numbers, "raises_on_odd", where="id % 2 = 1")
    failed = found(everything, "TRANSFORM_FAILS")
    assert failed is not None
    assert "ValueError" in failed.message
    assert "in raises_on_odd" in failed.message


async def test_nothing_is_tried_where_there_is_nothing_to_do(numbers: FreshDatabase) -> None:
    numbers.sql("UPDATE src SET n = 1")
    seen = await tried(numbers, "raises_on_odd")
    assert seen.sample is None
    assert found(seen, "TRANSFORM_FAILS") is None


async def test_nothing_is_tried_where_nobody_asks_or_something_else_is_in_the_way(numbers: FreshDatabase) -> None:
    sampled_transforms.calls.clear()
    spec = in_place(numbers, "src", {}, transform=named("with_state"))
    assert (await inspect(spec, endpoints_of(spec))).sample is None
    assert (await tried(numbers, "with_state", key=("n",))).sample is None
    assert sampled_transforms.calls == []


async def test_a_search_for_rows_ends_in_time(numbers: FreshDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled, "PATIENCE_S", 0.1)
    numbers.sql(
        "CREATE FUNCTION never(bigint) RETURNS boolean IMMUTABLE LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM pg_sleep(0.05); RETURN false; END'"
    )
    seen = await tried(numbers, "raises_on_odd", where="public.never(id)")
    assert seen.sample is not None and seen.sample.facts.rows == 0
    untried = found(seen, "TRANSFORM_FAILS")
    assert untried is not None and untried.severity is Severity.WARN
    assert "could not be tried: no rows to try it on were found within 0.1 s" in untried.message


async def test_a_function_that_takes_longer_than_a_try_is_told(
    numbers: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled, "TRIED_S", 0.1)
    seen = await tried(numbers, "hangs", show=1)
    untried = found(seen, "TRANSFORM_FAILS")
    assert untried is not None and untried.severity is Severity.WARN
    assert "could not be tried: it has not come back within 0.1 s" in untried.message
    assert seen.sample is not None and [row.output for row in seen.sample.shown] == [None]


async def test_what_a_function_that_fails_was_given_is_shown_too(numbers: FreshDatabase) -> None:
    seen = await tried(numbers, "hangs", show=2)
    assert found(seen, "TRANSFORM_FAILS") is not None and seen.sample is not None
    assert [(row.output, row.reason) for row in seen.sample.shown] == [(None, "the transform fails")] * 2
    assert [row.input for row in seen.sample.shown] == [{"id": "1"}, {"id": "2"}]


async def test_a_function_that_hangs_is_told_with_its_line(numbers: FreshDatabase) -> None:
    failed = found(await tried(numbers, "hangs"), "TRANSFORM_FAILS")
    assert failed is not None
    assert "sampled_transforms.py:" in failed.message
    assert "time.sleep(2.0)" in failed.message


async def test_rows_that_would_stop_the_job_at_once_are_refused_before_it(numbers: FreshDatabase) -> None:
    for settings, severity in (({}, Severity.REFUSE), ({"errors": {"max_quarantined": 1}}, Severity.WARN)):
        said = found(await tried(numbers, "rejects_late_rows", **settings), "TRANSFORM_REJECTS")
        assert said is not None
        assert said.severity is severity
        assert "errors.max_quarantined" in said.remedy


async def test_no_more_of_large_rows_is_read_than_a_batch_holds(
    numbers: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an average the table's rows are small: only reading them tells."""
    numbers.sql(
        "ALTER TABLE src ADD large bytea; ALTER TABLE src ALTER large SET STORAGE EXTERNAL;"
        "UPDATE src SET large = decode(repeat('ab', 1000000), 'hex') WHERE id % 100 = 1; ANALYZE src"
    )
    came = 0
    copy_out = Connection.copy_out

    async def counted(self: Connection, query: str, sink: Callable[[bytes], Awaitable[None]], **rest: Any) -> int:
        async def counting(piece: bytes) -> None:
            nonlocal came
            came += len(piece)
            await sink(piece)

        return await copy_out(self, query, counting, **rest)

    monkeypatch.setattr(Connection, "copy_out", counted)
    seen = await tried(numbers, "measures", where="large IS NOT NULL")
    assert seen.sample is not None
    assert not seen.sample.facts.failure
    assert 1 <= seen.sample.facts.rows <= 3
    assert came < 4_000_000, "a hundred such rows are 100 MB"


async def test_who_may_object_to_the_tables_is_asked_before_a_row_is_read(numbers: FreshDatabase) -> None:
    sampled_transforms.calls.clear()
    spec = in_place(numbers, "src", {}, transform=named("with_state"))

    def object_to(seen: Inspection) -> None:
        assert seen.source.name.name == "src"
        raise PermissionError

    with pytest.raises(PermissionError):
        await inspect(spec, endpoints_of(spec), tries=True, check=object_to)
    assert sampled_transforms.calls == []


async def test_setup_and_teardown_belong_to_a_try(numbers: FreshDatabase) -> None:
    sampled_transforms.calls.clear()
    seen = await tried(numbers, "with_state")
    assert seen.sample is not None
    assert not seen.sample.facts.failure
    assert sampled_transforms.calls == ["setup", "teardown of ready"]


async def test_a_transform_may_read_nothing(numbers: FreshDatabase) -> None:
    seen = await tried(numbers, "reads_nothing", show=1)
    assert seen.sample is not None
    assert (seen.sample.shown[0].input, seen.sample.shown[0].output) == ({}, {"n": "1"})


async def test_what_became_of_each_row_is_shown(numbers: FreshDatabase) -> None:
    seen = await tried(numbers, "some", show=3, where="id <= 3")
    assert seen.sample is not None
    assert [(row.input, row.output, row.reason) for row in seen.sample.shown] == [
        ({"id": "1"}, None, "dropped"),
        ({"id": "2"}, None, "not two"),
        ({"id": "3"}, {"n": "3"}, ""),
    ]


@on_each_major
async def test_values_are_shown_in_words_that_the_server_understands(database: FreshDatabase) -> None:
    columns = (
        "b boolean, i int, f float8, d date, at timestamptz, u uuid, t text, raw bytea, j jsonb, scaled numeric(12,2),"
        " exact numeric, list text[], none text"
    )
    database.sql(
        f"CREATE TABLE src (id int PRIMARY KEY, {columns}); CREATE TABLE dst (id int PRIMARY KEY, {columns});"
        "INSERT INTO src VALUES (1, true, -7, 1.5, '2026-02-28', '2026-02-28 12:00:00.25+02',"
        " 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'é', '\\x00ff', '{\"a\": 1}', -1.05, 1.00, ARRAY['x', NULL], NULL),"
        " (2, false, 0, 'NaN', 'infinity', '-infinity', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '', '', 'null', 0,"
        " 'NaN', '{}', NULL)"
    )
    spec = into(database, "src", database, "dst", transform=named("passes_all"))
    seen = await inspect(spec, endpoints_of(spec), tries=True, show_rows=2)
    assert seen.sample is not None, seen.findings
    first, second = seen.sample.shown
    assert (first.output, second.output) == (first.input, second.input)
    assert list(first.input.values()) == [
        "true", "-7", "1.5", "2026-02-28", "2026-02-28 10:00:00.250000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "é",
        "\\x00ff", '{"a": 1}', "-1.05", "1.00", "{x,NULL}", None,
    ]  # fmt: skip
    assert [second.input[name] for name in ("f", "d", "at", "raw", "scaled", "exact", "list")] == [
        "nan", "infinity", "-infinity", "\\x", "0.00", "NaN", "{}",
    ]  # fmt: skip
