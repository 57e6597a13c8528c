"""The audit: which job of which connection a change was for, and who was turned away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.service.access import Peer
from engine.service.audit import Seldom
from engine.service.daemon import Daemon
from engine.spec import Dsn
from tests.support.api import begin, shop, spec
from tests.support.asking import NOWHERE, a_route, asking, config_with
from tests.support.daemon import running_daemon
from tests.support.databases import TwoDatabases


async def test_the_audit_says_which_connection_a_change_was_for(databases: TwoDatabases) -> None:
    await begin(databases.target, "nightly")
    shop(databases.source, 20)
    told: list[Any] = []
    two = {"main": databases.source, "other": databases.target}
    connections = {name: {"dsn": one.dsn, "superuser": True, "tables": ["*.*"]} for name, one in two.items()}
    settings = {"connections": connections, "allow": {"expressions": True}}
    async with running_daemon(settings, tell=told.append) as daemon:
        assert (await daemon.client.post("/v1/jobs/nightly/pause", json={})).status_code == 200
        assert (await daemon.client.post("/v1/plans", json=spec())).status_code == 200
        assert (await daemon.client.post("/v1/jobs", json=spec())).status_code == 201
        assert (await daemon.client.delete("/v1/jobs/nightly")).status_code == 200
    audit = [entry.fields for entry in told if entry.event == "audit"]
    assert [(line["what"], line["job"], line["connection"]) for line in audit] == [
        ("pause_job", "nightly", "other"),
        ("plan_job", "cents", "main"),
        ("submit_job", "cents", "main"),
        ("remove_job", "nightly", "other"),
    ]


async def test_who_is_turned_away_is_audited_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, told, now = asking(a_route(), as_peer=Peer(address="192.0.2.7")), [], [100.0]
    monkeypatch.setattr(asked.daemon, "_tell", told.append)
    monkeypatch.setattr(asked.daemon, "clock", SimpleNamespace(now=lambda: now[0]))
    answers = [await asked.client.get("/it", headers={"authorization": "Bearer zebra"}) for _ in range(3)]
    now[0] += 1
    answers.append(await asked.client.get("/it"))
    assert {answer.status_code for answer in answers} == {401}
    lines = [entry.fields for entry in told if entry.event == "audit"]
    assert [line["who"] for line in lines] == ["nobody known at 192.0.2.7"] * 2
    assert [line["request_id"] for line in lines] == [answers[n].headers["x-request-id"] for n in (0, 3)]
    assert {(line["what"], line["outcome"]) for line in lines} == {("it", "unauthenticated")}
    assert "zebra" not in str(told)


def test_the_table_of_those_who_were_turned_away_is_bounded() -> None:
    seldom = Seldom(places=10)
    assert all(seldom.may(f"192.0.2.{number}", 0.0) for number in range(30))
    assert len(seldom) == 10


@pytest.mark.parametrize(("did", "event"), [(True, "daemon.reloaded"), (False, "daemon.not_reloaded")])
def test_what_is_said_after_sighup_is_what_came_of_it(monkeypatch: pytest.MonkeyPatch, did: bool, event: str) -> None:
    told: list[Any] = []
    config = config_with().model_copy(update={"tls": object()})
    daemon = Daemon(config, {name: Dsn(NOWHERE) for name in config.connections}, tell=told.append)
    monkeypatch.setattr(daemon, "_front", SimpleNamespace(reload=lambda: did))
    daemon.reload()
    assert [entry.event for entry in told] == [event]
