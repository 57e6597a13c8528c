"""Named places where a fault test stops a process dead, and that are nothing in production."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import timeit

import psutil

from engine.crashpoint import POINTS, crashpoint

THRICE = """
from engine.crashpoint import crashpoint
for turn in range(3):
    print(turn, flush=True)
    crashpoint("write.before")
    crashpoint("write.after")
print("end", flush=True)
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program that passes crashpoints, armed through its environment."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_an_unarmed_point_does_nothing() -> None:
    done = run(THRICE)
    assert done.returncode == 0
    assert done.stdout.split() == ["0", "1", "2", "end"]


def test_the_process_kills_itself_at_the_armed_point() -> None:
    done = run(THRICE, BACKFILL_CRASH_AT="write.after")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["0"]


def test_a_number_chooses_the_turn() -> None:
    done = run(THRICE, BACKFILL_CRASH_AT="write.before#3")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["0", "1", "2"]


def test_it_can_stop_itself_instead_and_go_on_when_told() -> None:
    environment = {**os.environ, "BACKFILL_CRASH_AT": "write.before#2", "BACKFILL_CRASH_BY": "stop"}
    with subprocess.Popen([sys.executable, "-c", THRICE], env=environment, stdout=subprocess.PIPE, text=True) as child:
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
        os.kill(child.pid, signal.SIGCONT)
        output, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert output.split() == ["0", "1", "2", "end"]


def test_an_undeclared_name_is_found_by_any_armed_run() -> None:
    done = run("from engine.crashpoint import crashpoint\ncrashpoint('misspelt')", BACKFILL_CRASH_AT="write.before")
    assert done.returncode == 1
    assert "'misspelt' is not declared" in done.stderr


def test_names_are_declared_once() -> None:
    assert len(set(POINTS)) == len(POINTS)


def test_a_point_costs_less_than_a_microsecond_in_production() -> None:
    loops = 10_000
    best = min(timeit.repeat(lambda: crashpoint("write.before"), number=loops, repeat=5))
    assert best / loops < 1e-6
