"""``docs/transforms.md`` keeps its word: its files are written, its commands run, and they say what the page shows.

Blocks are those of the pages of ``docs/operations`` (see ``tests.operations.pages``), and besides these::

    <!-- file: shop/transforms.py -->     the block is that file
    <!-- added to: shop/transforms.py --> and this stands at its end

With BACKFILL_WRITE_PAGES=1 in the environment the page is given what its commands say now.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import pytest

from engine.service.config import read_config
from tests.operations.nursery import ADDRESS, Nursery
from tests.operations.pages import FOLDER, Block, agrees, blocks, result_of
from tests.support.databases import FreshDatabase

PAGE = "../transforms.md"
BLOCKS = blocks(PAGE)
WRITES = bool(os.environ.get("BACKFILL_WRITE_PAGES"))
PATIENCE_S = 60.0

SHOP = """
CREATE TABLE customers (id bigint PRIMARY KEY, email text, email_hash bytea, tags text[], tag_count int);
INSERT INTO customers
SELECT n, CASE WHEN n % 3 > 0 THEN 'Person' || n || '@example.' || CASE WHEN n % 2 = 0 THEN 'com' ELSE 'org' END END,
       NULL, CASE WHEN n % 4 > 0 THEN ARRAY[' Big', NULL, 'small' || n] END, NULL
  FROM generate_series(1, 100) n;
CREATE TABLE customers_v2 (id bigint PRIMARY KEY, email text, tags text[]);
CREATE TABLE sales (id bigint PRIMARY KEY, amount numeric(12,2), currency text, amount_eur double precision);
INSERT INTO sales SELECT n, n, (ARRAY['EUR', 'USD', NULL])[1 + n % 3], NULL FROM generate_series(1, 5000) n;
INSERT INTO sales VALUES (0, 1, 'ZZZ', NULL);
"""
EUROS = """
name: euros
source: {dsn: "${SOURCE_DSN}", table: sales}
transform: "shop.transforms:in_euros"
errors: {max_quarantined: 5}
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where ``backfill`` comes from, without starting Python each time."""
    with Nursery() as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The page's files."""
    for block in BLOCKS:
        kind, _, name = block.comment.partition(": ")
        if kind in ("file", "added to"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            before = path.read_text() if kind == "added to" else ""
            path.write_text(before + block.text)
    return tmp_path


def shell(
    nursery: Nursery, folder: Path, database: FreshDatabase, *commands: str, **variables: str
) -> list[tuple[int, str]]:
    """Run commands as somebody who stands in the folder; exit code and output of each."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "BACKFILL"))}
    programs = f"{nursery.programs}:{Path(sys.executable).parent}"
    environment = {
        **kept,
        "PATH": f"{programs}:{os.environ['PATH']}",
        ADDRESS: nursery.address,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "SOURCE_DSN": database.dsn,
        "BACKFILL_DSN": database.dsn,
        "NO_COLOR": "1",
        "BACKFILL_LOG_FORMAT": "human",
        "COLUMNS": "80",
        **variables,
    }
    said = []
    for command in commands:
        done = subprocess.run(
            ["sh", "-c", f"exec 2>&1 </dev/null; {command}"],
            cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        output = re.sub(r"127\.0\.0\.1(:\d+)?/test_\w+", "db1/shop", done.stdout).replace(str(folder), "/home/ana")
        said.append((done.returncode, output))
    return said


@pytest.mark.slow
async def test_its_commands_say_what_it_shows(
    nursery: Nursery, folder: Path, make_database: Callable[..., FreshDatabase]
) -> None:
    on: FreshDatabase | None = None
    corrections: list[tuple[Block, str]] = []
    for block, following in zip_longest(BLOCKS, BLOCKS[1:]):
        if block.situation is not None:
            on = make_database()
        if block.language not in ("console", "sql") or block.comment.startswith("not run: "):
            continue
        assert on is not None, block.place
        if block.language == "sql":
            found = on.server.sql(f"SET client_min_messages = warning;{block.text}", on.name)
            expected = result_of(block, following)
            assert expected is None or found == expected, (block.place, found)
            continue
        ran = [command for command, _ in block.commands]
        said = shell(nursery, folder, on, *ran)
        for (command, expected), (code, output) in zip(block.commands, said, strict=True):
            wanted = block.code if command == ran[-1] else 0
            assert code == wanted, f"{block.place}: {command} ended with {code}:\n{output}"
            assert WRITES or agrees(expected, output), f"{block.place}: {command} said:\n{output}"
        shown = [
            f"$ {command}\n{expected if agrees(expected, output) else output}".rstrip("\n") + "\n"
            for (command, expected), (_, output) in zip(block.commands, said, strict=True)
        ]
        corrections.append((block, "".join(shown)))
    if WRITES:
        path = FOLDER / PAGE
        text = path.read_text()
        for block, found in reversed(corrections):
            text = text[: block.at] + found + text[block.at + len(block.text) :]
        path.write_text(text)


@pytest.mark.slow
def test_each_of_its_functions_runs_on_a_real_table(nursery: Nursery, folder: Path, database: FreshDatabase) -> None:
    database.sql(SHOP)
    (folder / "euros.yaml").write_text(EUROS)
    start = "backfill run --source-dsn $SOURCE_DSN --name"
    ended = shell(
        nursery,
        folder,
        database,
        "backfill run tidy.yaml",
        f"{start} hash --table customers --transform shop.transforms:email_hash --done 'email is null'",
        f"{start} v2 --table customers --target-table customers_v2 --transform shop.transforms:without_tests",
        "backfill run euros.yaml",
        EMAIL_HASH_KEY="k" * 32,
    )
    assert [code for code, _ in ended] == [0] * len(ended), ended
    assert (
        database.sql("SELECT tags, tag_count FROM customers WHERE id IN (1, 4) ORDER BY id") == "{big,NULL,small1}|3\n|"
    )
    assert database.sql("SELECT count(email_hash), count(DISTINCT email_hash) FROM customers") == "67|67"
    assert (
        database.sql("SELECT count(*), count(email), count(*) FILTER (WHERE email LIKE '%.com') FROM customers_v2")
        == "66|33|0"
    )
    assert database.sql("SELECT count(*), sum(amount_eur)::int FROM sales WHERE currency = 'USD'") == database.sql(
        "SELECT count(*), (sum(amount) * 0.9)::int FROM sales WHERE currency = 'USD'"
    )
    assert database.sql("SELECT key, sqlstate FROM backfill.quarantine") == "{0}|BF010"


@pytest.mark.parametrize("block", BLOCKS, ids=[block.place for block in BLOCKS])
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    kinds = ("file: ", "added to: ", "situation: ", "goes on", "checked", "not run: ", "signature")
    assert block.comment.startswith(kinds) or (block.language == "text" and not block.comment), block.place


def test_its_daemon_configuration_is_one() -> None:
    [block] = [block for block in BLOCKS if block.language == "toml"]
    shown = tomllib.loads(block.text)
    config = read_config({"connections": {"main": {"dsn": "postgresql://h/d"}}, **shown}, {})
    assert [*config.allow.transforms] == shown["allow"]["transforms"] != []
