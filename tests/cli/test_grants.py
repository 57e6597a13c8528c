"""``backfill grants``: a role that is nobody special works with exactly what the script gives, and with no line less."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from engine.db import Database
from engine.events import Event
from engine.fleet.reporter import Reporter
from engine.ledger import Ledger
from engine.ledger.requests import Request
from engine.model import Side
from tests.cli.conftest import Cli, wrong_rows
from tests.support.databases import FreshDatabase, Servers, TwoDatabases, create_database, drop_database, on_each_major
from tests.support.rights import NOBODY_ELSE, NOR_IN_THE_LEDGER
from tests.support.situation_transforms import named

_serial = itertools.count()


@pytest.fixture
def make_role(request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """``make_role(database, "LOGIN")``: roles that are gone afterwards, with whatever they were granted."""
    made: list[tuple[FreshDatabase, str, list[FreshDatabase]]] = []

    def make(database: FreshDatabase, options: str = "", *others: FreshDatabase) -> str:
        name = f"role_{os.getpid()}_{next(_serial)}"
        database.sql(f"CREATE ROLE {name} {options}")
        made.append((database, name, [database, *others]))
        return name

    yield make
    for database, name, places in reversed(made):
        for place in places:
            place.sql(f"DROP OWNED BY {name} CASCADE")
        database.sql(f"DROP ROLE {name}")


def as_user(database: FreshDatabase, user: str) -> str:
    return database.server.dsn(database.name, user=user)


def nobody_else(*databases: FreshDatabase) -> None:
    """What PostgreSQL allows everybody at first: taken away."""
    for database in databases:
        database.sql(NOBODY_ELSE.format(database=database.name))


# -- enough -----------------------------------------------------------------------------------------------------------


@on_each_major
def test_a_login_that_inherits_nothing_does_everything_in_place_with_nothing_but_the_script(
    backfill: Cli, shop: FreshDatabase, spec, make_role, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, login = make_role(shop), make_role(shop, "LOGIN NOINHERIT")
    nobody_else(shop)
    shop.sql("ALTER TABLE orders ADD CONSTRAINT odd CHECK (cents <> 7)")
    path = spec(role=mover, errors={"max_quarantined": 1})
    script = backfill("grants", path, "--login", login)
    assert script.code == 0
    monkeypatch.setenv("BACKFILL_DSN", as_user(shop, login))
    assert backfill("run", path).code != 0
    shop.sql(script.out)
    for command in (["validate", path], ["plan", path], ["rehearse", path, "--chunks", "1"]):
        assert backfill(*command).code == 0, command
    done = backfill("run", path, "--json")
    assert (done.code, done.json["rows"], done.json["quarantined"]) == (0, 19999, 1), done.err
    shop.sql("ALTER TABLE orders DROP CONSTRAINT odd")
    assert backfill("quarantine", "list", "cents").code == 0
    assert backfill("quarantine", "retry", "cents", "--all").code == 0
    assert wrong_rows(shop) == 0
    shop.sql("UPDATE orders SET cents = 1 WHERE id IN (5, 500)")
    for code, command in (
        (6, ["verify", "cents", "--settle", "0s"]),
        (0, ["verify", "cents", "--repair", "--settle", "0s"]),
        (0, ["verify", "cents", "--settle", "0s"]),
        (7, ["gate", "cents"]),  # nothing fills rows that are inserted
        (0, ["dualwrite", path, "--print"]),
        (7, ["dualwrite", path, "--check"]),
        (0, ["status", "cents"]),
        (0, ["list"]),
        (0, ["wait", "cents"]),
        (0, ["history", "cents"]),
        (0, ["doctor"]),
        (0, ["restart", "cents", "--yes"]),
        (0, ["run", path]),
        (0, ["cleanup", "cents", "--yes"]),
    ):
        seen = backfill(*command)
        assert seen.code == code, (command, seen.out, seen.err)
    assert wrong_rows(shop) == 0


def test_orders_from_elsewhere_and_from_psql_need_no_more_than_the_script(
    backfill: Cli, shop: FreshDatabase, slow_job: Path, make_role, until, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = make_role(shop, "LOGIN")
    nobody_else(shop)
    shop.sql(backfill("grants", slow_job, "--to", role).out)
    monkeypatch.setenv("BACKFILL_DSN", as_user(shop, role))
    running = backfill.start("run", str(slow_job), "--json")
    until(shop, "state = 'running' AND rows_done > 0")
    for command in (["pace", "cents", "--max-rows-per-s", "1500"], ["pause", "cents"], ["resume", "cents"]):
        assert backfill(*command).code == 0, command
    by_hand = f"SET ROLE {role}; SELECT backfill.pause('cents'), backfill.pace('cents', 1e6), backfill.resume('cents')"
    shop.sql(by_hand)
    assert running.end().code == 0
    backfill("restart", "cents", "--yes")
    shop.sql("UPDATE orders SET cents = NULL")
    running = backfill.start("run", str(slow_job), "--json")
    until(shop, "state = 'running'")
    working = backfill.start("worker", "--once")
    assert backfill("cancel", "cents").code == 0
    assert running.end().code == 8
    assert working.end().code in (0, 8)


def test_one_role_copies_between_databases_with_nothing_but_the_script(
    backfill: Cli, two_shops: TwoDatabases, copy_job: Path, make_role, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = make_role(two_shops.source, "LOGIN", two_shops.target)
    nobody_else(two_shops.source, two_shops.target)
    two_shops.target.sql("INSERT INTO orders_v2 VALUES (4000, 1, 100)")  # one chunk goes through the staging table
    script = backfill("grants", copy_job, "--to", role).out
    here, _, there = script.partition(f"-- In database {two_shops.target.name}")
    two_shops.source.sql(here)
    two_shops.target.sql(f"-- {there}")
    monkeypatch.setenv("SOURCE_DSN", as_user(two_shops.source, role))
    monkeypatch.setenv("TARGET_DSN", as_user(two_shops.target, role))
    assert backfill("rehearse", copy_job, "--chunks", "1").code == 0
    done = backfill("run", copy_job, "--json")
    assert (done.code, done.json["rows"]) == (0, 4999), done.err
    repaired = backfill("verify", copy_job, "--repair", "--settle", "0s", "--json")
    assert (repaired.code, repaired.json["repaired"]) == (0, 1), repaired.err


def test_types_collations_and_sequences_of_other_schemas_are_in_the_script(
    backfill: Cli, database: FreshDatabase, spec, make_role, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.sql(
        'CREATE SCHEMA "The Types"; CREATE SCHEMA app; CREATE SCHEMA numbers; CREATE SEQUENCE numbers.odd;'
        """CREATE TYPE "The Types".mood AS ENUM ('sad', 'ok');"""
        "CREATE TABLE app.src (k \"The Types\".mood PRIMARY KEY, v int); INSERT INTO app.src VALUES ('sad', 1), ('ok', 2);"
        "CREATE TABLE app.dst (k \"The Types\".mood PRIMARY KEY, v int, own bigserial, n int DEFAULT nextval('numbers.odd'),"
        " id int GENERATED ALWAYS AS IDENTITY)"
    )
    role, login = make_role(database), make_role(database, "LOGIN NOINHERIT")
    nobody_else(database)
    path = spec(name="moods", set=None, source={"table": "app.src"}, target={"table": "app.dst"}, role=role)
    monkeypatch.setenv("BACKFILL_DSN", database.dsn)
    script = backfill("grants", path, "--login", login).out
    assert "dst_id_seq" not in script, "an identity needs no right on its sequence"
    database.sql(script)
    monkeypatch.setenv("BACKFILL_DSN", as_user(database, login))
    done = backfill("run", path)
    assert done.code == 0, done.err
    assert database.sql("SELECT count(*), count(own), count(n) FROM app.dst").strip() == "2|2|2"


def test_a_job_that_is_there_needs_no_file(backfill: Cli, shop: FreshDatabase, spec, make_role) -> None:
    backfill("run", spec())
    script = backfill("grants", "cents", "--to", "anybody").out
    assert 'GRANT SELECT, UPDATE ON "public"."orders" TO "anybody";' in script
    assert "CREATE SCHEMA backfill" not in script
    assert backfill("grants", "cents").code == 2, "nobody to grant to"


def test_grants_changes_nothing(backfill: Cli, shop: FreshDatabase, spec) -> None:
    assert "CREATE SCHEMA backfill" in backfill("grants", spec(), "--to", "anybody").out
    assert shop.sql("SELECT to_regnamespace('backfill') IS NULL").strip() == "t"


@on_each_major
def test_signals_and_growth_ask_for_their_rights_and_the_script_gives_them_to_who_connects(
    backfill: Cli, shop: FreshDatabase, spec, make_role
) -> None:
    role, login = make_role(shop), make_role(shop, "LOGIN NOINHERIT")
    named = [{"wal_archive": {}}, {"active_sessions": {"max": 40}}, {"autovacuum": {}}, {"replication_lag": "off"}]
    path = spec(pace={"signals": named}, bloat={"max_growth": "20%"})
    script = backfill("grants", path, "--to", role, "--login", login).out
    assert (
        f'GRANT pg_monitor TO "{login}" WITH INHERIT TRUE;  -- needs a superuser; for the signals wal_archive' in script
    )
    assert f'GRANT pg_read_all_stats TO "{login}" WITH' in script
    assert "for the signals active_sessions, autovacuum\n" in script
    shop.sql(script)
    assert shop.sql(f"SELECT pg_has_role('{login}', 'pg_monitor', 'USAGE')").strip() == "t"
    assert shop.sql(f"SELECT pg_has_role('{role}', 'pg_monitor', 'USAGE')").strip() == "f"
    if int(shop.sql("SHOW server_version_num")) >= 170000:
        assert shop.sql(f"SELECT has_table_privilege('{role}', 'orders', 'MAINTAIN')").strip() == "t"
    else:
        assert "MAINTAIN" not in script
        assert "only a member of the table's owner may vacuum it" in script


# -- repair -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def unguarded(shop: FreshDatabase, spec) -> Callable[[str], Path]:
    """``unguarded(role)``: a job of one database that neither changes nor deletes rows of its target."""
    shop.sql("CREATE TABLE orders_v2 (id bigint PRIMARY KEY, amount numeric(12,2), cents bigint)")
    nobody_else(shop)
    return lambda role: spec(
        set=None, target={"table": "orders_v2"}, deletes="none", role=role, pace={"signals": "off"}
    )


def test_what_a_repair_takes_beyond_the_job_is_granted_only_to_who_asks(
    backfill: Cli, shop: FreshDatabase, unguarded, make_role, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = make_role(shop, "LOGIN")
    path = unguarded(role)
    plain, more = backfill("grants", path).out, backfill("grants", path, "--repair").out
    extra = f'GRANT DELETE, UPDATE ON "public"."orders_v2" TO "{role}";'
    assert f"\n--   {extra}" in plain
    assert f"\n{extra}" not in plain
    assert f"\n{extra}" in more
    shop.sql(plain)
    monkeypatch.setenv("BACKFILL_DSN", as_user(shop, role))
    assert backfill("run", path).code == 0
    shop.sql("UPDATE orders_v2 SET amount = 0 WHERE id = 5; DELETE FROM orders_v2 WHERE id = 6")
    assert backfill("verify", path, "--settle", "0s").code == 6, "to look takes no more than the job"
    seen = "SELECT state, verification_id FROM backfill.job"
    before = shop.sql(seen)
    refused = backfill("verify", path, "--settle", "0s", "--repair")
    assert refused.code == 4
    assert f"to repair, role {role} lacks DELETE, UPDATE on public.orders_v2" in refused.err
    assert "backfill grants --repair" in refused.err
    assert shop.sql(seen) == before
    shop.sql(extra)
    assert backfill("verify", path, "--settle", "0s", "--repair").code == 0


# -- dual-write -------------------------------------------------------------------------------------------------------


def commented(script: str) -> str:
    """The lines that dual-write takes, which stand in the script as comments."""
    return "\n".join(line.removeprefix("--   ") for line in script.splitlines() if line.startswith("--   GRANT"))


@on_each_major
@pytest.mark.parametrize("named", [True, False], ids=["role in the spec", "no role in the spec"])
def test_the_sources_owner_installs_and_removes_triggers_with_the_lines_that_are_comments(
    backfill: Cli, shop: FreshDatabase, spec, make_role, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    shop.sql("CREATE TABLE orders_v2 (id bigint PRIMARY KEY, amount numeric(12,2), cents bigint)")
    role, owner, application = make_role(shop, "LOGIN"), make_role(shop, "LOGIN"), make_role(shop)
    shop.sql(f"ALTER TABLE orders OWNER TO {owner}; GRANT INSERT, DELETE, SELECT ON orders TO {application}")
    nobody_else(shop)
    shop.sql(f'GRANT CONNECT ON DATABASE "{shop.name}" TO {owner}; GRANT USAGE ON SCHEMA public TO {application}')
    path = spec(set=None, target={"table": "orders_v2"}, pace={"signals": "off"}, role=role if named else None)
    script = backfill("grants", path, "--to", role).out
    shop.sql(script + "\n" + commented(script))
    monkeypatch.setenv("BACKFILL_DSN", as_user(shop, owner))
    installed = backfill("dualwrite", path, "--install")
    assert installed.code == 0, installed.err
    shop.sql(f"SET ROLE {application}; INSERT INTO orders VALUES (99999, 1, 2); DELETE FROM orders WHERE id = 7")
    assert shop.sql("SELECT count(*) FROM orders_v2 WHERE id = 99999").strip() == "1"
    assert shop.sql("SELECT key FROM backfill.tombstone").strip() == "{7}"
    monkeypatch.setenv("BACKFILL_DSN", as_user(shop, role))
    assert backfill("run", path).code == 0
    assert shop.sql("SELECT sweep_by FROM backfill.job").strip() == "tombstones"
    monkeypatch.setenv("BACKFILL_DSN", as_user(shop, owner))
    removed = backfill("dualwrite", path, "--remove")
    assert removed.code == 0, removed.err
    assert shop.sql("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'orders'::regclass").strip() == "0"


# -- and nothing superfluous ------------------------------------------------------------------------------------------


@dataclass
class Desk:
    """One database for all lines: a job that meets everything, two roles, and the script in force."""

    database: FreshDatabase
    folder: Path
    rows: str
    login: str
    script: str = ""
    number: int = 0

    def job(self, **keys: object) -> Path:
        """A job of its own on empty tables; its spec."""
        self.number += 1
        self.database.sql("TRUNCATE dst; UPDATE src SET v = '1'")
        keys = {
            "name": f"job{self.number}",
            "source": {"table": "src"},
            "target": {"table": "dst"},
            "columns": {"id": "id", "v": "v::int"},
            "role": self.rows,
            "errors": {"max_quarantined": 5},
            "pace": {"signals": "off"},
            "workers": 1,
        } | keys
        path = self.folder / f"job{self.number}.json"
        path.write_text(json.dumps(keys))
        return path


@pytest.fixture(scope="module")
def desk(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    database = create_database(servers.get(16))
    rows, login = (f"role_{os.getpid()}_{next(_serial)}" for _ in range(2))
    database.sql(f"CREATE ROLE {rows}; CREATE ROLE {login} LOGIN NOINHERIT")
    database.sql(
        "CREATE TABLE src (id int PRIMARY KEY, v text); INSERT INTO src SELECT g, '1' FROM generate_series(1, 300) g;"
        "CREATE TABLE dst (id int PRIMARY KEY, v int, own serial); ANALYZE src"
    )
    nobody_else(database)
    yield Desk(database, tmp_path_factory.mktemp("desk"), rows, login)
    drop_database(database)
    servers.get(16).sql(f"DROP ROLE {rows}, {login}")


@pytest.fixture
def granted(desk: Desk, backfill: Cli, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The desk with its script in force; BACKFILL_DSN is the login's."""
    monkeypatch.setenv("BACKFILL_DSN", desk.database.dsn)
    if not desk.script:
        path = desk.job()
        script = backfill("grants", path, "--login", desk.login)
        assert script.code == 0, script.err
        desk.database.sql(script.out)
        desk.script = backfill("grants", path, "--login", desk.login).out  # without the ledger, which is there now
        desk.database.sql(f"{NOR_IN_THE_LEDGER} {desk.script}")
    monkeypatch.setenv("BACKFILL_DSN", as_user(desk.database, desk.login))
    return desk


