"""The situations of the pages, each made on a real server.

A situation prepares its stage and may name steps, things that happen between two blocks of a page.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from engine.embedded import EmbeddedServer
from tests.operations.stage import JOB, OFF, SECOND, Stage

Situation = Callable[[Stage], None]
SITUATIONS: dict[str, Situation] = {}

SLOW = {"max_rows_per_s": 400, **OFF}
"""Time enough to look at a job of 20,000 rows."""

UNFELT = [{"read_latency": "off"}, {"commit_latency": "off"}]
"""What a page's psql would be felt by."""

CHUNK = {"max_rows": 50}
MOVING = "state = 'running' AND rows_done > 0 AND rows_per_s > 0 AND workers > 0"
ALL_READ = """NOT signals @> '[{"value": null}]'"""
BOTH_SIDES = ["DUAL_WRITE_MISSING"]
"""What the application declares that writes old and new."""

QUEUE = """
CREATE TABLE mails (id bigint, sent boolean NOT NULL DEFAULT false);
INSERT INTO mails SELECT g FROM generate_series(1, 500) g;
"""
QUEUE_SIGNAL = {"sql": {"name": "mail_queue", "query": "select count(*) from public.mails where not sent", "max": 100}}


def situation(name: str) -> Callable[[Situation], Situation]:
    """What a page calls it."""

    def add(make: Situation) -> Situation:
        assert name not in SITUATIONS
        SITUATIONS[name] = make
        return make

    return add


def slowly(stage: Stage, condition: str = MOVING, **keys: Any) -> None:
    """A job in place that is at work and stays so for a minute."""
    stage.shop()
    stage.spec(**{"pace": SLOW, "chunk": CHUNK} | keys)
    stage.work()
    stage.start("run", "orders.yaml", "--workers", "2")
    stage.until(condition)


# -- looking ----------------------------------------------------------------------------------------------------------


@situation("running")
def running(stage: Stage) -> None:
    """A job at work that listens to the usual signals."""
    stage.shop()
    signals = [
        {"read_latency": {"target": "20ms"}},
        {"commit_latency": {"target": "40ms"}},
        {"active_sessions": {"max": 40}},
    ]
    stage.spec(pace={"max_rows_per_s": 400, "signals": signals}, chunk=CHUNK)
    stage.start("run", "orders.yaml")
    stage.until(f"{MOVING} AND pace_valid AND jsonb_array_length(signals) = 4 AND {ALL_READ}")


@situation("several jobs")
def several(stage: Stage) -> None:
    """A ledger with a job in each state that an operator meets."""
    more = "".join(
        f"CREATE TABLE {table} (id bigint PRIMARY KEY, old int NOT NULL, new int);"
        f"INSERT INTO {table} SELECT g, g FROM generate_series(1, 5000) g; ANALYZE {table};"
        for table in ("carts", "events", "invoices", "users")
    )
    stage.shop(more=more + "UPDATE events SET old = 0 WHERE id = 4000;" + QUEUE)

    def spec(name: str, table: str, expression: str = "old", **keys: Any) -> None:
        given = {"name": name, "source": {"table": table}, "set": {"new": expression}, "pace": OFF}
        stage.spec(f"{name}.yaml", **given | keys)

    spec("carts-total", "carts")
    spec("events-day", "events", "86400 / old")
    spec("invoices-net", "invoices", pace={"signals": [QUEUE_SIGNAL, *UNFELT]})
    spec("users-email", "users", pace=SLOW, chunk=CHUNK)
    stage.spec(pace=SLOW, chunk=CHUNK)
    stage.run("run", "carts-total.yaml")
    stage.run("verify", "carts-total")
    stage.run("run", "events-day.yaml", code=7)
    stage.start("run", "users-email.yaml")
    stage.until(f"job = 'users-email' AND {MOVING}")
    stage.run("pause", "users-email", "--reason", "sale until eight")
    stage.start("run", "invoices-net.yaml")
    stage.until("job = 'invoices-net'")
    stage.start("run", "orders.yaml")
    stage.until("job = 'users-email' AND workers = 0")
    stage.until("job = 'invoices-net' AND held_by IS NOT NULL")
    stage.until(f"job = '{JOB}' AND {MOVING}")


