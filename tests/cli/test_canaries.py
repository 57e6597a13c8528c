"""Secrets and row values appear nowhere: each kind is planted as a string that can be recognised, every command is run
over them in every form that it speaks, and all of its output and the whole ledger are searched.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from prometheus_client import generate_latest

from engine.cli.main import COMMANDS
from engine.db import Database
from engine.events import Event
from engine.fleet.local import run_job
from engine.spec import load_spec
from engine.telemetry.metrics import Metrics
from tests.cli.conftest import Cli, Outcome, in_a_thread
from tests.support.databases import FreshDatabase
from tests.support.functions import named

VARIABLE_PASSWORD = "canary0variable"
LEDGER_PASSWORD = "canary0ledger"
PASSFILE_PASSWORD = "canary0passfile"
FILE_PASSWORD = "canary0file"
TOKEN = "canary0token"
KEY = "canary0key"
VALUE = "canary0value"
CANARY = "canary0"

FORMS: tuple[tuple[str, ...], ...] = ((), ("--json",), ("-vv",))
LOGS = (("--log-format", "json", "-vv"), ("--log-format", "human", "-vv"))
ALL_FORMS = (*FORMS, *LOGS)
SILENT = {"demo": "its rows are its own", "completion": "asks no database"}

ALLOWED = {
    "span": {"lo", "hi", "cursor"},
    "job": {"move_end", "sweep_end", "ends"},  # bounds
    "difference": {"key"},
    "quarantine": {"key"},
    "tombstone": {"key"},
}
"""Columns of the ledger that hold keys."""

TABLES = f"""
CREATE TABLE people (id text PRIMARY KEY, email text NOT NULL, n text NOT NULL, at timestamptz NOT NULL DEFAULT now());
INSERT INTO people SELECT '{KEY}' || lpad(g::text, 5, '0'), '{VALUE}' || g || '@example.org', g::text
  FROM generate_series(1, 3000) g;
