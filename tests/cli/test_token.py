"""``backfill token``: what it prints is what a daemon takes."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine.service.access import Identity, Peer, Scope
from engine.service.auth import Doorkeeper
from engine.service.config import Config
from engine.service.tokens import digest
from tests.cli.conftest import Cli


def test_the_token_goes_to_stdout_and_the_entry_with_its_hash_beside_it(backfill: Cli, tmp_path: Path) -> None:
    made = backfill(
        "token", "argo.ci", "--scope", "submit", "--scope", "read", "--connection", "main", "--expires", "90d"
    )
    assert made.code == 0
    token = made.out.strip()
    assert token not in made.err and digest(token) in made.err
    entry = made.err[made.err.index("[tokens.") :]
    found = tomllib.loads(entry)["tokens"]["argo.ci"]
    assert timedelta(days=89) < found["expires"] - datetime.now(UTC) < timedelta(days=91)
    file = tmp_path / "tokens.toml"
    file.write_text(entry)
    file.chmod(0o600)
    config = {"connections": {"main": {}, "other": {}}, "auth": {"tokens_file": str(file)}}
    door = Doorkeeper(Config.model_validate(config))
    assert door.identify(Peer(address="192.0.2.7"), f"Bearer {token}") == Identity(
        "argo.ci", "token", frozenset({Scope.READ, Scope.SUBMIT}), frozenset({"main"})
    )


def test_scripts_get_one_object(backfill: Cli) -> None:
    shown = backfill("token", "argo", "--scope", "read", "--json")
    assert shown.err == ""
    assert shown.json["sha256"] == digest(shown.json["token"]) and shown.json["expires"] is None
    assert tomllib.loads(shown.json["entry"])["tokens"]["argo"] == {"sha256": shown.json["sha256"], "scopes": ["read"]}


def test_quiet_says_the_entry_all_the_same(backfill: Cli) -> None:
    assert backfill("token", "argo", "--scope", "read", "--quiet").err.startswith('[tokens."argo"]')


def test_no_two_tokens_are_the_same(backfill: Cli) -> None:
    assert len({backfill("token", "argo", "--scope", "read").out for _ in range(5)}) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["argo"],
        ["argo", "--scope", "root"],
        ["Argo", "--scope", "read"],
        ['a"]\n[tokens.root', "--scope", "read"],
        ["argo", "--scope", "read", "--connection", 'x"]'],
        ["argo", "--scope", "read", "--expires", "90"],
        ["argo", "--scope", "read", "--expires", "999999999d"],
    ],
)
def test_what_makes_no_sense_makes_no_token(backfill: Cli, arguments: list[str]) -> None:
    refused = backfill("token", *arguments)
    assert refused.code == 2
    assert refused.out == ""