@situation("at work")
def at_work(stage: Stage) -> None:
    """A job of two hosts at work, without signals."""
    slowly(stage, f"{MOVING} AND pace_valid AND workers >= 4")
    stage.steps["the workers have stopped"] = lambda: stage.until("workers = 0")
    stage.steps["the workers have heard"] = lambda: stage.until(f"{MOVING} AND workers >= 4")
    stage.steps["checkout is at work"] = lambda: beside_checkout(stage)
    stage.steps["an administrator ends its sessions"] = lambda: ended_by_hand(stage)


def beside_checkout(stage: Stage) -> None:
    """The orders are in force, and the pacer has seen that it is not alone."""
    stage.session(name="checkout").begin("SELECT pg_sleep(600);")
    seen = """signals @> '[{"name": "active_sessions", "value": 1}]'"""
    stage.until(f"{MOVING} AND limit_now_rows_per_s = 50 AND stage = 'steady' AND {seen}")


def ended_by_hand(stage: Stage) -> None:
    """``pg_terminate_backend`` of a session in the middle of a chunk."""
    in_a_chunk = f"wait_event_type = 'Lock' AND application_name LIKE 'backfill/{JOB}/w%'"
    holder = stage.session(name="checkout")
    holder("BEGIN; SELECT count(*) FROM (SELECT FROM orders WHERE cents IS NULL FOR UPDATE) rows_of_others;")
    stage.until(in_a_chunk, of="pg_stat_activity")
    stage.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {in_a_chunk}")
    holder("ROLLBACK;")
    stage.until("state = 'paused' AND workers = 0")


@situation("cancelled")
def cancelled(stage: Stage) -> None:
    """A job that somebody cancelled, with its workers gone."""
    slowly(stage)
    stage.run("cancel", JOB, "--reason", "wrong rounding")
    stage.until("workers = 0")


# -- standing still ---------------------------------------------------------------------------------------------------


@situation("held")
def held(stage: Stage) -> None:
    """A signal of the user's own is over its maximum."""
    stage.shop(more=QUEUE)
    stage.spec(pace={"max_rows_per_s": 400, "signals": [QUEUE_SIGNAL, *UNFELT]}, chunk=CHUNK)
    stage.start("run", "orders.yaml")
    stage.until("held_by = 'mail_queue'")
    stage.steps["the order has arrived"] = lambda: stage.until(f"held_by IS NULL AND {MOVING}")
    stage.steps["it is held again"] = lambda: stage.until("held_by = 'mail_queue'")

    def broken() -> None:
        stage.sql("ALTER TABLE mails RENAME TO letters")
        stage.until("held_by = 'mail_queue' AND pace_reason NOT LIKE '%>%'")

    stage.steps["its query fails"] = broken


@situation("outside its window")
def outside_its_window(stage: Stage) -> None:
    """A job that may work at other hours."""
    stage.shop()
    opens = datetime.now(UTC) + timedelta(hours=3)
    window = f"{opens:%H:00}-{opens + timedelta(hours=1):%H:30} UTC"
    stage.spec(pace={"windows": [window], **OFF})
    stage.start("run", "orders.yaml")
    stage.until("held_by IS NOT NULL")
    stage.environment["WINDOW"] = window


@situation("nobody works on it")
def nobody(stage: Stage) -> None:
    """A job whose only process was stopped."""
    stage.shop()
    stage.spec(pace=SLOW, chunk=CHUNK)
    runner = stage.start("run", "orders.yaml")
    stage.until(MOVING)
    runner.signal(signal.SIGTERM)
    runner.wait()
    stage.steps["a worker has come"] = lambda: (stage.work(), stage.until(MOVING))


@situation("frozen")
def frozen(stage: Stage) -> None:
    """The process that paces the job stands still, another works."""
    stage.shop()
    stage.spec(pace=SLOW, chunk=CHUNK)
    pacer = stage.start("run", "orders.yaml")
    stage.until(f"{MOVING} AND pace_valid")
    pacer.signal(signal.SIGSTOP)
    stage.sql("UPDATE backfill.pacer SET valid_until = clock_timestamp() - interval '1 s'")

    def another() -> None:
        stage.gone()
        stage.work()
        stage.until(f"{MOVING} AND pace_valid")

    stage.steps["another process has taken over"] = another


