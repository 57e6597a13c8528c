"""What the README tells a stranger to copy about the daemon, copied line by line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECTION = re.search(
    r"^## A daemon in five minutes$(.*?)^## ", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
assert SECTION is not None
FIRST, SECOND = (
    [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    for block in re.findall(r"^```console\n(.*?)^```", SECTION[1], re.MULTILINE | re.DOTALL)
)
WRITTEN = "http://127.0.0.1:8471"
"""Where the README has the daemon listen.  Here it listens where nobody else does."""
PATIENCE_S = 60.0


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A folder that looks like the checkout: only what the commands need is there."""
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    return tmp_path


@dataclass(frozen=True, slots=True)
class Shop:
    """The first terminal, and the address that it tells."""

    process: subprocess.Popen[bytes]
    page: str

    def asked(self, path: str) -> Any:
        with urllib.request.urlopen(self.page + path, timeout=30) as answer:
            text = answer.read().decode()
            return json.loads(text) if "json" in answer.headers["content-type"] else text


@pytest.fixture
def shop(stranger: Path) -> Iterator[Shop]:
    """``make demo`` is the installation, and then this; a smaller table is enough here."""
    assert FIRST == ["make demo ARGS=--serve"]
    output = stranger / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [".venv/bin/backfill", "demo", "--serve", "--rows", "30000", "--port", "0"],
            cwd=stranger, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"NO_COLOR": "1"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "Ctrl-C here ends" not in output.read_text():
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        told = re.search(r"Open (http://127\.0\.0\.1:[1-9]\d*)/ in a browser", output.read_text())
        assert told is not None, output.read_text()
        yield Shop(process, told[1])
    finally:
        process.kill()
        process.wait()


def test_the_readme_names_the_port_that_is_taken_unless_one_says_otherwise() -> None:
    from engine.cli.demo import demo

    [option] = [option for option in demo.params if option.name == "port"]
    assert f"http://127.0.0.1:{option.default}" == WRITTEN
    assert f"<{WRITTEN}/>" in SECTION[1]
    assert f"BACKFILL_DAEMON={WRITTEN}" in SECOND[0]


def test_a_stranger_gets_from_the_readme_to_an_open_gate(stranger: Path, shop: Shop) -> None:
    assert "<title>" in shop.asked("/")
    seen: dict[str, Any] = {}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BACKFILL", "PG"))}
    export = next(line for line in SECOND if line.startswith("export")).replace(WRITTEN, shop.page)
    for line in SECOND[1:]:
        ran = subprocess.run(
            ["sh", "-c", f"{export}\n{line}"], cwd=stranger, env=environment, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, (line, ran.stdout, ran.stderr)
        seen[line.split("#")[0].strip()] = ran.stdout
        if "500 " in line:
            job = shop.asked("/v1/jobs/orders-to-orders-v2")
            assert (job["state"], job["pace"]["max_rows_per_s"]) == ("running", 500)
    job = shop.asked("/v1/jobs/orders-to-orders-v2")
    assert (job["state"], job["verified"]) == ("done", True)
    told = seen["backfill history orders-to-orders-v2"]
    assert "a sale begins" in told and "it is over" in told

    os.killpg(shop.process.pid, signal.SIGINT)
    assert shop.process.wait(PATIENCE_S) == 130
    assert not (stranger / "backfill-demo").exists()
    with pytest.raises(urllib.error.URLError):
        shop.asked("/livez")


def test_files_of_somebody_else_are_left_alone(stranger: Path) -> None:
    from click.testing import CliRunner

    from engine.cli.demo import demo
    from engine.errors import UsageError

    folder = stranger / "mine"
    folder.mkdir()
    (folder / "job.yaml").write_text("name: mine\n")
    found = CliRunner().invoke(demo, ["--serve", "--rows", "10", "--folder", str(folder)], standalone_mode=False)
    assert isinstance(found.exception, UsageError)
    assert [path.name for path in folder.iterdir()] == ["job.yaml"]
    assert (folder / "job.yaml").read_text() == "name: mine\n"