UPDATE people SET n = '{VALUE}' WHERE id LIKE '%00077'; -- no number: the server's message would hold it
UPDATE people SET n = '-1' WHERE id LIKE '%00500'; -- violates a CHECK: its DETAIL would hold the row
UPDATE people SET email = (SELECT email FROM people WHERE id LIKE '%01000') WHERE id LIKE '%01001'; -- and of the key
ANALYZE people
"""
TARGET = "CREATE TABLE people_v2 (id text PRIMARY KEY, email text NOT NULL UNIQUE, n integer CHECK (n > 0))"


@dataclass
class Stage:
    """Where the canaries are, and everything that was said over them."""

    backfill: Cli
    ledger: FreshDatabase
    folder: Path
    said: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, *arguments: str | Path, codes: tuple[int, ...] = (0,)) -> Outcome:
        """Run a command, note what it says, and see that it came as far as it should."""
        outcome = self.backfill(*map(str, arguments))
        label = " ".join(Path(word).name for word in map(str, arguments))
        out = outcome.out.replace(TOKEN, "") if arguments[0] == "validate" else outcome.out  # what the file says, again
        self.said += [(label, out), (label, outcome.err)]
        assert outcome.code in codes, f"{label}: {outcome.code}\n{outcome.err}{outcome.out}"
        return outcome

    def in_forms(self, *arguments: str | Path, codes: tuple[int, ...] = (0,), forms: Any = FORMS) -> None:
        for form in forms:
            self(*arguments, *form, codes=codes)

    def spec(self, name: str, **keys: Any) -> Path:
        content = {
            "name": name,
            "source": {"dsn": "${PEOPLE_DSN}", "table": "people"},
            "target": {"dsn": "${PEOPLE_TARGET_DSN}", "table": "people_v2"},
            "columns": {"id": "id", "email": "email", "n": "n::integer"},
            "chunk": {"max_rows": 500, "min_rows": 50},
            "pace": {"signals": [listening()]},
        } | keys
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    def commands(self) -> set[str]:
        return {label.split()[0] for label, _ in self.said}


def listening(path: str = "check") -> dict[str, Any]:
    url = f"http://127.0.0.1:9/{path}/{TOKEN}?token={TOKEN}"
    return {"http": {"name": "freno", "url": url, "on_failure": "ignore"}}


def with_password(dsn: str, password: str) -> str:
    return dsn.replace("@", f":{password}@", 1)


@pytest.fixture
def passfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "pgpass"
    path.write_text(f"*:*:*:*:{PASSFILE_PASSWORD}\n")
    path.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(path))
    return path


def planted(
    backfill: Cli, source: FreshDatabase, target: FreshDatabase, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Stage:
    source.sql(TABLES)
    target.sql(TARGET)
    monkeypatch.setenv("PEOPLE_DSN", with_password(source.dsn, VARIABLE_PASSWORD))
    monkeypatch.setenv("PEOPLE_TARGET_DSN", with_password(target.dsn, VARIABLE_PASSWORD))
    monkeypatch.setenv("BACKFILL_DSN", with_password(target.dsn, LEDGER_PASSWORD))
    return Stage(backfill, target, folder)


def found_in(said: list[tuple[str, str]]) -> list[str]:
    """Where a canary is, with what is around it."""
    return [
        f"{label}: …{text[max(0, at - 100) : at + 40]}…"
        for label, text in said
        if (at := text.find(CANARY)) >= 0
    ]  # fmt: skip


def found_in_ledger(database: FreshDatabase, *, but_for: str = "") -> list[str]:
    """Rows of the ledger that hold a canary where no key may be."""
    found = []
    tables = database.sql(
        "SELECT relname FROM pg_class WHERE relnamespace = 'backfill'::regnamespace AND relkind = 'r'"
    )
    assert len(tables.split()) >= 10
    for table in tables.split():
        row = f"to_jsonb(t) - ARRAY[{', '.join(map(repr, sorted(ALLOWED.get(table, {'-'}))))}]"
        rows = database.sql(f"SELECT {row} FROM backfill.{table} t").splitlines()
        found += [f"{table}: {row}" for row in rows if CANARY in (row.replace(but_for, "") if but_for else row)]
    return found


# -- everything that succeeds, or fails as expected ---------------------------------------------------------------------


def test_no_command_shows_a_secret_or_a_row(
    backfill: Cli, database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passfile: Path
) -> None:
    stage = planted(backfill, database, database, tmp_path, monkeypatch)
    strict, job = stage.spec("strict"), stage.spec("people", errors={"max_quarantined": 5})
    stage.in_forms("init", "people", "--target", "people_v2")
    stage("init", "people", "--dsn", database.dsn, "-o", tmp_path / "new.yaml")
    stage.in_forms("validate", job)
    stage("schema")
    stage.in_forms("plan", job)
    stage.in_forms("rehearse", job, codes=(0, 7))
    stage.in_forms("grants", job, "--to", "someone")
    stage.in_forms("doctor", job)
    stage.in_forms("doctor", "--dsn", database.dsn)
    for what in ("--print", "--check", "--install", "--check"):
        stage.in_forms("dualwrite", job, what, codes=(0, 7))

    stage.in_forms("run", strict, codes=(7,), forms=[("-vv",)])
    stage("resume", "strict")
    strict = stage.spec("strict", workers=1, pace={"signals": [listening("elsewhere")]})
    stage("run", strict, "--json", "-vv", codes=(7,))
    assert "settings" in stage("history", "strict").out
    for form in LOGS:
        stage("resume", "strict")
        stage("worker", "--once", "--allow-url", "http://127.0.0.1:9", *form, codes=(7,))
    stage("cancel", "strict", "--reason", "bad rows")
    database.sql("TRUNCATE people_v2")

    stage("run", job, "--json", *LOGS[0])
    assert database.sql("SELECT quarantined FROM backfill.status WHERE job = 'people'").strip() == "3", (
        "every kind of bad row is set aside"
    )
    database.sql(
        f"DELETE FROM people WHERE id LIKE '%00002'; INSERT INTO people_v2 VALUES ('{KEY}z', '{VALUE}z', 7);"
        "UPDATE people_v2 SET n = n + 1 WHERE id LIKE '%00010'; DELETE FROM people_v2 WHERE id LIKE '%00020'"
    )
    stage.in_forms("run", job, forms=ALL_FORMS)
    stage.in_forms("quarantine", "list", "people")
    stage.in_forms("quarantine", "retry", job, "--all", codes=(7,))
    stage("verify", job, "--json", "--settle", "10ms", codes=(6,))
    stage("verify", job, "--repair", "-vv", "--settle", "10ms", codes=(6,))
    stage.in_forms("gate", job, codes=(6,))
    stage.in_forms("quarantine", "drop", "people", "--all", "--yes")
    stage.in_forms("pace", "people", "--max-rows-per-s", "5000", "--reason", "sale")
    stage.in_forms("pace", "people")
    for order in ("pause", "resume", "cancel"):
        stage.in_forms(order, "people", "--reason", "for the test")
    for look in ("status", "wait", "history"):
        stage.in_forms(look, "people", codes=(0, 6))
        stage.in_forms(look, "strict", codes=(0, 8))
    stage("status", "people", "--watch")
    stage.in_forms("list")
    stage.in_forms("dashboards", "export", tmp_path / "boards")
    stage.in_forms("token", "somebody", "--scope", "read")
    configuration = tmp_path / "backfill.toml"
    configuration.write_text(
        f'[connections.main]\ndsn = "{with_password(database.dsn, VARIABLE_PASSWORD)}"\nwork = 3\n'
    )
    configuration.chmod(0o600)
    stage.in_forms("serve", "--config", configuration, "--check", codes=(2, 3))
    stage.in_forms("health", "--daemon", f"unix://{tmp_path}/none.sock", codes=(5,))
    assert not found_in_ledger(database, but_for=TOKEN), "a URL is a part of the settings; nothing else"
    stage("restart", "strict", "--yes", "--json")
    stage("restart", "people", "--yes")
    stage("cleanup", "--all", "--yes", "-vv")

    assert stage.commands() >= set(COMMANDS) - set(SILENT)
    assert not found_in(stage.said)
    text = "".join(text for _, text in stage.said)
    assert "22P02" in text and "23514" in text and "23505" in text, "what was planted was met"


def test_a_daemon_and_its_clients_show_none_either(
    backfill: Cli, database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = planted(backfill, database, database, tmp_path, monkeypatch)
    monkeypatch.setenv("BACKFILL_TOKEN", TOKEN)
    there = {"source": {"connection": "main", "table": "public.people"}}
    there |= {"target": {"connection": "main", "table": "public.people_v2"}, "pace": {"signals": ["freno"]}}
    strict, job = stage.spec("strict", **there), stage.spec("people", errors={"max_quarantined": 5}, **there)
    wrong = stage.spec("wrong", source={"dsn": with_password(database.dsn, VARIABLE_PASSWORD), "table": "people"})
    main = {"dsn": with_password(database.dsn, VARIABLE_PASSWORD), "work": True, "tables": ["*.*"]}
    tokens = tmp_path / "tokens.toml"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    tokens.write_text(f'[tokens.somebody]\nsha256 = "{digest}"\nscopes = ["read", "control", "submit"]\n')
    tokens.chmod(0o600)
    settings = {
        "connections": {"main": main},
        "auth": {"tokens_file": str(tokens)},
        "allow": {"expressions": True, "dual_write": True},
        "signals": {"freno": {"http": {"url": listening()["http"]["url"], "on_failure": "ignore"}}},
    }
    with in_a_thread(settings) as daemon:
        monkeypatch.setenv("BACKFILL_DAEMON", daemon.url)
        stage("run", wrong, "-vv", codes=(3,))
        for command in (["plan", job], ["rehearse", job], ["doctor"], ["dualwrite", job, "--check"]):
            stage.in_forms(*command, codes=(0, 2, 4, 7))
        stage.in_forms("run", strict, codes=(7,), forms=[("-vv",)])
        stage("run", job, "--json", "-vv")
        stage.in_forms("quarantine", "list", "people")
        stage.in_forms("quarantine", "retry", "people", "--all", codes=(7,))
        stage("quarantine", "list", "people", "--show-rows", codes=(2, 3, 5))
        stage("verify", "people", "--json", "--settle", "10ms", codes=(0, 6))
        for command in (["gate"], ["grants", "--to", "someone"], ["status"], ["history"], ["pace"], ["wait"]):
            stage.in_forms(command[0], "people", *command[1:], codes=(0, 6, 7))
        stage.in_forms("list")
        stage("restart", "strict", "--yes", "-vv")
        stage("cleanup", "people", "--yes", "-vv", codes=(0, 75))
    assert not found_in(stage.said)
    assert not found_in_ledger(database)


def test_a_copy_between_two_databases_shows_none_either(
    backfill: Cli, databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passfile: Path
) -> None:
    """COPY tells line, column and value of what it cannot read."""
    stage = planted(backfill, databases.source, databases.target, tmp_path, monkeypatch)
    strict, job = stage.spec("strict"), stage.spec("people", errors={"max_quarantined": 5})
    stage.in_forms("plan", job, forms=[("-vv",), ("--json",)])
    stage("rehearse", job, "-vv", codes=(0, 7))
    stage("doctor", job, "-vv")
    stage("grants", job, "--to", "someone", "-vv")
    stage("run", strict, "-vv", codes=(7,))
    databases.target.sql("TRUNCATE people_v2")
    stage("run", job, "--json", *LOGS[0])
    assert databases.target.sql("SELECT quarantined FROM backfill.status WHERE job = 'people'").strip() == "3"
    stage("quarantine", "retry", job, "--all", "-vv", codes=(7,))
    databases.target.sql("UPDATE people_v2 SET n = n + 1 WHERE id LIKE '%00010'")
    stage("verify", job, "-vv", "--settle", "10ms", codes=(6,))
    stage("verify", job, "--repair", "--json", "--settle", "10ms", codes=(6,))
    stage.in_forms("status", job)
    stage.in_forms("history", job)
    stage("list", "-vv")
    assert not found_in(stage.said)
    assert not found_in_ledger(databases.target, but_for=TOKEN)


@pytest.mark.parametrize("there", ["two databases", pytest.param("one database", marks=pytest.mark.long)])
def test_a_transform_that_blurts_values_out_is_not_repeated(
    backfill: Cli, databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passfile: Path, there: str
) -> None:
    target = databases.target if there == "two databases" else databases.source
    stage = planted(backfill, databases.source, target, tmp_path, monkeypatch)
    columns = {"id": "id", "email": "email"}
    strict = stage.spec("strict", columns=columns, transform=named("blurts"))
    job = stage.spec("people", columns=columns, transform=named("blurts"), errors={"max_quarantined": 5})
    stage.in_forms("plan", job)
    stage("rehearse", job, "-vv", codes=(0, 7))
    stage("run", strict, *LOGS[0], codes=(7,))
    target.sql("TRUNCATE people_v2")
    for form in ALL_FORMS:
        stage("run", job, *form)
    assert target.sql("SELECT quarantined FROM backfill.status WHERE job = 'people'").strip() == "3"
    stage.in_forms("quarantine", "list", "people")
    stage.in_forms("quarantine", "retry", job, "--all", codes=(7,))
    stage.in_forms("quarantine", "retry", "people", "--all", "--allow-transform", named("blurts"), codes=(2, 7))
    stage("resume", "strict")
    lent = ("--env", "PEOPLE_DSN", "--env", "PEOPLE_TARGET_DSN", "--allow-url", "http://127.0.0.1:9", *LOGS[0])
    stage("worker", "--once", *lent, codes=(3,))
    stage("worker", "--once", *lent, "--allow-transform", named("blurts"), codes=(7,))
    for look in ("status", "history"):
        stage.in_forms(look, "people")
        stage.in_forms(look, "strict", codes=(0, 7, 8))
    assert not found_in(stage.said)
    assert not found_in_ledger(target, but_for=TOKEN)
    text = "".join(text for _, text in stage.said)
    assert "BF011" in text and "in blurts" in text, "what was planted was met"
    stage("plan", job, "--show-rows")
    assert found_in(stage.said), "who asks for rows sees them"


@pytest.mark.parametrize(
    "function",
    ["names_columns_by_values", "gives_back_values", "rejects_by_values", "asks_for_values", "is_set_up_with_values"],
)
def test_what_a_transform_does_wrong_is_said_without_values(
    backfill: Cli, database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    stage = planted(backfill, database, database, tmp_path, monkeypatch)
    job = stage.spec("people", columns={"id": "id", "email": "email"}, transform=named(function))
    stage.in_forms("plan", job, codes=(4,), forms=[("-vv",), ("--json",)])
    stage("run", job, "-vv", codes=(4,))
    stage("run", job, *LOGS[0], codes=(4,))
    assert not found_in(stage.said)
    place = "set_up_with_values" if function.startswith("is_set") else function
    assert f"in {place}" in "".join(text for _, text in stage.said)


def test_keys_are_shown_to_whoever_asks_for_them(
    backfill: Cli, database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the search above can find one."""
    stage = planted(backfill, database, database, tmp_path, monkeypatch)
    stage("run", stage.spec("people", errors={"max_quarantined": 5}))
    stage("quarantine", "list", "people")
    assert not found_in(stage.said)
    stage("quarantine", "list", "people", "--show-rows")
    assert KEY in found_in(stage.said)[0]
    database.sql(f"UPDATE backfill.job SET reason = '{VALUE}'")
    assert found_in_ledger(database)


