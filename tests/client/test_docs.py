"""``docs/daemon/client.md`` says what there is, and its examples run."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from engine.client import Client
from tests.support.daemon import config_of, running_daemon
from tests.support.databases import FreshDatabase

TEXT = (Path(__file__).parents[2] / "docs" / "daemon" / "client.md").read_text()
SOCKET = "unix:///run/backfill/backfill.sock"


def test_every_method_is_named() -> None:
    methods = {name for name in dir(Client) if not name.startswith("_")} - {"close"}
    listed = TEXT[TEXT.index("`submit`, `jobs`") : TEXT.index("one\nmethod for each route")]
    assert set(re.findall(r"`(\w+)`", listed)) == methods


async def test_the_examples_run_as_they_stand(database: FreshDatabase, tmp_path: Path) -> None:
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount int, cents int);"
        "INSERT INTO orders SELECT n, n FROM generate_series(1, 2000) n; ANALYZE orders"
    )
    first, second = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    async with running_daemon(config_of(database)) as daemon:
        for code, said in ((first, "done 2000 False"), (second, "done 100%")):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code.replace(SOCKET, daemon.url), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            out = (await process.communicate())[0].decode()
            assert process.returncode == 0, out
            assert said in out