@situation("left aside")
def left_aside(stage: Stage) -> None:
    """A copy whose worker does not know the source."""
    two_databases(stage)
    runner = stage.start("run", "orders.yaml")
    stage.until(MOVING, database="warehouse")
    runner.signal(signal.SIGTERM)
    runner.wait()
    stage.environment.pop("SOURCE_DSN")


def two_databases(stage: Stage, *, on: EmbeddedServer | None = None, **keys: Any) -> None:
    """The shop, and a warehouse that it is copied to."""
    stage.shop()
    if on is None:
        stage.database("warehouse", SECOND)
    stage.environment |= {
        "SOURCE_DSN": stage.server.dsn("shop"),
        "TARGET_DSN": (on or stage.server).dsn("warehouse"),
    }
    stage.leads_to("warehouse", on=on)
    ends = {
        "source": {"dsn": "${SOURCE_DSN}", "table": "orders"},
        "target": {"dsn": "${TARGET_DSN}", "table": "orders_v2"},
    }
    stage.spec_into(**ends | {"pace": SLOW, "chunk": CHUNK, "accept": BOTH_SIDES} | keys)


@situation("late")
def late(stage: Stage) -> None:
    """``finish_by`` is nearer than the job's end."""
    soon = datetime.now(UTC) + timedelta(seconds=15)
    slowly(
        stage,
        f"{MOVING} AND deadline IS NOT NULL",
        pace=SLOW | {"finish_by": soon.isoformat(timespec="seconds")},
    )
    stage.steps["the forecast is made anew"] = lambda: stage.until("deadline IS NULL OR state = 'done'")


# -- crashes ----------------------------------------------------------------------------------------------------------


@situation("crashed worker")
def crashed_worker(stage: Stage) -> None:
    """The only worker was killed a moment ago."""
    stage.shop()
    stage.spec(pace=SLOW, chunk=CHUNK)
    worker = stage.start("run", "orders.yaml")
    stage.until(MOVING)
    worker.kill()
    stage.steps["fifteen seconds later"] = stage.gone

    def faster() -> None:
        stage.until(MOVING)
        stage.run("pace", JOB, "--no-limit")
        stage.run("pace", JOB, "--max-rows-per-s", "100000")

    stage.steps["it goes on"] = faster


@situation("crashed server")
def crashed_server(stage: Stage) -> None:
    """The server crashes while a job is at work."""
    stage.shop(more=f"{SECOND};")
    stage.spec_into(pace={"max_rows_per_s": 4000, **OFF}, chunk=CHUNK, accept=BOTH_SIDES)
    stage.start("run", "orders.yaml")
    stage.until(MOVING)
    stage.server.stop("immediate")

    def again() -> None:
        stage.server.start()
        stage.until(f"{MOVING} AND waiting IS DISTINCT FROM 'server cannot be reached'")
        stage.run("pace", JOB, "--max-rows-per-s", "100000")

    stage.steps["the server is up again"] = again


# -- failover and restore ---------------------------------------------------------------------------------------------


@situation("failed over")
def failed_over(stage: Stage) -> None:
    """The target's server died, and its standby was promoted; ``TARGET_DSN`` is an address that follows the primary."""
    two_databases(stage)
    standby = stage.server.make_standby()
    stage.at_end(standby.discard)
    runner = stage.start("run", "orders.yaml")
    stage.until(MOVING, database="warehouse")
    runner.signal(signal.SIGTERM)
    runner.wait()
    replayed(stage.server, standby)
    standby.promote()
    stage.environment |= {"SOURCE_DSN": stage.server.dsn("shop"), "TARGET_DSN": standby.dsn("warehouse")}
    stage.leads_to("warehouse", on=standby)
    stage.spec_into(
        source={"dsn": "${SOURCE_DSN}", "table": "orders"},
        target={"dsn": "${TARGET_DSN}", "table": "orders_v2"},
        pace=OFF,
        accept=BOTH_SIDES,
    )