Works = Callable[[], bool]
Operation = Callable[[Desk, Cli], Works]
"""Prepares, while all rights are there; what it gives tries the thing itself, and says whether it went well."""


def run(desk: Desk, backfill: Cli) -> Works:
    path = desk.job()
    return lambda: backfill("run", path).code == 0


def run_watching(desk: Desk, backfill: Cli) -> Works:
    """With the probe of commits: one that may not write tells nothing."""
    path = desk.job(pace={"signals": [{"commit_latency": {"target": "20ms"}}], "max_rows_per_s": 300})
    beats = "SELECT count(*) FROM backfill.heartbeat WHERE at > '{}'"
    began = desk.database.sql("SELECT clock_timestamp()").strip()

    def works() -> bool:
        assert backfill("run", path).code == 0
        return desk.database.sql(beats.format(began)).strip() != "0"

    return works


def note_request(desk: Desk, backfill: Cli) -> Works:
    """As a daemon that was asked for a job with a key of the caller's own."""
    path = desk.job()
    assert backfill("run", path).code == 0
    job = f"job{desk.number}"

    def works() -> bool:
        async def note() -> bool:
            connection = await Database(as_user(desk.database, desk.login), side=Side.TARGET).connect("test")
            try:
                await Ledger(connection).note(job, Request("caller", str(desk.number), "hash"))
            except asyncpg.InsufficientPrivilegeError:
                return False
            finally:
                await connection.close()
            return True

        return asyncio.run(note())

    return works


