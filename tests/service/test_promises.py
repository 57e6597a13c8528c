"""``docs/daemon/security.md`` names the test of each promise: they exist, and the figures are the code's."""

from __future__ import annotations

import re
from pathlib import Path

from engine.service.config import Config
from engine.service.crowd import RESERVE
from engine.service.exchange import MAX_HEAD_BYTES, MAX_HEADERS
from engine.service.line import PROGRESS_BYTES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "daemon" / "security.md").read_text()


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", TEXT))
    there = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert len(named) > 50
    assert named <= there, named - there


def test_the_figures_of_the_threat_model_are_the_codes() -> None:
    limits = Config.model_validate({"connections": {"main": {}}}).limits
    for words in (
        f"`header_timeout` ({limits.header_timeout:g} s)",
        f"`body` ({limits.body // 2**20} MiB)",
        f"`send_timeout` ({limits.send_timeout:g} s)",
        f"`idle_timeout` ({limits.idle_timeout:g} s)",
        f"`connections` ({limits.connections})",
        f"{MAX_HEAD_BYTES // 1024} KiB, {MAX_HEADERS} headers",
        f"{PROGRESS_BYTES // 1024} KiB in each",
        f"{RESERVE} more in reserve",
    ):
        assert words in TEXT, words
