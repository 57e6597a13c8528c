"""The container file: linted, without root, without secrets, and given only what the wheel is built from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from engine.cli.main import cli
from engine.telemetry.boards import PAGES

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Containerfile"
TEXT = re.sub(r"\\\n\s*", " ", FILE.read_text())
LAST_STAGE = TEXT[TEXT.rindex("\nFROM ") :]


def instructions(name: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([str(program), str(FILE)], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_it_runs_as_a_user_that_is_not_root_by_number() -> None:
    assert instructions("USER", LAST_STAGE) == ["10001:10001"]
    assert "--uid 10001" in LAST_STAGE


def test_the_last_stage_builds_and_copies_nothing_but_the_environment() -> None:
    assert instructions("COPY", LAST_STAGE) == ["--from=build /opt/backfill /opt/backfill"]
    assert not re.search(r"\b(pip|apt-get|curl|gcc)\b", LAST_STAGE)
    assert not instructions("ARG") and "SECRET" not in TEXT.upper().replace("NO SECRET GOES IN", "")


def test_entry_point_and_health_check_are_commands_that_exist() -> None:
    [entry], [arguments] = instructions("ENTRYPOINT"), instructions("CMD", LAST_STAGE)
    assert json.loads(entry) == ["backfill"]
    [check] = [json.loads(line[line.index("[") :]) for line in instructions("HEALTHCHECK")]
    for name, *rest in (json.loads(arguments), check[1:]):
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        command.make_context(name, rest)


def is_sent(path: str) -> bool:
    """Whether ``.dockerignore`` lets a file through: the last line that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        keeps, pattern = line.startswith("!"), line.lstrip("!")
        parents = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
        if any(fnmatch(one, pattern) or fnmatch("/" + one, pattern.replace("**/", "*/")) for one in parents):
            sent = keeps
    return sent


def test_the_build_is_given_what_the_wheel_is_built_from_and_nothing_else() -> None:
    needed = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "engine/_native/keyspace.pyx"]
    needed += ["engine/ledger/queries.sql", "engine/service/app.py", "grafana/README.md", "grafana/boards/__init__.py"]
    needed += [str(path.relative_to(ROOT)) for pattern in PAGES for path in ROOT.glob(pattern)]
    assert [path for path in needed if not is_sent(path)] == []
    unwanted = [".git/config", ".venv/bin/python", "tests/conftest.py", "backfill.toml", "tokens.toml", ".env"]
    unwanted += ["engine/__pycache__/a.pyc", "engine/_native/keyspace.cpython-311-x86_64-linux-gnu.so", "deploy/x.yaml"]
    assert [path for path in unwanted if is_sent(path)] == []