def report(desk: Desk, backfill: Cli) -> Works:
    """As a process whose metrics are read: the first one of a ledger, or the next."""

    def works() -> bool:
        desk.database.sql("DELETE FROM backfill.reporter")

        async def look() -> bool:
            known: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

            def shows(reports: object) -> None:
                if reports is not None and not known.done():
                    known.set_result(True)

            def hears(_: Event) -> None:
                if not known.done():
                    known.set_result(False)

            database = Database(as_user(desk.database, desk.login), side=Side.TARGET)
            task = asyncio.create_task(Reporter(database, shows, emit=hears).run())
            try:
                return await asyncio.wait_for(known, 20.0)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        return asyncio.run(look())

    return works


def run_with_a_bad_row(desk: Desk, backfill: Cli) -> Works:
    path = desk.job()
    desk.database.sql("UPDATE src SET v = 'x' WHERE id = 77")
    return lambda: backfill("run", path).code == 0


def transform_a_bad_row(desk: Desk, backfill: Cli) -> Works:
    """By Python, which stages its rows; the script of such a job has that right, too."""
    path = desk.job(transform=named("whole_numbers"), columns={"id": "id"})
    desk.database.sql("UPDATE src SET v = 'x' WHERE id = 77")
    desk.database.sql(f"GRANT TEMPORARY ON DATABASE {desk.database.name} TO {desk.rows}")
    return lambda: backfill("run", path).code == 0


