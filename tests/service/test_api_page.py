"""The commands of docs/daemon/api.md are run as they stand there, and answer what stands there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tests.support import api_page
from tests.support.daemon import config_of, daemon_process

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANYTHING = "…"


def fits(said, answer):
    """Whether the answer is what the page says; ``…`` stands for anything, and objects may hold more."""
    if said == ANYTHING:
        return True
    if isinstance(said, dict):
        return isinstance(answer, dict) and all(key in answer and fits(said[key], answer[key]) for key in said)
    if isinstance(said, list):
        return len(said) == len(answer) and all(map(fits, said, answer))
    return said == answer


def documents(text):
    """JSON documents one after another."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        document, at = decoder.raw_decode(text, at)
        found.append(document)
    return found


def shell(script, folder):
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], check=False, capture_output=True, text=True, cwd=folder, timeout=90
    )
    assert ran.returncode == 0, (script, ran.stdout, ran.stderr)
    return ran.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_every_command_of_the_page_answers_what_the_page_says(database, tmp_path):
    database.sql("CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric, amount_cents bigint)")
    database.sql("INSERT INTO orders SELECT g, g FROM generate_series(1, 5000) g")
    blocks = BLOCK.findall((api_page.FOLDER / "api.md").read_text())
    assert len(blocks) >= 16 and [kind for kind, _ in blocks[::2]] == ["sh"] * (len(blocks) // 2)
    async with daemon_process(config_of(database)) as daemon:
        socket = daemon.url.removeprefix("unix://")
        first = blocks[0][1].partition("\n")[0]
        assert first.startswith("api() {")
        for (_, script), (kind, said) in zip(blocks[::2], blocks[1::2], strict=True):
            answer = shell(f"{first}\n{script}".replace("/run/backfill/backfill.sock", socket), tmp_path)
            if kind == "text":
                assert answer == said
            else:
                expected, found = documents(said), documents(answer)
                assert fits(expected, found), (script, found)
