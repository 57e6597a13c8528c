"""``backfill history``: everything that changes a job is there, with who, when and why."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.cli.places import operator
from tests.cli.conftest import Cli
from tests.support.databases import FreshDatabase

V2 = {
    "set": None,
    "target": {"table": "v2"},
    "columns": {"id": "id", "amount": "amount", "cents": "(amount * 100)::bigint"},
}


def entries(backfill: Cli, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = backfill("history", "cents", *options, "--json").json
    assert all([*entry] == ["id", "at", "who", "what", "detail"] for entry in found)
    return found


def whats(backfill: Cli) -> list[str]:
    return [entry["what"] for entry in entries(backfill)]


def text(backfill: Cli, what: str) -> str:
    """What the last line of that kind tells."""
    lines = [re.split(r"  +", line, maxsplit=3) for line in backfill("history", "cents").out.splitlines()]
    return [line[3] for line in lines if line[1] == what][-1]


def test_the_life_of_a_copy(backfill: Cli, shop: FreshDatabase, spec: Callable[..., Path]) -> None:
    shop.sql("CREATE TABLE v2 (id bigint PRIMARY KEY, amount numeric(12,2), cents bigint CHECK (cents <> 77))")
    job = spec(**V2, errors={"max_quarantined": 5}, accept=["TRIGGERS_ON_TARGET"])
    assert backfill("dualwrite", job, "--install").code == 0
    assert backfill("run", job).code == 0
    assert backfill("quarantine", "retry", "cents", "--all").code == 7
    assert backfill("quarantine", "drop", "cents", "--all", "--yes").code == 0
    shop.sql("UPDATE v2 SET amount = 5 WHERE id = 5")
    assert backfill("verify", "cents", "--repair", "--settle", "10ms").code == 6
    assert backfill("dualwrite", "cents", "--remove", "--force").code == 0
    assert backfill("cleanup", "cents", "--yes").code == 0
    assert [what for what in whats(backfill) if what != "phase"] == [
        "dual-write installed",
        "created",
        "accepted",
        "running",
        "done",
        "quarantine",
        "quarantine",
        "verify",
        "verifying",
        "verified",
        "done",
        "dual-write removed",
        "cleanup",
    ]
    whose = {entry["what"]: entry["who"] for entry in entries(backfill)}
    assert {whose[what] for what in ("quarantine", "dual-write removed", "cleanup")} == {operator()}
    assert whose["running"] == "postgres (backfill/cents/control)"
    assert text(backfill, "accepted").endswith("findings: TRIGGERS_ON_TARGET")
    assert text(backfill, "running").endswith("was planned")
    assert "dropped: 1" in text(backfill, "quarantine")
    assert "repair: yes, settle_s: 0.01" in text(backfill, "verify")
    assert "verified: no, rows: 20,000, mismatched: 1, missing: 1, repaired: 1, columns: amount 1" in text(
        backfill, "verified"
    )
    assert "zz_backfill_cents" in text(backfill, "dual-write removed")
    assert "[" not in backfill("history", "cents").out, "no lists as Python writes them"


def test_orders_and_their_reasons(backfill: Cli, shop: FreshDatabase, slow_job: Path, spec, until) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    backfill("pace", "cents", "--max-rows-per-s", "1999", "--reason", "sale until eight")
    backfill("pause", "cents", "--reason", "disk is filling")
    shop.sql("SELECT backfill.resume('cents', 'more disk')")
    until(shop, "state = 'running'")
    running.signal(signal.SIGINT)
    running.end()
    backfill.started.clear()
    other = spec(pace={"max_rows_per_s": 2000, "signals": "off"}, chunk={"max_rows": 200})
    joined = backfill.start("run", other)
    until(shop, "EXISTS (SELECT FROM backfill.event WHERE what = 'settings')")
    backfill("cancel", "cents", "--reason", "wrong table")
    joined.end()
    backfill("restart", "cents", "--yes", "--force")
    assert whats(backfill) == [
        "created", "running", "pace", "paused", "running", "settings", "cancelled", "restart",
    ]  # fmt: skip
    lines = backfill("history", "cents").out.splitlines()
    assert f"  {operator()}  " in lines[2], "whose terminal it was, since a role is often one for all"
    assert lines[2].endswith("  max_rows_per_s: none -> 1,999, reason: sale until eight")
    assert lines[3].endswith("was running, reason: disk is filling")
    assert "postgres (psql)" in lines[4]
    assert lines[4].endswith("was paused, reason: more disk")
    assert lines[5].endswith("chunk.max_rows: 100 -> 200")
    assert lines[6].endswith("was running, reason: wrong table")


def test_a_failure_says_what_and_why(backfill: Cli, shop: FreshDatabase, spec) -> None:
    shop.sql("ALTER TABLE orders ADD CONSTRAINT cheap CHECK (cents < 100) NOT VALID")
    assert backfill("run", spec()).code == 7
    failed = entries(backfill)[-1]
    assert (failed["what"], failed["detail"]["error"]) == ("failed", "bad_row")
    assert text(backfill, "failed").endswith("error: bad_row")
    shop.sql("ALTER TABLE orders DROP CONSTRAINT cheap")
    backfill("resume", "cents", "--reason", "constraint dropped")
    assert text(backfill, "running").endswith("was failed, reason: constraint dropped")


def test_the_last_of_it(backfill: Cli, shop: FreshDatabase, spec) -> None:
    backfill("run", spec())
    everything = entries(backfill)
    assert entries(backfill, "--limit", "2") == everything[-2:]
    shop.sql("UPDATE backfill.event SET at = at - interval '3 hours' WHERE what = 'created'")
    assert [entry["what"] for entry in entries(backfill, "--since", "2h")] == [e["what"] for e in everything[1:]]
    shop.sql("UPDATE backfill.event SET at = at - interval '3 hours'")
    nothing = backfill("history", "cents", "--since", "2h")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "nothing in the last 2 h\n")
    assert backfill("history", "cents", "--since", "2h", "--json").json == []
    assert backfill("history", "nobody", "--since", "2h").code == 2
    wrong = backfill("history", "cents", "--since", "yesterday")
    assert (wrong.code, "--since" in wrong.err) == (2, True)


def test_of_an_address_only_the_host_is_shown(backfill: Cli, shop: FreshDatabase, slow_job: Path, spec, until) -> None:
    running = backfill.start("run", slow_job)
    until(shop, "rows_done > 0")
    running.signal(signal.SIGINT)
    running.end()
    backfill.started.clear()
    listening = {"http": {"name": "freno", "url": "http://127.0.0.1:1/check/t0ken?key=t0ken", "on_failure": "ignore"}}
    done = backfill("run", spec(pace={"signals": [listening]}))
    assert done.code == 0
    for shown in (backfill("history", "cents").out, backfill("history", "cents", "--json").out):
        assert "http://127.0.0.1:1/" in shown
        assert "t0ken" not in shown


def test_columns_stand_under_each_other(backfill: Cli, shop: FreshDatabase, spec) -> None:
    backfill("run", spec())
    lines = backfill("history", "cents").out.splitlines()
    assert len({line.index("postgres (") for line in lines}) == 1


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_nobody_has_a_history(backfill: Cli, shop: FreshDatabase, spec, options) -> None:
    backfill("run", spec())
    assert "did you mean cents?" in backfill("history", "cent", *options).err
