"""The scripts of orchestrators against a real daemon: what they answer, and what becomes of a job whose caller is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.daemon import RunningDaemon, config_of, running_daemon, until_job
from tests.support.databases import FreshDatabase

EXAMPLES = Path(__file__).parents[2] / "examples" / "orchestrators"
ROWS = 3_000
JOB = "orders-to-v2"
SPEC = json.loads((EXAMPLES / "shell" / "job.json").read_text()) | {"accept": ["DUAL_WRITE_MISSING"]}
SLOW = {"pace": {"max_rows_per_s": 200}, "chunk": {"max_rows": 100}}
"""The job takes a quarter of a minute."""


def argo_script() -> str:
    templates = yaml.safe_load((EXAMPLES / "argo" / "backfill.yaml").read_text())["spec"]["templates"]
    [source] = [one["script"]["source"] for one in templates if "script" in one]
    return str(source)


def kubernetes_script() -> str:
    config, _ = yaml.safe_load_all((EXAMPLES / "kubernetes" / "backfill.yaml").read_text())
    return str(config["data"]["backfill.sh"])


SCRIPTS = {
    "command line": (EXAMPLES / "shell" / "backfill.sh").read_text,
    "curl": (EXAMPLES / "shell" / "backfill-curl.sh").read_text,
    "kubernetes": kubernetes_script,
    "argo": argo_script,
}
both = pytest.mark.parametrize("caller", ["command line", "curl"])
every = pytest.mark.parametrize("caller", SCRIPTS)


@pytest.fixture
def shop(database: FreshDatabase) -> FreshDatabase:
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL, "
        "amount numeric(12,2) NOT NULL, created_at timestamptz NOT NULL);"
        f"INSERT INTO orders SELECT g, g % 100, 'new', g, now() FROM generate_series(1, {ROWS}) AS g;"
        "CREATE TABLE orders_v2 (id bigint PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL, "
        "amount_cents bigint NOT NULL, created_at timestamptz NOT NULL); ANALYZE orders"
    )
    return database


class Caller:
    """One script, in a folder of its own."""

    def __init__(self, name: str, folder: Path, daemon: str, spec: Mapping[str, Any] | str = SPEC) -> None:
        self.script = folder / "script.sh"
        self.script.write_text(SCRIPTS[name]())
        self.spec = folder / "job.json"
        self.spec.write_text(spec if isinstance(spec, str) else json.dumps(spec))
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TMPDIR": str(folder),
            "BACKFILL_DAEMON": daemon,
            "BACKFILL_RETRY_S": "0.2",
            "BACKFILL_PATIENCE": "3",
        }
        self.output = ""

    @asynccontextmanager
    async def started(self, **more: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """The script as a process group that nothing is left of."""
        process = await asyncio.create_subprocess_exec(
            "sh",
            str(self.script),
            str(self.spec),
            env=self.environment | more,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            self.kill(process)
            self.output = (await process.communicate())[0].decode()

    def kill(self, process: asyncio.subprocess.Process) -> None:
        """The script and whatever it has started, as a node that is lost."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    async def run(self, **more: str) -> int:
        """From the beginning to the end: the exit code."""
        async with self.started(**more) as process:
            output, _ = await asyncio.wait_for(process.communicate(), 60)
            code = process.returncode
        self.output = output.decode()
        assert code is not None
        return code


async def history(daemon: RunningDaemon) -> list[str]:
    return [entry["what"] for entry in (await daemon.client.get(f"/v1/jobs/{JOB}/history")).json()["entries"]]


@every
async def test_a_caller_sees_the_job_to_an_open_gate_and_a_second_one_changes_nothing(
    shop: FreshDatabase, tmp_path: Path, caller: str
) -> None:
    async with running_daemon(config_of(shop)) as daemon:
        script = Caller(caller, tmp_path, daemon.url)
        assert await script.run() == 0, script.output
        assert shop.sql("SELECT count(*), sum(amount_cents) = (SELECT sum(amount * 100) FROM orders) FROM orders_v2")
        assert await script.run() == 0, script.output
        assert (await history(daemon)).count("created") == 1
    assert shop.sql("SELECT count(*) FROM orders_v2") == str(ROWS)


@both
async def test_the_loss_of_the_caller_costs_nothing_and_the_next_one_finds_the_job(
    shop: FreshDatabase, tmp_path: Path, caller: str
) -> None:
    async with running_daemon(config_of(shop)) as daemon:
        script = Caller(caller, tmp_path, daemon.url, SPEC | SLOW)
        async with script.started() as process:
            await until_job(daemon.client, JOB, lambda job: job["rows_done"] > 0)
            script.kill(process)
            await process.wait()
            seen = (await daemon.client.get(f"/v1/jobs/{JOB}")).json()["rows_done"]
        await until_job(daemon.client, JOB, lambda job: job["rows_done"] > seen)  # nobody asks, and it goes on
        async with script.started() as process:
            faster = await daemon.client.patch(f"/v1/jobs/{JOB}/pace", json={"max_rows_per_s": 100_000})
            assert faster.status_code == 200, faster.text
            output, _ = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0, output.decode()
        assert (await history(daemon)).count("created") == 1
    assert shop.sql("SELECT count(*) FROM orders_v2") == str(ROWS)


