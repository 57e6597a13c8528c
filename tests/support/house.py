"""House rules for every test: nothing outlives the session, no error goes unseen, no skip passes for a test.

A pytest plugin; ``tests/conftest.py`` loads it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

FORBID_SKIPS = os.environ.get("BACKFILL_FORBID_SKIPS", "") not in ("", "0")
MARK = "BACKFILL_TEST_SESSION"
LEAVE_S = 2.0
"""What a process that was told to end may take."""

_loop_errors: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a temporary folder of its own, which must be empty in the end, and mark its processes."""
    folder = Path(tempfile.mkdtemp(prefix="backfill-tests-"))
    folder.chmod(0o1777)  # servers run as another account when we are root
    config.stash[_FOLDER] = folder
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest keeps the last runs' on purpose
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    os.environ[MARK] = uuid.uuid4().hex
    asyncio.BaseEventLoop.default_exception_handler = _remember  # type: ignore[method-assign]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the folder, even when the session failed before its end."""
    shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)


_FOLDER = pytest.StashKey[Path]()


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_session(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up first and so torn down last, when every server should be gone, with its folder."""
    yield
    _, alive = psutil.wait_procs(list(_our_processes()), timeout=LEAVE_S)
    left = [" ".join(process.cmdline()) or process.name() for process in alive if process.is_running()]
    for process in alive:
        process.kill()
    assert not left, f"processes outlived the tests: {left}"
    folders = [path.name for path in request.config.stash[_FOLDER].iterdir()]
    assert not folders, f"folders outlived the tests: {folders}"


@pytest.fixture(autouse=True)
def no_unhandled_loop_errors() -> Iterator[None]:
    """Fail on what an event loop would only have logged."""
    _loop_errors.clear()
    yield
    errors, _loop_errors[:] = list(_loop_errors), []
    assert not errors, "unhandled in the event loop:\n" + "\n".join(errors)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """With BACKFILL_FORBID_SKIPS=1 a skipped test has failed."""
    report: Any = yield
    if FORBID_SKIPS and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skips are forbidden here: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """The same for a whole file that skips itself."""
    report: Any = yield
    if FORBID_SKIPS and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"skips are forbidden here: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: Any) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


def _remember(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _loop_errors.append(f"{context.get('message')}: {context.get('exception')!r}")


def _our_processes() -> Iterator[psutil.Process]:
    """Our descendants, and whatever else carries this session's mark in its environment."""
    ourselves = psutil.Process()
    descendants = set(ourselves.children(recursive=True))
    yield from descendants
    spared = {ourselves, *ourselves.parents(), *descendants}
    for process in psutil.process_iter():
        if process in spared:
            continue
        try:
            if process.environ().get(MARK) == os.environ[MARK]:
                yield process
        except psutil.Error:
            continue
