"""Requests by the thousand, made from the OpenAPI document by schemathesis, at a real daemon with real jobs.

Every answer is one that the document describes, and none is a bug: no 5xx, though some requests are what nobody would
send.  ``make fuzz`` gives it more time (``BACKFILL_FUZZ_S``).
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager

import pytest

from engine.service.tokens import digest, make_token
from tests.support.daemon import daemon_process

SECONDS = int(os.environ.get("BACKFILL_FUZZ_S", "15"))
SEED = os.environ.get("BACKFILL_FUZZ_SEED", "6")
MORE_S = 300
"""Until the process of schemathesis is ended, whatever it does."""

SETTINGS = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 422, 428, 429, 431, 503]

[[operations]]
include-name = "GET /v1/jobs/{job}"
parameters = { "query.wait" = "20ms" }
"""
PROGRAM = "from schemathesis.cli import schemathesis; schemathesis()"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "missing_required_header",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)
WITHOUT = ("GET /v1/jobs/{job}/events",)
"""Streams go on for ever by nature: test_watching asks for them."""

JOBS = ("planned", "running", "paused", "cancelled", "done", "failed")


@asynccontextmanager
async def fuzzed_daemon(database, folder):
    """A daemon in a process of its own on loopback TCP, with a token for everything, and jobs in several states."""
    token = make_token()
    tokens = folder / "tokens.toml"
    tokens.write_text(f'[tokens.fuzz]\nsha256 = "{digest(token)}"\nscopes = ["read", "control", "submit"]\n')
    tokens.chmod(0o600)
    for name in ("orders", *JOBS):
        database.sql(
            f"CREATE TABLE {name} (id bigint PRIMARY KEY, amount int NOT NULL DEFAULT 1, cents bigint);"
            f"INSERT INTO {name} (id) SELECT g FROM generate_series(1, 2000) g"
        )
    settings = {
        "listen": "tcp://127.0.0.1:0",
        "auth": {"tokens_file": str(tokens)},
        "allow": {"expressions": True, "dual_write": True},
        "connections": {"main": {"dsn": database.dsn, "work": True, "tables": ["public.*"]}},
    }
    async with daemon_process(settings, token=token) as daemon:
        for name in JOBS:
            spec = {
                "name": name,
                "source": {"connection": "main", "table": f"public.{name}"},
                "set": {"cents": "amount * 100" if name != "failed" else "amount / (id - 1000)"},
                "pace": {"signals": "off", "max_rows_per_s": 5 if name == "running" else 100_000},
            }
            answer = await daemon.client.post("/v1/jobs", json=spec)
            assert answer.status_code == 201, answer.text
            if name in ("paused", "cancelled"):
                answer = await daemon.client.post(f"/v1/jobs/{name}/{'pause' if name == 'paused' else 'cancel'}")
                assert answer.status_code == 200, answer.text
        yield daemon, token


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + MORE_S)
async def test_whatever_is_asked_is_answered_as_the_document_says(database, tmp_path):
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    async with fuzzed_daemon(database, tmp_path) as (daemon, token):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, "run", f"{daemon.url}/openapi.json",
            "--header", f"Authorization: Bearer {token}",
            "--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing", "--max-time", str(SECONDS),
            "--seed", SEED, "--workers", "2", "--max-failures", "5", "--no-color", "--warnings", "off",
            *(part for operation in WITHOUT for part in ("--exclude-name", operation)),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), SECONDS + MORE_S)
        lines = [line[:400] for line in output.decode().splitlines()]
        text = "\n".join(lines)[-20_000:]
        failures = [line for line in daemon.lines() if line["event"] == "request.failed"]
        assert process.returncode == 0, text
        assert not failures
        assert (await daemon.client.get("/livez")).status_code == 200
