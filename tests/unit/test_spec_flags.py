"""``backfill run`` without a file: the same spec from flags, and problems in the words of flags."""

from __future__ import annotations

import pytest

from engine.errors import SpecError
from engine.spec import Dsn, parse_spec, spec_from_flags


def problems(env=None, **flags) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        spec_from_flags(env or {}, **flags)
    assert caught.value.file == "the flags"
    assert "s3cr3t-canary" not in repr([caught.value, caught.value.problems])
    found = {p.path: f"{p.message}; {p.hint}" for p in caught.value.problems}
    assert len(found) == len(caught.value.problems), "one mistake is one problem"
    return found


def test_flags_make_the_same_spec_as_a_file():
    from_flags = spec_from_flags(
        {},
        source_dsn="host=a",
        source_table="public.orders",
        target_dsn="host=b",
        target_table="orders_v2",
        name="copy",
        columns=["id=id", "cents = (amount * 100)::bigint", "eq=a=b"],
        where="x > 1",
        key="tenant_id, id",
        on_conflict="newest(updated_at)",
        deletes="none",
        order="key",
        workers=4,
        chunk_target="100ms",
        chunk_min_rows=5,
        chunk_max_rows=500,
        chunk_max_bytes="1MiB",
        max_rows_per_s=1000.0,
        accept=["A", "B"],
        role="worker",
        lock_timeout="1s",
    )
    from_file = parse_spec(
        """
name: copy
source: {dsn: host=a, table: public.orders}
target: {dsn: host=b, table: orders_v2}
columns: {id: id, cents: (amount * 100)::bigint, eq: a=b}
where: x > 1
key: [tenant_id, id]
on_conflict: newest(updated_at)
deletes: none
order: key
workers: 4
chunk: {target: 100ms, min_rows: 5, max_rows: 500, max_bytes: 1MiB}
pace: {max_rows_per_s: 1000}
accept: [A, B]
role: worker
lock_timeout: 1s
""",
        {},
    )
    assert from_flags == from_file


def test_the_short_form_works_in_place_on_the_default_connection():
    spec = spec_from_flags(
        {"BACKFILL_DSN": "host=a"}, table="orders", set_columns=["c=1"], done="c = 1", key=["a", "b"]
    )
    assert spec.in_place
    assert spec.source.dsn == Dsn("host=a", reference="${BACKFILL_DSN}")
    assert (dict(spec.set), spec.done, spec.key) == ({"c": "1"}, "c = 1", ("a", "b"))


def test_a_target_without_a_dsn_is_in_the_source_database():
    spec = spec_from_flags({}, dsn="host=a", table="a", target_table="b")
    assert spec.target is not None
    assert spec.target.dsn == Dsn("host=a")


def test_a_dsn_flag_may_name_a_variable():
    spec = spec_from_flags({"D": "host=a password=x"}, dsn="${D}", table="a", set_columns=["a=b"])
    assert spec.source.dsn == Dsn("host=a password=x", reference="${D}")


def test_a_password_in_a_flag_is_refused_with_a_way_out():
    found = problems(
        source_dsn="postgresql://a:s3cr3t-canary@h/d", source_table="a", target_dsn="host=b password=s3cr3t-canary",
        target_table="b",
    )  # fmt: skip
    assert set(found) == {"--source-dsn", "--target-dsn"}
    assert "BACKFILL_DSN" in found["--source-dsn"]


def test_problems_name_the_flags():
    found = problems(
        dsn="nonsense", table="a.b.c", set_columns=["a"], columns=["a=b"], workers=0, chunk_target="250",
        chunk_min_rows=9, chunk_max_rows=8, max_rows_per_s=-1.0, key="a,,b", where=" ", accept=["x"], name="X",
        deletes="never", on_conflict="keep", lock_timeout="2", role="", order="random",
    )  # fmt: skip
    assert set(found) == {
        "--dsn", "--table", "--set", "--columns", "--workers", "--chunk-target", "--chunk-min-rows", "--max-rows-per-s",
        "--key", "--where", "--accept", "--name", "--deletes", "--on-conflict", "--lock-timeout", "--role", "--order",
    }  # fmt: skip
    assert "`" not in repr(found)
    assert "--target-table" in found["--columns"]


@pytest.mark.parametrize(
    ("flags", "path", "words"),
    [
        ({"set_columns": ["c=1"]}, "--table", "is missing"),
        ({"table": "t"}, "--set", "which columns it fills"),
        ({"table": "t", "set_columns": ["c=1", "c=2"]}, "--set", "twice"),
        ({"table": "t", "set_columns": ["=1"]}, "--set", "column=expression"),
        ({"table": "t", "set_columns": ["c="]}, "--set", "is empty"),
        ({"table": "t", "target_dsn": "host=b"}, "--target-table", "is missing"),
        ({"table": "t", "target_table": "u", "set_columns": ["a=b"]}, "--set", "under --columns"),
        ({"table": "t", "source_table": "t", "set_columns": ["c=1"]}, "--table", "--source-table"),
        ({"dsn": "host=a", "source_dsn": "host=a", "table": "t", "set_columns": ["c=1"]}, "--dsn", "--source-dsn"),
        ({"table": "t", "set_columns": ["c=${X}"]}, "--set", "only in --dsn"),
        ({"table": "t", "set_columns": ["c=1"], "order": "physical"}, "--order", "not available yet"),
    ],
)
def test_each_mistake_in_the_flags_has_a_way_out(flags, path, words):
    found = problems(**flags)
    assert set(found) == {path}
    assert words in found[path]