def replayed(primary: EmbeddedServer, standby: EmbeddedServer) -> None:
    """Wait until the standby has all."""
    here = primary.sql("SELECT pg_current_wal_flush_lsn()")
    while standby.sql(f"SELECT pg_last_wal_replay_lsn() >= '{here}'") != "t":
        standby.sql("SELECT pg_sleep(0.02)")


@situation("an older ledger")
def older_ledger(stage: Stage) -> None:
    """Somebody dumped schema ``backfill`` in mid-job, lost it later, and has the dump."""
    stage.shop()
    stage.spec(pace=SLOW, chunk=CHUNK)
    runner = stage.start("run", "orders.yaml")
    stage.until(MOVING)
    stage.shell(["pg_dump --schema backfill > ledger.sql"])
    rows = int(stage.sql("SELECT rows_done FROM backfill.status"))
    stage.until(f"rows_done > {rows}")
    runner.signal(signal.SIGTERM)
    runner.wait()
    stage.sql("DROP SCHEMA backfill CASCADE")
    stage.spec(pace=OFF)
    stage.steps["the dump is loaded"] = stage.gone


@situation("a restored table")
def restored_table(stage: Stage) -> None:
    """The target's table was lost and loaded from an older dump, while the ledger was not."""
    stage.shop(rows=5000, more=f"{SECOND};")
    stage.spec_into(pace=OFF, accept=BOTH_SIDES)
    stage.run("run", "orders.yaml")
    stage.sql("DELETE FROM orders_v2 WHERE id > 4000")
    stage.shell(["pg_dump --table orders_v2 > table.sql"])
    stage.sql("DROP TABLE orders_v2")


# -- locks ------------------------------------------------------------------------------------------------------------


@situation("older transaction")
def older_transaction(stage: Stage) -> None:
    """Somebody forgot to commit before the job was created."""
    stage.shop(more="CREATE TABLE notes (text text);")
    forgotten = stage.session(name="forgotten report")
    forgotten("BEGIN; INSERT INTO notes VALUES ('later');")
    stage.spec(pace=SLOW, chunk=CHUNK)
    stage.start("run", "orders.yaml")
    stage.until("waiting LIKE 'older%'")
    stage.steps["it begins"] = lambda: stage.until(MOVING)


@situation("waiting DDL")
def waiting_ddl(stage: Stage) -> None:
    """An ALTER TABLE waits for somebody idle in a transaction, and everybody else, the job too, waits behind it."""
    stage.shop()
    stage.spec(pace=SLOW, chunk=CHUNK, workers=1, lock_timeout="100ms")
    stage.start("run", "orders.yaml")
    stage.until(MOVING)
    idle = stage.session(name="forgotten report")
    idle("BEGIN; SELECT count(*) FROM orders;")
    migration = stage.session(name="migration")
    migration.begin("ALTER TABLE orders ADD COLUMN note text;")
    stage.until("wait_event_type = 'Lock' AND application_name = 'migration'", of="pg_stat_activity")
    stage.until("retries > 0 AND waiting LIKE 'retry%'")

    def through() -> None:
        migration("SELECT 1;")
        stage.until(f"{MOVING} AND waiting IS DISTINCT FROM 'retry after 55P03'")

    stage.steps["the ALTER TABLE is through"] = through


def locked_out(stage: Stage) -> None:
    """Somebody has locked the table, for readers too, and gone to lunch."""
    maintenance = stage.session(name="forgotten maintenance")
    maintenance("BEGIN; LOCK TABLE orders;")


@situation("waiting probe")
def waiting_probe(stage: Stage) -> None:
    """The job listens to its usual signals beside an application, and somebody locks the table."""
    stage.haste(engine__pace__quiet__BASELINE_S=0.5)
    stage.shop()
    signals = [{"read_latency": {"target": "20ms"}}, {"commit_latency": "off"}]
    stage.spec(pace={"max_rows_per_s": 400, "signals": signals}, chunk=CHUNK | {"min_rows": 5}, workers=1)
    stage.session(name="shop").begin("SELECT 1 \\watch 0.2")
    stage.start("run", "orders.yaml")
    stage.until(f'{MOVING} AND NOT signals @> \'[{{"baseline": null, "name": "read_latency"}}]\'')
    locked_out(stage)
    stage.until("held_by = 'read_latency'")
    stage.steps["the probe is answered"] = lambda: stage.until(f"held_by IS NULL AND {MOVING}")


