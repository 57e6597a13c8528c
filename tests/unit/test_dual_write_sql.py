"""The text of dual-write triggers: names, what is set, what is never done."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from engine.db.database import PINNED
from engine.model import ConflictPolicy, Key, KeyColumn, TableName
from engine.sql import dual_write
from engine.sql.dual_write import fill, mirror, script
from engine.sql.statements import MappedColumn, SourceShape, TargetShape


def column(name: str, kind: str = "int", type_name: str = "integer") -> KeyColumn:
    return KeyColumn(name, type_name, 0, kind)


SOURCE = SourceShape(TableName("public", "orders"), Key((column("id"),), "orders_pkey"), None)
TARGET = TargetShape(
    table=TableName("public", "orders_v2"),
    key=(column("id"),),
    columns=(
        MappedColumn("id", '"id"', "integer", needs_cast=False),
        MappedColumn("cents", "amount * 100", "bigint", needs_cast=True),
    ),
    overriding=False,
    policy=ConflictPolicy.KEEP,
    newest=None,
    same_order=True,
    remember=True,
)


def body(text: dual_write.DualWriteText, number: int = 0) -> str:
    return text.functions[number].body


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["a", "orders-amount-cents", "x." * 31 + "x", "0" * 63, "a.b", "a-b", "a_b"])
def test_names_fit_sort_last_and_need_no_quotes(job: str) -> None:
    names = [*dual_write.trigger_names(job), *dual_write.function_names(job)]
    assert len(set(names)) == 4
    for name in names:
        assert len(name.encode()) <= 63
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert all(name.startswith(dual_write.TRIGGER_PREFIX) for name in dual_write.trigger_names(job))


def test_jobs_whose_names_differ_in_signs_only_have_names_of_their_own() -> None:
    jobs = ["a.b", "a-b", "a_b", "a.b-", "x" * 60, "x" * 61]
    assert len({dual_write.trigger_names(job)[0] for job in jobs}) == len(jobs)


def test_the_job_is_found_by_the_comment_on_its_function() -> None:
    statements = dual_write.create_function(mirror("a.b", SOURCE, TARGET).functions[0], "a.b", None)
    comment = next(s for s in statements if s.startswith("COMMENT"))
    assert dual_write.job_of_comment(comment.partition(" IS ")[2].strip("'")) == "a.b"
    assert dual_write.target_of_comment(comment.partition(" IS ")[2].strip("'")) == '"public"."orders_v2"'
    assert dual_write.target_of_comment("dual-write of backfill job a.b") is None
    assert dual_write.job_of_comment("somebody else's") is None
    assert dual_write.job_of_comment(None) is None


# -- what a function relies on -----------------------------------------------------------------------------------------


def test_functions_set_what_our_sessions_set() -> None:
    ours = {name: value for name, value in dual_write.SETTINGS.items() if name != "search_path"}
    assert {name: PINNED[name] for name in ours} == ours


@pytest.mark.parametrize("text", [mirror("job", SOURCE, TARGET), fill("job", SOURCE, {"a": "b"}, "a IS NOT NULL")])
def test_functions_run_as_their_owner_and_are_nobody_elses_to_use(text: dual_write.DualWriteText) -> None:
    for function in text.functions:
        create, revoke, _, owner = dual_write.create_function(function, text.job, "shop owner")
        assert "SECURITY DEFINER" in create
        assert 'SET "search_path" = pg_catalog, pg_temp\n' in create
        assert revoke == f"REVOKE ALL ON FUNCTION {function.sql_name}() FROM PUBLIC"
        assert owner.endswith('OWNER TO "shop owner"')
    for trigger in text.triggers:
        assert dual_write.create_trigger(trigger, text.table)[1].startswith(
            'ALTER TABLE "public"."orders" ENABLE ALWAYS'
        )


def test_a_text_that_holds_our_quotes_does_not_end_the_body() -> None:
    source = replace(SOURCE, where="note <> '$dual_write$' AND note <> '$dual_write_1$'")
    text = mirror("it's", source, TARGET)
    create = dual_write.create_function(text.functions[0], text.job, None)[0]
    assert create.count("$dual_write_2$") == 2
    assert "backfill.bury('it''s'," in body(text)


# -- into another table -----------------------------------------------------------------------------------------------


def test_an_upsert_writes_every_column_but_the_key() -> None:
    assert 'DO UPDATE SET "cents" = excluded."cents";' in body(mirror("job", SOURCE, TARGET))
    assert 'SELECT "id", (amount * 100)::bigint FROM "public"."orders"' in body(mirror("job", SOURCE, TARGET))


@pytest.mark.parametrize("kind", ["numeric", "float", "text", "opaque"])
def test_a_key_of_which_equal_values_may_differ_is_written_too(kind: str) -> None:
    source = replace(SOURCE, key=Key((column("id", kind),), "x"))
    text = mirror("job", source, replace(TARGET, key=(column("id", kind),)))
    assert 'DO UPDATE SET "id" = excluded."id", "cents"' in body(text)


def test_columns_that_must_not_be_written_again_are_not() -> None:
    text = body(mirror("job", SOURCE, TARGET, keep={"cents"}))
    assert "DO NOTHING;" in text
    numeric = replace(SOURCE, key=Key((column("id", "numeric"),), "x"))
    text = body(mirror("job", numeric, replace(TARGET, overriding=True), always_identity={"id"}))
    assert "OVERRIDING SYSTEM VALUE" in text
    assert '"id" = excluded' not in text


def test_tombstones_hold_the_key_in_the_jobs_order() -> None:
    source = replace(SOURCE, key=Key((column("b"), column("a", "text", "text")), "x"))
    target = replace(TARGET, key=(column("x"), column("y", "text", "text")))
    text = body(mirror("job", source, target))
    assert "bury('job', ARRAY[key_0::text, key_1::text])" in text
    assert 'key_0 := OLD."b";' in text
    assert 'mirrored."x" = "' + dual_write.function_names("job")[0] + '".key_0' in text
    assert 'OLD."b" IS DISTINCT FROM NEW."b" OR OLD."a" IS DISTINCT FROM NEW."a"' in text


def test_where_is_asked_of_the_row_as_it_was_only_where_that_can_be_seen() -> None:
    source = replace(SOURCE, where="amount > 0")
    assert '(SELECT OLD.*) AS "orders" WHERE (amount > 0)' in body(mirror("job", source, TARGET))
    assert "OLD.*" not in body(mirror("job", source, TARGET, sees_old=False))
    assert "OLD.*" not in body(mirror("job", SOURCE, TARGET))


def test_a_truncation_never_truncates_the_target() -> None:
    text = body(mirror("job", replace(SOURCE, where="amount > 0"), TARGET), 1)
    assert "TRUNCATE TABLE" not in text
    assert 'DELETE FROM "public"."orders_v2" AS mirrored' in text
    assert "WHERE (amount > 0)" in text
    assert "bury('job', NULL)" in text


# -- in place ---------------------------------------------------------------------------------------------------------


def test_in_place_all_columns_come_from_one_row_and_only_where_the_job_is_about_it() -> None:
    text = fill("job", replace(SOURCE, where="amount > 0"), {"a": "b", "B b": "a + 1"}, "a IS NOT NULL")
    assert 'SELECT (b), (a + 1) INTO NEW."a", NEW."B b" FROM (SELECT NEW.*) AS "orders";' in body(text)
    assert 'IF EXISTS (SELECT FROM (SELECT NEW.*) AS "orders" WHERE (amount > 0)) THEN' in body(text)
    assert not text.buries


def test_in_place_what_may_be_computed_once_waits_for_a_row_that_is_not_done() -> None:
    text = body(fill("job", SOURCE, {"n": "n + 1", "m": "k"}, "marked", once={"n"}))
    assert "WHERE (marked) IS NOT TRUE" in text
    assert text.count('INTO NEW."n"') == 1
    assert 'SELECT (k) INTO NEW."m"' in text
    only = body(fill("job", SOURCE, {"n": "n + 1"}, "marked", once={"n"}))
    assert "ELSE" not in only


def test_in_place_our_own_sessions_are_passed_over() -> None:
    (trigger,) = fill("job", SOURCE, {"a": "b"}, "a IS NOT NULL").triggers
    assert (
        "WHEN (NOT pg_catalog.starts_with(pg_catalog.current_setting('application_name'), 'backfill/job/'))"
        in dual_write.create_trigger(trigger, SOURCE.table)[0]
    )


# -- the script -------------------------------------------------------------------------------------------------------


def test_the_script_is_one_transaction_with_a_short_queue() -> None:
    text = script(mirror("job", SOURCE, TARGET, partitions=3), owner="shop", ledger="CREATE SCHEMA backfill;")
    lines = [line for line in text.splitlines() if line and not line.startswith("--")]
    assert (lines[0], lines[-1]) == ("BEGIN;", "COMMIT;")
    assert text.count("COMMIT;") == 1
    assert text.index("CREATE SCHEMA") < text.index("GRANT USAGE") < text.index("CREATE OR REPLACE FUNCTION")
    assert text.index("lock_timeout = '150ms'") < text.index("LOCK TABLE") < text.index("CREATE OR REPLACE TRIGGER")
    assert "TRUNCATE of one partition" in text
    assert "TRUNCATE of one partition" not in script(mirror("job", SOURCE, TARGET), owner=None)
    assert "GRANT" not in script(fill("job", SOURCE, {"a": "b"}, "a"), owner="shop")
