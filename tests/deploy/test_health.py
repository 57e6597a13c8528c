"""``backfill health``: what a probe is told, by exit codes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.cli.health import health
from engine.errors import BackfillError
from tests.support.daemon import config_of, running_daemon
from tests.support.databases import FreshDatabase


def asked(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner(env={"BACKFILL_DAEMON": None, **(environment or {})}).invoke(
        health, [*arguments], standalone_mode=False
    )


def exit_code(result: Result) -> int:
    if isinstance(result.exception, BackfillError):
        return result.exception.exit_code
    assert result.exception is None, result.exception
    return int(result.return_value)


@pytest.fixture
def stub() -> Iterator[dict[str, Any]]:
    """A server whose ``answer`` is (status, text), and that keeps the ``headers`` of the last request."""
    seen: dict[str, Any] = {"answer": (200, '{"status": "ok", "checks": {}}')}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen["path"], seen["headers"] = self.path, dict(self.headers)
            status, text = seen["answer"]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    seen["url"] = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield seen
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_daemon_that_works_is_alive_and_ready_over_its_socket(database: FreshDatabase) -> None:
    async with running_daemon(config_of(database)) as daemon:
        await daemon.ready()
        for arguments in (["--live"], []):
            result = await asyncio.to_thread(asked, "--daemon", daemon.url, *arguments)
            assert exit_code(result) == 0
            assert result.stdout.startswith("ok")
        found = await asyncio.to_thread(asked, "--json", environment={"BACKFILL_DAEMON": daemon.url})
        assert json.loads(found.stdout)["status"] == "ok"


async def test_a_daemon_whose_database_is_away_is_alive_and_not_ready() -> None:
    async with running_daemon(config_of("postgresql://nobody@127.0.0.1:1/none?connect_timeout=2")) as daemon:
        assert exit_code(await asyncio.to_thread(asked, "--daemon", daemon.url, "--live")) == 0
        assert exit_code(await asyncio.to_thread(asked, "--daemon", daemon.url)) == 75


def test_nobody_there_is_told_from_not_ready(tmp_path: Path) -> None:
    result = asked("--daemon", f"unix://{tmp_path}/none.sock")
    assert exit_code(result) == 5


def test_not_ready_says_what_is_missing(stub: dict[str, Any]) -> None:
    stub["answer"] = (503, '{"status": "failing", "checks": {"connection main": "cannot connect"}}')
    result = asked("--daemon", stub["url"])
    assert exit_code(result) == 75
    assert "connection main" in result.stdout
    assert stub["path"] == "/readyz"


def test_a_probe_never_shows_a_token(stub: dict[str, Any]) -> None:
    assert exit_code(asked("--daemon", stub["url"], "--live", environment={"BACKFILL_TOKEN": "bft_secret"})) == 0
    assert stub["path"] == "/livez"
    assert "secret" not in str(stub["headers"])


@pytest.mark.parametrize("text", ["<html>", "[]", "", "7"])
def test_something_else_at_that_address_is_no_daemon(stub: dict[str, Any], text: str) -> None:
    stub["answer"] = (200, text)
    assert exit_code(asked("--daemon", stub["url"])) == 5


@pytest.mark.parametrize(
    "address", ["", "backfill", "ftp://x", "unix://relative", "http://", "http://host:port", "unix:"]
)
def test_an_address_that_is_none_is_a_mistake_of_usage(address: str) -> None:
    assert exit_code(asked("--daemon", address or "nonsense")) == 2


def test_a_secret_in_the_address_is_refused_and_not_repeated() -> None:
    result = asked("--daemon", "http://me:hunter2@127.0.0.1:1")
    assert exit_code(result) == 2
    assert "hunter2" not in f"{result.output} {result.exception}"