@situation("a lock for too long")
def lock_for_too_long(stage: Stage) -> None:
    """A table stays locked until the job gives up: after a second in place of a quarter of an hour."""
    stage.haste(engine__flow__worker__PATIENCE_S=1)
    slowly(stage, workers=1, lock_timeout="100ms")
    locked_out(stage)
    stage.until("state = 'failed'")
    stage.steps["it moves again"] = lambda: stage.until(MOVING)


@situation("changed schema")
def changed_schema(stage: Stage) -> None:
    """A table that got another column while a job was at work on it."""
    slowly(stage)
    stage.sql("ALTER TABLE orders ADD COLUMN note text")
    stage.start("run", "orders.yaml")  # looks at the tables when it claims a span
    stage.until("state = 'failed' AND workers = 0")
    stage.steps["it goes on"] = lambda: (stage.start("run", "orders.yaml"), stage.until(MOVING))


@situation("somebody waits for us")
def somebody_waits(stage: Stage) -> None:
    """The application waits for a row that a chunk of the job has locked, for as long as a trigger makes it last."""
    more = """
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END $$;
    CREATE TRIGGER audit BEFORE UPDATE OF cents ON orders FOR EACH ROW EXECUTE FUNCTION audit();
    """
    stage.shop(rows=2000, more=more)
    stage.spec(
        workers=1, chunk={"min_rows": 200, "max_rows": 200}, accept=["TRIGGERS_ON_SOURCE", "TRIGGERS_ON_TARGET"],
        pace={"signals": UNFELT},
    )  # fmt: skip
    stage.start("run", "orders.yaml")
    stage.until("query ILIKE '%update%orders%' AND application_name LIKE 'backfill/%/w%'", of="pg_stat_activity")
    shopper = stage.session(name="checkout")
    shopper("UPDATE orders SET amount = amount WHERE id = 1;")
    stage.until("retries > 0")


# -- room -------------------------------------------------------------------------------------------------------------


@situation("archiver fails")
def archiver_fails(stage: Stage) -> None:
    """WAL files pile up because they cannot be archived."""
    stage.server.configure({"archive_command": "/bin/false"})
    stage.server.reload()

    def mended() -> None:
        stage.server.configure({"archive_command": "/bin/true"})
        stage.server.reload()

    stage.at_end(mended)
    while stage.server.sql("SHOW archive_command") != "/bin/false":
        stage.server.sql("SELECT pg_sleep(0.02)")
    stage.shop(more="CREATE TABLE noise (x int);")
    for _ in range(4):
        stage.sql("INSERT INTO noise VALUES (1); SELECT pg_switch_wal()")
    stage.spec(pace={"max_rows_per_s": 400, "signals": [{"wal_archive": {"max": 2}}, *UNFELT]}, chunk=CHUNK)
    stage.start("run", "orders.yaml")
    stage.until("held_by = 'wal_archive'")

    def archived() -> None:
        mended()
        stage.until(f"held_by IS NULL AND {MOVING}")

    stage.steps["the archiver works again"] = archived


@situation("abandoned slot")
def abandoned_slot(stage: Stage) -> None:
    """A replication slot that nobody reads keeps WAL."""
    stage.shop(more="CREATE TABLE noise (x text);")
    stage.sql("SELECT pg_create_physical_replication_slot('old_standby', true)")
    stage.at_end(
        lambda: stage.server.sql(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'old_standby'"
        )
    )
    stage.sql("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 4000)")
    stage.spec(pace={"max_rows_per_s": 400, "signals": [{"slot_retention": {"max": "2MiB"}}, *UNFELT]}, chunk=CHUNK)
    stage.start("run", "orders.yaml")
    stage.until("held_by = 'slot_retention'")
    stage.steps["the slot is gone"] = lambda: stage.until(f"held_by IS NULL AND {MOVING}")


