"""What preflight says of a transform, and what a transform changes in what it says of everything else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from engine.flow.transforming import PreparedTransform, declared_by
from engine.model import Declaration, Finding, Mode, Severity
from engine.plan.forecast import forecast
from engine.plan.preflight import (
    CATALOGUE,
    Code,
    PreflightFacts,
    SampleFacts,
    TransformFacts,
    map_columns,
    preflight,
)
from engine.spec import Errors
from tests.support.preflight import column, copy_spec, fill, index, move, primary, required, seen, spec, trigger

CENTS = "shop.transforms:cents"


def found(facts: PreflightFacts, code: str) -> Finding | None:
    return next((f for f in preflight(facts) if f.code == code), None)


def declared(**changes: Any) -> TransformFacts:
    given: dict[str, Any] = {"reference": CENTS, "reads": (("amount", ""),), "writes": ("cents",)}
    return TransformFacts(**(given | changes))


def computed(*, sets: dict[str, str] | None = None, done: str | None = None, **changes: Any) -> PreflightFacts:
    """A job in place whose cents a transform computes."""
    plain = fill(expressions=(), spec=spec(set=sets or {}, transform=CENTS, done=done))
    return replace(plain, transform=declared(**changes))


def moved(mode: Mode = Mode.INSERT, *, columns: dict[str, str] | None = None, **changes: Any) -> PreflightFacts:
    """A job into another table that has cents, which a transform computes."""
    plain = move(mode, spec=copy_spec(columns=columns or {}, transform=CENTS))
    assert plain.target is not None
    target = replace(plain.target, columns=(*plain.target.columns, column("cents")))
    return replace(plain, target=target, transform=declared(**changes))


def written(facts: PreflightFacts, *more: Any) -> PreflightFacts:
    """The same where the written table has these columns besides, or instead."""
    names = {c.name for c in more}
    if facts.in_place:
        kept = tuple(c for c in facts.source.columns if c.name not in names)
        return replace(facts, source=replace(facts.source, columns=(*kept, *more)))
    assert facts.target is not None
    kept = tuple(c for c in facts.target.columns if c.name not in names)
    return replace(facts, target=replace(facts.target, columns=(*kept, *more)))


def tried(facts: PreflightFacts, **changes: Any) -> PreflightFacts:
    assert facts.transform is not None
    return replace(facts, transform=replace(facts.transform, sample=SampleFacts(**({"rows": 100} | changes))))


def audited(name: str) -> PreflightFacts:
    """A job in place beside a trigger that listens to changes of one column."""
    facts = computed()
    audit = replace(trigger("audit", on="update"), of_columns=(name,))
    return replace(facts, source=replace(facts.source, triggers=(*facts.source.triggers, audit)))


@dataclass(frozen=True)
class Case:
    """A job that has the finding, one that differs in the cause only and has it not, and words it must say."""

    code: Code
    guilty: PreflightFacts
    innocent: PreflightFacts
    words: tuple[str, ...] = ()


CASES = {
    "reads a column that is not there": Case(
        Code.TRANSFORM_COLUMN_UNKNOWN,
        computed(reads=(("ammount", ""),)),
        computed(),
        ("reads ammount", "did you mean amount?", CENTS),
    ),
    "writes a column that the target does not have": Case(
        Code.TRANSFORM_COLUMN_UNKNOWN, moved(writes=("sents",)), moved(), ("writes sents", "public.orders_v2", "cents?")
    ),
    "reads a column that only the target has": Case(
        Code.TRANSFORM_COLUMN_UNKNOWN, moved(reads=(("cents", ""),)), moved(), ("public.orders does",)
    ),
    "reads a type that Python has no form for": Case(
        Code.TRANSFORM_TYPE_UNSUPPORTED, computed(unreadable=("amount",)), computed(), ("reads amount", "numeric")
    ),
    "reads it in a form that it does not have": Case(
        Code.TRANSFORM_TYPE_UNSUPPORTED,
        computed(reads=(("amount", "decimal"),), unreadable=("amount",)),
        computed(reads=(("amount", "decimal"),)),
        ("as decimal",),
    ),
    "writes a type that Python has no form for": Case(
        Code.TRANSFORM_TYPE_UNSUPPORTED, moved(unwritable=("cents",)), moved(), ("writes cents",)
    ),
    "passes a column without a binary form": Case(
        Code.TRANSFORM_TYPE_UNSUPPORTED,
        written(moved(), required("amount", binary_io=False)),
        written(moved(), required("amount", binary_portable=False)),  # within one database that is no matter
        ("amount is", "at all"),
    ),
    "passes a column whose binary form is of one database": Case(
        Code.TRANSFORM_TYPE_UNSUPPORTED,
        written(moved(Mode.COPY), required("amount", binary_portable=False)),
        moved(Mode.COPY),
        ("that another database could read",),
    ),
    "writes the key in place": Case(
        Code.TRANSFORM_WRITES_KEY, computed(writes=("id",)), computed(), ("writes id", "found by again")
    ),
    "writes the key of the target": Case(Code.TRANSFORM_WRITES_KEY, moved(writes=("id",)), moved(), ("writes id",)),
    "writes what set writes": Case(
        Code.TRANSFORM_WRITES_TWICE, computed(sets={"cents": "1"}), computed(sets={"amount": "1"}), ("cents", "set")
    ),
    "writes what columns fills": Case(
        Code.TRANSFORM_WRITES_TWICE,
        moved(columns={"id": "id", "cents": "amount"}),
        moved(columns={"id": "id"}),
        ("cents", "columns"),
    ),
    "fails on the sample": Case(
        Code.TRANSFORM_FAILS,
        tried(computed(), failure="ValueError at shop/transforms.py:12 in cents"),
        tried(computed()),
        ("shop/transforms.py:12",),
    ),
    "rejects some of the sample": Case(
        Code.TRANSFORM_REJECTS,
        tried(computed(), rejected=3, reason="a negative amount"),
        tried(computed(), dropped=3),
        ("3 of a sample of 100 rows", "a negative amount", "the first such row stops the job"),
    ),
    "drops rows of a copy": Case(Code.TRANSFORM_DROPS, moved(drops=True), moved(), ("missing",)),
    "drops rows in place": Case(Code.TRANSFORM_DROPS, computed(drops=True), computed(), ("not done",)),
    # what other findings make of it
    "reads what it writes": Case(
        Code.DONE_REQUIRED,
        computed(reads=(("cents", ""),)),
        computed(reads=(("cents", ""),), done="cents > 0"),
        (CENTS, "reads cents"),
    ),
    "fills a required column": Case(
        Code.DONE_REQUIRED, written(computed(), required("cents")), computed(), ("change nothing",)
    ),
    "fills a column with a default": Case(
        Code.DONE_SKIPS_DEFAULTS, written(computed(), column("cents", has_default=True)), computed(), ("cents",)
    ),
    "writes a generated column": Case(
        Code.SET_GENERATED, written(computed(), column("cents", generated="stored")), computed(), (CENTS, "cents")
    ),
    "writes a generated column of the target": Case(
        Code.SET_GENERATED, written(moved(), column("cents", generated="stored")), moved(), ("the transform", "cents")
    ),
    "a trigger of a column that it writes": Case(
        Code.TRIGGERS_ON_SOURCE, audited("cents"), audited("amount"), ("audit",)
    ),
    "nobody fills new rows": Case(
        Code.DUAL_WRITE_MISSING,
        replace(computed(), source=replace(computed().source, triggers=())),
        computed(),
        ("fills cents", "let the application fill them"),
    ),
    "nobody carries changes over": Case(
        Code.DUAL_WRITE_MISSING,
        replace(moved(), source=replace(moved().source, triggers=())),
        moved(),
        ("let the application write both tables",),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_finding_appears_with_its_cause_and_not_without(case: Case) -> None:
    said = found(case.guilty, case.code)
    assert said is not None, [f.code for f in preflight(case.guilty)]
    assert found(case.innocent, case.code) is None
    stops = case.code is Code.TRANSFORM_REJECTS  # nothing may be set aside in these jobs
    assert said.severity is (Severity.REFUSE if stops else CATALOGUE[case.code].severity)
    for word in case.words:
        assert word in f"{said.message}\n{said.remedy}"
    assert "backfill dualwrite" not in said.remedy, "no trigger runs a transform"


def test_every_code_of_transforms_has_a_case() -> None:
    codes = {code for code in Code if code.startswith("TRANSFORM_")}
    assert codes <= {case.code for case in CASES.values()}


def test_what_could_not_be_tried_is_told() -> None:
    said = found(tried(computed(), rows=0, untried="it has not come back within 30 s"), "TRANSFORM_FAILS")
    assert said is not None and said.severity is Severity.WARN
    assert "could not be tried: it has not come back within 30 s" in said.message


def test_a_failure_names_the_transform_once() -> None:
    for said, shown in (
        ("transform {} raised ValueError at shop/x.py:1", "fails on a sample of 1 row: it raised ValueError at"),
        ("transform {}: drop: not declared", "fails on a sample of 1 row: drop: not declared"),
        ("ValueError at shop/x.py:1 in f", "fails on a sample of 1 row: ValueError at shop/x.py:1 in f"),
    ):
        facts = computed()
        assert facts.transform is not None
        name = facts.transform.reference
        failed = found(tried(facts, rows=1, failure=said.format(name)), "TRANSFORM_FAILS")
        assert failed is not None and f"the transform {name} {shown}" in failed.message


@pytest.mark.parametrize("facts", [computed(), moved(), moved(Mode.COPY), tried(computed())])
def test_a_sound_transform_has_no_findings(facts: PreflightFacts) -> None:
    assert preflight(facts) == ()


def test_a_job_without_a_transform_is_told_nothing_of_transforms() -> None:
    assert not [f for f in preflight(fill(transform=None)) if f.code.startswith("TRANSFORM_")]


def test_as_many_rejected_rows_as_may_be_set_aside_are_named() -> None:
    facts = tried(computed(), rejected=1, reason="r")
    facts = replace(facts, spec=spec(set={}, transform=CENTS, errors=Errors(max_quarantined=5000)))
    said = found(facts, "TRANSFORM_REJECTS")
    assert said is not None
    assert "up to 5,000 such rows" in said.message
    assert said.severity is Severity.WARN


# -- columns ----------------------------------------------------------------------------------------------------------


def test_a_written_column_is_no_longer_taken_over_by_its_name() -> None:
    facts = moved(writes=("amount",))
    assert facts.target is not None
    mapped = map_columns(facts.spec, facts.source, facts.target, ("amount",))
    by_name = {c.target.name: c for c in mapped.columns}
    assert (by_name["amount"].by_transform, by_name["amount"].source) == (True, None)
    assert not by_name["id"].by_transform
    assert {s.name for s in mapped.skipped} == {"cents"}


def test_a_required_column_of_the_target_may_be_filled_by_a_transform() -> None:
    facts = written(moved(), required("cents"))
    assert found(facts, "COLUMN_UNFILLED") is None
    assert found(replace(facts, transform=None), "COLUMN_UNFILLED") is not None


def test_text_is_no_way_out_where_a_transform_needs_binary() -> None:
    facts = written(moved(Mode.COPY), required("amount", binary_portable=False))
    assert found(facts, "BINARY_COPY_IMPOSSIBLE") is None
    assert found(replace(facts, transform=None), "BINARY_COPY_IMPOSSIBLE") is not None


def test_indexes_on_written_columns_keep_updates_from_being_heap_only() -> None:
    indexed = replace(computed().source, indexes=(primary("id"), index("by_cents", "cents", unique=False)))
    said = found(replace(computed(), source=indexed), "HOT_UPDATES")
    assert said is not None and said.message.startswith("the transform writes columns that are indexed (")


# -- servers ----------------------------------------------------------------------------------------------------------


def test_a_transform_in_one_database_takes_a_session_more_for_each_worker() -> None:
    by_sql, by_python = (f for f in (fill(), computed()))
    free = 12
    assert found(seen(by_sql, sessions_free=free), "CONNECTIONS_SHORT") is None
    said = found(seen(by_python, sessions_free=free), "CONNECTIONS_SHORT")
    assert said is not None
    assert "13 sessions" in said.message


def test_a_stream_has_the_copys_price() -> None:
    table = fill().source
    in_sql = forecast(Mode.UPDATE, table, None, rows=1e6, workers=1)
    in_python = forecast(Mode.UPDATE, table, None, rows=1e6, workers=1, streams=True)
    assert in_python.seconds.low > in_sql.seconds.low
    assert in_python.wal_bytes == in_sql.wal_bytes
    copies = [
        forecast(mode, table, table, rows=1e6, workers=1, streams=True).seconds for mode in (Mode.INSERT, Mode.COPY)
    ]
    assert copies[0] == copies[1]


# -- declarations in the ledger ---------------------------------------------------------------------------------------


def test_a_declaration_survives_the_ledger() -> None:
    said = Declaration(CENTS, (("amount", "decimal"), ("id", "")), ("cents",), drops=True)
    identity = {"transform": CENTS} | PreparedTransform(said, None, (), ()).identity
    assert declared_by(identity) == said


@pytest.mark.parametrize(
    "identity",
    [
        None,
        [],
        {},
        {"transform": None},
        {"transform": CENTS},
        {"transform": CENTS, "transform_reads": "amount", "transform_writes": ["cents"], "transform_drops": False},
        {"transform": CENTS, "transform_reads": [["a"]], "transform_writes": ["cents"], "transform_drops": False},
        {"transform": CENTS, "transform_reads": [[1, ""]], "transform_writes": ["cents"], "transform_drops": False},
        {"transform": 1, "transform_reads": [], "transform_writes": ["cents"], "transform_drops": False},
    ],
)
def test_what_is_no_declaration_is_none(identity: Any) -> None:
    assert declared_by(identity) is None