# -- what nobody expected -----------------------------------------------------------------------------------------------


def _violation() -> Exception:
    error = asyncpg.UniqueViolationError(f'duplicate key value "{VALUE}"')
    error.detail = f"Key (email)=({VALUE}) already exists."
    error.sqlstate = "23505"
    return error


SURPRISES: tuple[Callable[[], Exception], ...] = (
    lambda: RuntimeError(f"{VALUE} of {VARIABLE_PASSWORD}"),
    _violation,
    lambda: OSError(5, f"cannot reach postgresql://u:{VARIABLE_PASSWORD}@h/d"),
    lambda: KeyError(KEY),
)


@pytest.mark.parametrize("surprise", SURPRISES, ids=["runtime", "violation", "system", "key"])
def test_an_error_that_nobody_expected_keeps_its_words_to_itself(
    backfill: Cli, database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surprise
) -> None:
    stage = planted(backfill, database, database, tmp_path, monkeypatch)
    job = stage.spec("people")

    async def fail(*_: Any, **__: Any) -> None:
        raise surprise()

    monkeypatch.setattr(Database, "connect", fail)
    codes = (1, 5, 7)
    for command in ("plan", "rehearse", "run", "status", "wait", "history", "pause", "resume", "cancel", "pace"):
        stage.in_forms(command, job, codes=codes)
    for command in ("verify", "gate", "grants", "restart", "cleanup"):
        stage(command, job, *(["--yes"] if command in ("restart", "cleanup") else []), "-vv", codes=codes)
    stage.in_forms("run", job, codes=codes, forms=LOGS)
    stage.in_forms("worker", "--once", codes=codes, forms=ALL_FORMS)
    stage.in_forms("list", codes=codes)
    stage("init", "people", "-vv", codes=codes)
    stage("doctor", job, "-vv", codes=(0, *codes))
    stage("dualwrite", job, "--check", "-vv", codes=codes)
    stage("quarantine", "list", job, "-vv", codes=codes)
    assert not found_in(stage.said)


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{VARIABLE_PASSWORD}@127.0.0.1:1/d",
        f"postgresql://u:{VARIABLE_PASSWORD}@127.0.0.1:no-port/d",
        f"postgresql://u:{VARIABLE_PASSWORD}@[::1/d",
        f"postgresql://u:{VARIABLE_PASSWORD}@127.0.0.1:1/d?sslmode=sometimes",
        f"postgresql://u@127.0.0.1:1/d?pasword={VARIABLE_PASSWORD}",
        f"host=127.0.0.1 port=1 password='{VARIABLE_PASSWORD}",
        f"host=127.0.0.1 port=1 password={VARIABLE_PASSWORD} nonsense",
        f"mysql://u:{VARIABLE_PASSWORD}@127.0.0.1/d",
    ],
)
def test_a_connection_string_that_does_not_work_is_not_repeated(
    backfill: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    stage = Stage(backfill, None, tmp_path)  # type: ignore[arg-type]  # there is none
    monkeypatch.setenv("PEOPLE_DSN", dsn)
    monkeypatch.setenv("PEOPLE_TARGET_DSN", dsn)
    monkeypatch.setenv("BACKFILL_DSN", dsn)
    job, codes = stage.spec("people"), (1, 2, 3, 5)
    for command in ("plan", "run", "status", "doctor", "verify"):
        stage.in_forms(command, job, codes=(0, *codes), forms=[("-vv",), ("--json",)])
    stage("run", job, *LOGS[0], codes=codes)
    stage("worker", "--once", *LOGS[0], codes=codes)
    stage("list", "-vv", codes=codes)
    stage("status", "people", "--dsn", dsn, "-vv", codes=codes)
    in_file = stage.spec("inline", source={"dsn": dsn, "table": "people"}, target=None, columns=None, set={"n": "'1'"})
    for command in ("validate", "plan"):
        stage.in_forms(command, in_file, codes=(0, *codes), forms=[("-vv",), ("--json",)])
    assert not found_in(stage.said)


# -- what other programs read -------------------------------------------------------------------------------------------


def test_neither_events_nor_metrics_hold_one(
    backfill: Cli, database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = planted(backfill, database, database, tmp_path, monkeypatch)
    job = load_spec(str(stage.spec("people", errors={"max_quarantined": 5})), os.environ)
    metrics, heard = Metrics(), []

    def emit(event: Event) -> None:
        metrics(event)
        heard.append(event)

    asyncio.run(run_job(job, emit=emit))
    exposed = generate_latest(metrics.registry).decode()
    assert 'backfill_quarantined_rows_total{job="people"} 3.0' in exposed
    said = [("metrics", exposed), *((event.name, json.dumps(event.as_json(), default=str)) for event in heard)]
    said += [(event.name, repr(event)) for event in heard]
    assert not found_in(said)