@situation("growing table")
def growing_table(stage: Stage) -> None:
    """A table has grown by its budget, and an old snapshot keeps its dead rows."""
    stage.shop(rows=250_000, more="ALTER TABLE orders SET (autovacuum_enabled = off);")
    stage.spec(bloat={"max_growth": "10%"}, pace=OFF)
    reader = stage.session(name="nightly report")
    stage.start("run", "orders.yaml")
    stage.until("state = 'running'")
    reader("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;")
    stage.until("held_by = 'table_growth' AND pace_reason LIKE '%can remove nothing%'")

    def over() -> None:
        stage.until("held_by IS NULL")

    stage.steps["the report is over"] = over


@situation("lagging standby")
def lagging_standby(stage: Stage) -> None:
    """A standby that does not replay what the primary writes."""
    standby = stage.server.make_standby()
    stage.at_end(standby.discard)
    stage.shop()
    stage.spec(pace={"max_rows_per_s": 400, "signals": [{"replication_lag": {"max": "2s"}}, *UNFELT]}, chunk=CHUNK)
    stage.start("run", "orders.yaml")
    stage.until(MOVING)
    standby.sql("SELECT pg_wal_replay_pause()")
    stage.until("held_by = 'replication_lag'")

    def catches_up() -> None:
        standby.sql("SELECT pg_wal_replay_resume()")
        stage.until(f"held_by IS NULL AND {MOVING}")

    stage.steps["the standby catches up"] = catches_up

    def gone() -> None:
        standby.stop()
        stage.until("held_by = 'replication_lag'")

    stage.steps["the standby is shut down"] = gone


# -- rows -------------------------------------------------------------------------------------------------------------

PRICES = """
ALTER TABLE orders ADD COLUMN price text;
UPDATE orders SET price = amount::text;
UPDATE orders SET price = 'free' WHERE id IN (777, 1888);
VACUUM ANALYZE orders;
"""


@situation("a bad row")
def bad_row(stage: Stage) -> None:
    """A job that stopped at a value that is no number."""
    stage.shop(rows=2000, more=PRICES)
    stage.spec(set={"cents": "(price::numeric * 100)::bigint"}, workers=1, pace=OFF)
    stage.run("run", "orders.yaml", code=7)


@situation("rows set aside")
def rows_set_aside(stage: Stage) -> None:
    """A job that is done but for two rows."""
    stage.shop(rows=2000, more=PRICES)
    stage.spec(set={"cents": "(price::numeric * 100)::bigint"}, workers=1, pace=OFF, errors={"max_quarantined": 10})
    stage.run("run", "orders.yaml")


@situation("differing rows")
def differing_rows(stage: Stage) -> None:
    """A target in which somebody changed a row and lost another one, and that holds one that is nobody's."""
    stage.shop(rows=2000, more=f"{SECOND};")
    stage.spec_into(pace=OFF, accept=BOTH_SIDES)
    stage.run("run", "orders.yaml")
    stage.sql(
        "UPDATE orders_v2 SET cents = 0 WHERE id = 777; DELETE FROM orders_v2 WHERE id = 1888;"
        "INSERT INTO orders_v2 VALUES (999999, 1, 100)"
    )


@situation("finished")
def finished(stage: Stage) -> None:
    """A job with triggers of ours that is done and verified."""
    stage.shop(rows=2000, more=f"{SECOND};")
    stage.spec_into(pace=OFF)
    stage.run("dualwrite", "orders.yaml", "--install")
    stage.run("run", "orders.yaml")
    stage.run("verify", "orders.yaml")


@situation("not finished")
def not_finished(stage: Stage) -> None:
    """A job with triggers of ours that is at work."""
    stage.shop(more=f"{SECOND};")
    stage.spec_into(pace=SLOW, chunk=CHUNK)
    stage.run("dualwrite", "orders.yaml", "--install")
    stage.start("run", "orders.yaml")
    stage.until(MOVING)
    stage.steps["the workers have stopped"] = lambda: stage.until("workers = 0")