def done(desk: Desk, backfill: Cli, *, bad: bool = False, **keys: object) -> Path:
    path = desk.job(**keys)
    if bad:
        desk.database.sql("UPDATE src SET v = 'x' WHERE id = 77")
    seen = backfill("run", path)
    assert seen.code == 0, seen.err
    return path


def retry(desk: Desk, backfill: Cli) -> Works:
    path = done(desk, backfill, bad=True)
    desk.database.sql("UPDATE src SET v = '1' WHERE id = 77")
    return lambda: backfill("quarantine", "retry", path, "--all").code == 0


def drop(desk: Desk, backfill: Cli) -> Works:
    path = done(desk, backfill, bad=True)
    return lambda: backfill("quarantine", "drop", path, "--all", "--yes").code == 0


def verify(desk: Desk, backfill: Cli) -> Works:
    path = done(desk, backfill)
    desk.database.sql("UPDATE dst SET v = 2 WHERE id = 5")
    return lambda: backfill("verify", path, "--settle", "0s").code == 6


def restart(desk: Desk, backfill: Cli) -> Works:
    path = done(desk, backfill)
    return lambda: backfill("restart", path, "--yes").code == 0


def order(text: str) -> Operation:
    def by_hand(desk: Desk, backfill: Cli) -> Works:
        path = done(desk, backfill)
        name = path.stem

        def works() -> bool:
            try:
                desk.database.sql(f"SET ROLE {desk.login}; SELECT backfill.{text.format(name)}")
            except Exception:
                return False
            return True

        return works

    return by_hand


