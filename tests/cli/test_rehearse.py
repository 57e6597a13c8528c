"""``backfill rehearse``: what it prints, how it ends, and that nothing is left whatever happens to it."""

from __future__ import annotations

import signal
from pathlib import Path

from engine.plan.rehearsal import LEVEL
from tests.cli.conftest import Cli, eventually, wrong_rows
from tests.support.databases import FreshDatabase, TwoDatabases

FORECAST = {
    "level", "chunk_rows", "rows_written", "seconds", "wal_bytes", "heap_growth_bytes", "index_growth_bytes",
    "longest_lock_s", "chunks",
}  # fmt: skip
"""The fields of the forecast, as users' scripts know them."""

PATIENT = {"target": "10s"}
"""On the busiest machine a chunk then has as many rows as on an idle one."""

FIGURES = FORECAST - {"level", "chunk_rows", "chunks"}


def nothing_was_made(shop: FreshDatabase) -> bool:
    return shop.sql("SELECT to_regnamespace('backfill') IS NULL").strip() == "t"


def test_it_shows_what_was_seen_and_what_to_expect(backfill: Cli, shop: FreshDatabase, spec) -> None:
    shown = backfill("rehearse", spec(chunk=PATIENT))
    assert (shown.code, shown.err) == (0, "")
    for label in ("rehearsed", "chunks took", "locks held", "heap-only", "time", "WAL", "table grows", "longest lock"):
        assert f"\n  {label} " in shown.out, label
    assert "18 chunks in 6 places, 18.0 k rows looked at" in shown.out
    assert "18.6 k dead row versions for VACUUM" in shown.out
    assert "80% intervals over 18 chunks" in shown.out
    assert "everything was rolled back" in shown.out
    assert wrong_rows(shop) == 20000
    assert nothing_was_made(shop)


def test_programs_get_every_chunk_and_every_figure_with_its_interval(backfill: Cli, shop: FreshDatabase, spec) -> None:
    done = backfill("rehearse", spec(chunk=PATIENT), "--chunks", "1", "--json")
    assert done.code == 0
    seen = done.json
    assert (seen["job"], seen["mode"], seen["rows_estimated"], seen["refused"]) == ("cents", "update", 20000, False)
    assert len(seen["rehearsal"]["chunks"]) == seen["rehearsal"]["spans"] == 8
    assert seen["rehearsal"]["dead_rows"] == 8 * (100 + 1000)
    assert seen["rehearsal"]["failed"] == []
    assert set(seen["forecast"]) == FORECAST
    assert seen["forecast"]["level"] == LEVEL
    for name in FIGURES:
        figure = seen["forecast"][name]
        assert 0 < figure["low"] <= figure["expected"] <= figure["high"], name


def test_a_copy_says_whose_wal_it_counts(backfill: Cli, two_shops: TwoDatabases, copy_job: Path) -> None:
    shown = backfill("rehearse", copy_job)
    assert shown.code == 0
    assert "with what others wrote meanwhile" in shown.out
    assert two_shops.target.sql("SELECT count(*) FROM orders_v2").strip() == "0"
    assert nothing_was_made(two_shops.target)


def test_a_job_that_would_be_refused_is_not_rehearsed(backfill: Cli, shop: FreshDatabase, spec) -> None:
    path = spec(set={"cents": "no_such_column + 1"})
    refused = backfill("rehearse", path)
    assert refused.code == 4
    assert "refuse  EXPRESSION_INVALID" in refused.out
    assert "dead row versions" not in refused.out
    as_json = backfill("rehearse", path, "--json").json
    assert (as_json["refused"], as_json["rehearsal"], as_json["forecast"]) == (True, None, None)


def test_a_chunk_that_would_stop_the_job_is_the_exit_code(backfill: Cli, shop: FreshDatabase, spec) -> None:
    shop.sql("ALTER TABLE orders ADD note text NOT NULL DEFAULT '1'; UPDATE orders SET note = 'canary' WHERE id = 150")
    path = spec(set={"cents": "note::bigint"})
    failed = backfill("rehearse", path)
    assert failed.code == 7
    assert "1 chunk failed: 22P02 a value cannot be read as its type" in failed.out
    assert "the job would stop" in failed.out
    as_json = backfill("rehearse", path, "--json")
    assert as_json.code == 7
    assert [(f["sqlstate"], f["consequence"]) for f in as_json.json["rehearsal"]["failed"]] == [("22P02", "stop")]
    assert "canary" not in failed.out + failed.err + as_json.out + as_json.err
    assert wrong_rows(shop) == 20000


def test_a_lock_that_is_taken_stops_nothing(backfill: Cli, shop: FreshDatabase, spec) -> None:
    shop.sql("BEGIN; SELECT FROM orders WHERE id = 150 FOR UPDATE; PREPARE TRANSACTION 'somebody'")
    try:
        shown = backfill("rehearse", spec(lock_timeout="100ms"))
    finally:
        shop.sql("ROLLBACK PREPARED 'somebody'")
    assert shown.code == 0
    assert "1 chunk failed: 55P03" in shown.out
    assert "the job would try again" in shown.out


def test_an_empty_table_is_said_to_be_empty(backfill: Cli, shop: FreshDatabase, spec) -> None:
    shop.sql("TRUNCATE orders")
    shown = backfill("rehearse", spec())
    assert shown.code == 0
    assert "there are no rows" in shown.out
    assert backfill("rehearse", spec(), "--json").json["forecast"] is None


def test_a_rehearsal_that_is_killed_leaves_nothing(backfill: Cli, shop: FreshDatabase, spec) -> None:
    shop.sql(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backfill/cents/rehearse'"
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        running = backfill.start("rehearse", spec(accept=["TRIGGERS_ON_SOURCE", "TRIGGERS_ON_TARGET"]))
        eventually(
            lambda one=running: (
                one.process.poll() is not None or shop.sql(f"{ours} AND backend_xid IS NOT NULL").strip() != "0"
            ),
            "a chunk that writes",
        )
        running.signal(how)
        assert running.end().code != 0, how
        eventually(lambda: shop.sql(ours).strip() == "0", "the end of its sessions")
        assert wrong_rows(shop) == 20000
        assert shop.sql("SELECT count(*) FROM pg_prepared_xacts").strip() == "0"
        assert nothing_was_made(shop)


def test_a_single_chunk_is_not_said_to_be_sure(backfill: Cli, shop: FreshDatabase, spec) -> None:
    shop.sql("DELETE FROM orders WHERE id > 1000; VACUUM ANALYZE orders")
    assert "cannot say how sure" in backfill("rehearse", spec(), "--chunks", "1").out
