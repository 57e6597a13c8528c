"""The suite's own alarms ring: each rule of ``tests/support/house.py`` broken once, in a session of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

OFFENDERS = """
import asyncio, subprocess, tempfile
import pytest

def test_skips():
    pytest.skip("no such package here")

@pytest.mark.xfail(reason="known", strict=True)
def test_fails_as_expected():
    assert False

async def test_loses_an_error():
    async def fail():
        raise RuntimeError("nobody awaits me")
    asyncio.create_task(fail())
    await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_exception_handler({"message": "lost", "exception": ValueError("unheard")})

def test_leaves_a_process_and_a_folder():
    subprocess.Popen(["/bin/sleep", "600"], start_new_session=True).returncode = 0
    tempfile.mkdtemp(prefix="left-behind-")
"""

GOOD = "def test_minds_its_manners(tmp_path):\n    assert tmp_path.exists()\n"


def session(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one file of tests under the house rules, without this session's own temporary folder and mark."""
    file = folder / "test_offenders.py"
    file.write_text(text)
    options = ["-p", "tests.support.house", "-p", "no:cacheprovider", "-q", "-o", "asyncio_mode=auto", "--rootdir"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder), str(file)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp", "BACKFILL_FORBID_SKIPS": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_misbehaves_is_reported(tmp_path: Path) -> None:
    done = session(tmp_path, OFFENDERS, BACKFILL_FORBID_SKIPS="1")
    assert done.returncode == 1
    assert "skips are forbidden here: Skipped: no such package here" in done.stdout
    assert "lost: ValueError('unheard')" in done.stdout
    assert "processes outlived the tests: ['/bin/sleep 600']" in done.stdout
    assert "1 failed, 2 passed, 1 xfailed, 2 errors" in done.stdout


def test_a_folder_left_behind_is_reported(tmp_path: Path) -> None:
    done = session(tmp_path, "import tempfile\n\ndef test_leaves():\n    tempfile.mkdtemp(prefix='left-behind-')\n")
    assert "folders outlived the tests: ['left-behind-" in done.stdout
    assert done.returncode == 1


def test_a_file_that_skips_itself_fails_where_skips_are_forbidden(tmp_path: Path) -> None:
    text = "import pytest\npytest.importorskip('no_such_module_anywhere')\n"
    assert "1 skipped" in session(tmp_path, text).stdout
    done = session(tmp_path, text, BACKFILL_FORBID_SKIPS="1")
    assert "skips are forbidden here: Skipped: could not import 'no_such_module_anywhere'" in done.stdout
    assert done.returncode != 0


def test_good_tests_pass(tmp_path: Path) -> None:
    assert session(tmp_path, GOOD, BACKFILL_FORBID_SKIPS="1").returncode == 0
