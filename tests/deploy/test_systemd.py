"""The unit for systemd: systemd itself says that it is well formed, and how much of the machine it exposes."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from engine.service.config import Config
from engine.spec.units import parse_duration

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = FOLDER / "backfill.service"
MOST_EXPOSED = 2.0

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine's root with the unit, and what it starts and waits for, as empty as can be."""
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    shutil.copy(UNIT, units)
    for name in (
        "sysinit.target",
        "basic.target",
        "shutdown.target",
        "network-online.target",
        "-.slice",
        "system.slice",
    ):
        (units / name).write_text("[Unit]\nDescription=there\nDefaultDependencies=no\n")
    for program in ("opt/backfill/bin/backfill", "bin/kill"):
        path = tmp_path / program
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return tmp_path


def analyzed(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments, f"--root={root}"], capture_output=True, text=True, timeout=60, check=False
    )


def settings(section: str) -> dict[str, str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return dict(parser[section])


def test_systemd_finds_nothing_wrong_with_the_unit(root: Path) -> None:
    found = analyzed(root, "verify", "--man=no", "--recursive-errors=yes", str(root / "etc/systemd/system" / UNIT.name))
    assert found.returncode == 0, found.stderr
    assert "backfill.service" not in found.stderr, found.stderr


def test_systemd_would_find_a_mistake(root: Path) -> None:
    unit = root / "etc/systemd/system" / UNIT.name
    unit.write_text(unit.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilegs=yes"))
    assert "NoNewPrivilegs" in analyzed(root, "verify", "--man=no", str(unit)).stderr


def test_the_unit_exposes_little_of_the_machine(root: Path) -> None:
    found = analyzed(root, "security", "--offline=yes", "--no-pager", UNIT.name)
    exposure = re.search(r"Overall exposure level for backfill\.service: ([0-9.]+)", found.stdout)
    assert exposure is not None, found.stdout + found.stderr
    assert float(exposure[1]) <= MOST_EXPOSED, found.stdout


def test_the_time_to_stop_is_longer_than_the_drain_and_what_it_may_take_to_cut_off_the_rest() -> None:
    assert float(settings("Service")["TimeoutStopSec"]) >= Config.model_fields["drain"].default + 20


def test_a_drained_daemon_counts_as_well_ended_and_a_wrong_configuration_is_not_tried_again() -> None:
    service = settings("Service")
    assert service["SuccessExitStatus"] == "143"
    assert service["RestartPreventExitStatus"].split() == ["2", "3"]


def test_the_socket_of_the_unit_is_where_daemon_and_probe_look_by_default() -> None:
    from engine.cli.health import DEFAULT_DAEMON
    from engine.service.config import DEFAULT_LISTEN

    folder = f"/run/{settings('Service')['RuntimeDirectory']}"
    assert f"unix://{folder}/backfill.sock" == DEFAULT_LISTEN == DEFAULT_DAEMON


def test_the_watchdog_is_longer_than_any_pause_of_a_loaded_machine() -> None:
    assert parse_duration(settings("Service")["WatchdogSec"] + "s") >= 20


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd is not installed")
def test_the_user_of_the_unit_is_made(tmp_path: Path) -> None:
    made = subprocess.run(
        ["systemd-sysusers", "--dry-run", f"--root={tmp_path}", str(FOLDER / "backfill.sysusers")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert f"Creating user '{settings('Service')['User']}'" in made.stderr + made.stdout