PACE = order("pace('{}', 100)")

LINES: dict[tuple[str, str], Operation] = {
    ("MEMBER", "{rows}"): run,
    ("CONNECT", 'DATABASE "{database}"'): run,
    ("USAGE", 'SCHEMA "public"'): run,
    ("SELECT", '"public"."src"'): run,
    ("SELECT", '"public"."dst"'): run,
    ("INSERT", '"public"."dst"'): run,
    ("UPDATE", '"public"."dst"'): run,
    ("DELETE", '"public"."dst"'): run,
    ("USAGE", 'SEQUENCE "public"."dst_own_seq"'): run,
    ("USAGE", "SCHEMA backfill"): run,
    ("SELECT", "ALL TABLES IN SCHEMA backfill"): run,
    ("INSERT", "backfill.job"): run,
    ("UPDATE", "backfill.job"): run,
    ("DELETE", "backfill.job"): restart,
    ("INSERT", "backfill.span"): run,
    ("UPDATE", "backfill.span"): run,
    ("DELETE", "backfill.span"): verify,
    ("INSERT", "backfill.worker"): run,
    ("UPDATE", "backfill.worker"): run,
    ("INSERT", "backfill.pacer"): run,
    ("UPDATE", "backfill.pacer"): run,
    ("INSERT", "backfill.heartbeat"): run_watching,
    ("UPDATE", "backfill.heartbeat"): run_watching,
    ("INSERT", "backfill.reporter"): report,
    ("UPDATE", "backfill.reporter"): report,
    ("INSERT", "backfill.request"): note_request,
    ("DELETE", "backfill.request"): note_request,
    ("INSERT", "backfill.written"): run,
    ("DELETE", "backfill.written"): run,
    ("DELETE", "backfill.tombstone"): run,
    ("INSERT", "backfill.verification"): verify,
    ("UPDATE", "backfill.verification"): verify,
    ("INSERT", "backfill.difference"): verify,
    ("UPDATE", "backfill.difference"): verify,
    ("DELETE", "backfill.difference"): verify,
    ("INSERT", "backfill.quarantine"): run_with_a_bad_row,
    ("UPDATE", "backfill.quarantine"): retry,
    ("DELETE", "backfill.quarantine"): drop,
    ("INSERT", "backfill.event"): run,
    ("EXECUTE", "FUNCTION backfill.advance"): run,
    ("EXECUTE", "FUNCTION backfill.set_aside"): run_with_a_bad_row,
    ("EXECUTE", "FUNCTION backfill.set_aside_all"): transform_a_bad_row,
    ("EXECUTE", "FUNCTION backfill.flat_orders"): PACE,
    ("EXECUTE", "FUNCTION backfill.pause"): order("pause('{}')"),
    ("EXECUTE", "FUNCTION backfill.resume"): order("resume('{}')"),
    ("EXECUTE", "FUNCTION backfill.cancel"): order("cancel('{}')"),
    ("EXECUTE", "FUNCTION backfill.pace"): PACE,
}
"""Every single right of the script (but TEMPORARY, see below), and what fails without it."""