@both
async def test_a_daemon_that_is_restarted_meanwhile_is_waited_for(
    shop: FreshDatabase, tmp_path: Path, caller: str
) -> None:
    folder = tmp_path / "daemon"
    folder.mkdir()
    script = Caller(caller, tmp_path, f"unix://{folder}/backfill.sock", SPEC | SLOW)
    async with (
        running_daemon(config_of(shop), folder=folder) as daemon,
        script.started(BACKFILL_PATIENCE="30") as process,
    ):
        await until_job(daemon.client, JOB, lambda job: job["rows_done"] > 0)
        await daemon.stop()
        assert process.returncode is None
        async with running_daemon(config_of(shop), folder=folder) as again:
            await again.client.patch(f"/v1/jobs/{JOB}/pace", json={"max_rows_per_s": 100_000})
            output, _ = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0, output.decode()


@both
async def test_the_gate_decides_not_the_end_of_the_job(shop: FreshDatabase, tmp_path: Path, caller: str) -> None:
    async with running_daemon(config_of(shop)) as daemon:
        script = Caller(caller, tmp_path, daemon.url, SPEC | {"verify": "none"})
        assert await script.run() == 7, script.output
        assert "verified" in script.output


@both
async def test_a_job_that_somebody_cancels_ends_the_caller_with_8(
    shop: FreshDatabase, tmp_path: Path, caller: str
) -> None:
    async with running_daemon(config_of(shop)) as daemon:
        script = Caller(caller, tmp_path, daemon.url, SPEC | SLOW)
        async with script.started() as process:
            await until_job(daemon.client, JOB, lambda job: job["rows_done"] > 0)
            await daemon.client.post(f"/v1/jobs/{JOB}/cancel", json={})
            output, _ = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 8, output.decode()


@both
@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"columns": {"no_such_column": "id"}}, 4, id="preflight"),
        pytest.param({"workers": "many"}, 3, id="spec"),
        pytest.param({"target": {"connection": "elsewhere", "table": "public.orders_v2"}}, 3, id="connection"),
    ],
)
async def test_what_the_daemon_refuses_is_told_by_its_exit_code(
    shop: FreshDatabase, tmp_path: Path, caller: str, change: dict[str, Any], code: int
) -> None:
    async with running_daemon(config_of(shop)) as daemon:
        script = Caller(caller, tmp_path, daemon.url, SPEC | change)
        assert await script.run() == code, script.output


async def test_nobody_there_is_told_after_some_tries(tmp_path: Path) -> None:
    script = Caller("curl", tmp_path, f"unix://{tmp_path}/none.sock")
    assert await script.run(BACKFILL_PATIENCE="2") == 5, script.output


@pytest.mark.parametrize(("code", "tries"), [(5, 3), (75, 3), (7, 1)])
async def test_what_may_pass_is_tried_again_and_not_for_ever(tmp_path: Path, code: int, tries: int) -> None:
    stub = tmp_path / "bin" / "backfill"
    stub.parent.mkdir()
    stub.write_text(f"#!/bin/sh\necho asked\nexit {code}\n")
    stub.chmod(0o755)
    script = Caller("command line", tmp_path, "unix:///nowhere")
    path = f"{stub.parent}:{script.environment['PATH']}"
    assert await script.run(PATH=path, BACKFILL_TRIES="3", BACKFILL_RETRY_S="0.01") == code
    assert script.output.count("asked") == tries


@both
async def test_a_token_is_read_from_its_file_and_shown_to_nobody(
    shop: FreshDatabase, tmp_path: Path, caller: str
) -> None:
    from engine.service.tokens import digest

    token = "backfill_" + "k" * 43
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[tokens.ci]\nsha256 = "{digest(token)}"\nscopes = ["read", "submit"]\n')
    tokens.chmod(0o600)
    secret = tmp_path / "token"
    secret.write_text(token + "\n")
    secret.chmod(0o600)
    settings = config_of(shop, listen="tcp://127.0.0.1:0", auth={"tokens_file": str(tokens)})
    async with running_daemon(settings, token=token) as daemon:
        script = Caller(caller, tmp_path, daemon.url)
        assert await script.run(BACKFILL_TOKEN_FILE=str(secret)) == 0, script.output
        assert token not in script.output
        assert await script.run(BACKFILL_TRIES="1") != 0