@pytest.mark.parametrize("right", LINES, ids=[" ".join(right) for right in LINES])
def test_without_this_right_something_fails(granted: Desk, backfill: Cli, right: tuple[str, str]) -> None:
    privilege, on = right[0], right[1].format(database=granted.database.name, rows=granted.rows)
    works = LINES[right](granted, backfill)
    both = f"{granted.rows}, {granted.login}"
    what = on if privilege == "MEMBER" else f"{privilege} ON {on}"
    granted.database.sql(f"REVOKE {what} FROM {granted.login if privilege == 'MEMBER' else both}")
    try:
        assert not works()
    finally:
        granted.database.sql(granted.script)


@pytest.mark.parametrize("operation", dict.fromkeys(LINES.values()), ids=lambda o: getattr(o, "__name__", "order"))
def test_with_all_rights_it_works(granted: Desk, backfill: Cli, operation: Operation) -> None:
    assert operation(granted, backfill)()


def test_every_right_of_the_script_is_tried(granted: Desk) -> None:
    found = set()
    for line in granted.script.splitlines():
        if not line.startswith("GRANT") or "pg_signal_backend" in line:  # which may be left out, as the script says
            continue
        given = re.fullmatch(r"GRANT (?:(?P<what>.+?) ON )?(?P<on>.+?) TO [^;]+;.*", line)
        assert given, line
        on = given["on"].replace(granted.database.name, "{database}")
        if given["what"] is None:
            found.add(("MEMBER", "{rows}"))
        elif given["what"] == "EXECUTE":
            found |= {("EXECUTE", f"FUNCTION {name}") for name in on.removeprefix("FUNCTION ").split(", ")}
        else:
            found |= {(privilege, on) for privilege in given["what"].split(", ")}
    assert found == set(LINES)


def test_without_a_temporary_table_a_copy_is_refused(
    backfill: Cli, two_shops: TwoDatabases, copy_job: Path, make_role, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = make_role(two_shops.source, "LOGIN", two_shops.target)
    nobody_else(two_shops.source, two_shops.target)
    here, _, there = backfill("grants", copy_job, "--to", role).out.partition(f"-- In database {two_shops.target.name}")
    two_shops.source.sql(here)
    two_shops.target.sql(re.sub("GRANT TEMPORARY.*", "", f"-- {there}"))
    monkeypatch.setenv("SOURCE_DSN", as_user(two_shops.source, role))
    monkeypatch.setenv("TARGET_DSN", as_user(two_shops.target, role))
    assert backfill("run", copy_job).code == 4
