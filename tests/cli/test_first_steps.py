"""What somebody meets who tries the daemon by its README: mistypes an address, looks too soon, reads what is said."""

from __future__ import annotations

import socket
import subprocess
import sys
import tomllib
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.cli.demo_serve import _aligned
from engine.cli.orders import _who_goes_on
from engine.cli.places import LONG_PATIENCE_S, Place, Remote
from engine.cli.serve import _tell
from engine.cli.terminal import Terminal
from engine.cli.verified import How, tell_found
from engine.cli.watched_job import Steadily
from engine.cli.words import NOBODY, one_line, proof
from engine.client import DaemonError
from engine.errors import CannotConnect, HeldByOperator, Problem, SpecError
from engine.fleet.pool import JobLeftAside, Pool
from engine.flow.result import RunResult
from engine.ledger.records import JobStatus, Verification
from engine.model import JobState, Mode
from engine.telemetry.entries import Entry
from tests.cli.conftest import Cli

THERE = Place("cents", Remote("http://127.0.0.1:1"))


class QuickClock:
    """Time passes only where somebody sleeps, and at once."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now(self) -> float:
        return self.passed_s

    async def sleep(self, seconds: float) -> None:
        self.passed_s += seconds


def status(**fields: Any) -> JobStatus:
    now = datetime.now(UTC)
    new = JobStatus(
        job="cents", state=JobState.RUNNING, mode=Mode.COPY, phase="move", source="a", target="b", rows_done=0,
        rows_estimated=10.0, progress=0.0, rows_per_s=0.0, eta_s=None, workers=0, spans_total=1, spans_done=0,
        spans_running=0, bytes_done=0, chunks=0, limit_rows_per_s=None, waiting=None, waits={}, retries=0,
        created_at=now, started_at=now, finished_at=None, error_code=None, error_message=None, error_hint=None,
        resumable=False,
    )  # fmt: skip
    return replace(new, **fields)


# -- a daemon that is away ----------------------------------------------------------------------------------------------


async def test_each_stretch_of_trouble_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    steadily = Steadily(Terminal(), THERE, QuickClock())
    away = CannotConnect("nobody is there")
    outcomes: list[Any] = [1, away, away, 2, away, DaemonError("its database is away", status=503), 3]

    async def question() -> int:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)

    assert [await steadily.ask(question) for _ in range(3)] == [1, 2, 3]
    said = capsys.readouterr().err.splitlines()
    assert said == ["no news for now: nobody is there; trying for 5 min"] * 2


async def test_trouble_that_lasts_is_an_error_in_the_end() -> None:
    clock = QuickClock()
    steadily = Steadily(Terminal(quiet=True), THERE, clock)

    async def fine() -> None:
        pass

    async def away() -> None:
        raise CannotConnect("nobody is there")

    await steadily.ask(fine)
    with pytest.raises(CannotConnect):
        await steadily.ask(away)
    assert LONG_PATIENCE_S < clock.passed_s < LONG_PATIENCE_S + 10


def test_an_address_where_nobody_answers_is_told_soon(backfill: Cli) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    missed = backfill("wait", "cents", "--daemon", url, "--timeout", "15s")
    assert missed.code == CannotConnect.exit_code and "cannot reach the daemon" in missed.err


# -- configuration ------------------------------------------------------------------------------------------------------


def test_what_a_new_token_says_on_stderr_is_a_file_of_tokens(backfill: Cli) -> None:
    assert [*tomllib.loads(backfill("token", "argo", "--scope", "read").err)["tokens"]] == ["argo"]


@pytest.mark.parametrize("section", ['[auth]\ntokens_file = "tokens.toml"', '[tls]\ncertificate = "c"\nkey = "k"'])
def test_a_check_refuses_what_the_daemon_would_refuse(backfill: Cli, tmp_path: Path, section: str) -> None:
    for name in ("tokens.toml", "c", "k"):
        (tmp_path / name).write_text("prose: no file of that kind")
        (tmp_path / name).chmod(0o600)
    config = tmp_path / "backfill.toml"
    config.write_text(f'listen = "tcp://127.0.0.1:0"\n[connections.main]\ndsn = "postgresql://h/d"\n{section}\n')
    config.chmod(0o600)
    checked = backfill("serve", "--config", str(config), "--check")
    assert checked.code in (2, 3) and "is valid" not in checked.out


@pytest.mark.parametrize(
    ("urls", "loopback", "wanted"),
    [
        (["http://127.0.0.1:1", "unix:///run/b.sock"], None, "unix:///run/b.sock"),
        (["http://127.0.0.1:1"], None, "http://127.0.0.1:1 --token-file FILE"),
        (["http://127.0.0.1:1"], {"read"}, "http://127.0.0.1:1"),
    ],
)
def test_the_first_command_to_try_is_one_that_works(
    capsys: pytest.CaptureFixture[str], urls: list[str], loopback: Any, wanted: str
) -> None:
    config: Any = SimpleNamespace(auth=SimpleNamespace(loopback=loopback))
    _tell(Terminal(), config, Entry(event="daemon.ready", message="listening on them", fields={"urls": urls}))
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("listening on them")
    assert f"  backfill list --daemon {wanted}" in said


def test_a_demonstration_whose_port_is_taken_starts_nothing(backfill: Cli, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        refused = backfill("demo", "--serve", "--port", str(port), "--folder", str(tmp_path / "shop"))
    assert refused.code == 2 and "--port" in refused.err and "PostgreSQL" not in refused.err
    assert not (tmp_path / "shop").exists()


def test_what_is_to_be_tried_stands_in_columns() -> None:
    lines = _aligned({"wait a": "until it is done", "pace a --workers 1": "slowly"}).splitlines()
    assert len({line.index("#") for line in lines}) == 1


# -- words --------------------------------------------------------------------------------------------------------------


def test_nobody_works_on_it_is_said_only_when_it_has_lasted() -> None:
    long_ago = datetime.now(UTC) - timedelta(seconds=11)
    assert NOBODY not in one_line(status())
    assert NOBODY in one_line(status(started_at=long_ago))
    assert NOBODY in one_line(status(chunks=3)), "somebody has worked on it"
    found = {"started_at": datetime.now(UTC).isoformat()}
    verifying = status(state=JobState.VERIFYING, chunks=3, started_at=long_ago, verification=found)
    assert NOBODY not in one_line(verifying)
    assert NOBODY in one_line(replace(verifying, progress=0.4)), "somebody has worked on it"
    assert NOBODY in one_line(replace(verifying, verification=found | {"started_at": long_ago.isoformat()}))


def test_a_job_of_a_daemon_is_taken_up_by_it() -> None:
    assert _who_goes_on(THERE, status()) == "; the daemon takes it up"


def test_one_row_differs() -> None:
    done = status(state=JobState.DONE, verified=False, verification={"mismatched": 1})
    assert proof(done) == "1 row differs"
    assert proof(replace(done, verification={"mismatched": 2})) == "2 rows differ"


@pytest.mark.parametrize("by_daemon", [True, False])
def test_keys_of_rows_are_offered_only_where_they_are_shown(
    capsys: pytest.CaptureFixture[str], by_daemon: bool
) -> None:
    now = datetime.now(UTC)
    found = Verification(
        id=0, repair=False, delete_extra=False, settle_s=1.0, who="", started_at=now, finished_at=now,
        outcome="mismatch", rows=9, suspects=1, mismatched=1, missing=0, extra=0, unsettled=0, repaired=0, columns={},
        not_compared=(), truncated=False, target_mark=None,
    )  # fmt: skip
    tell_found(Terminal(), None, "cents", found, How(by_daemon=by_daemon))
    said = capsys.readouterr().err
    assert "--repair mends them" in said and ("--show-rows" in said) is not by_daemon


def test_a_single_problem_is_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = Problem("mode", "is no mode", "write copy"), Problem("name", "is missing")
    Terminal().error(SpecError([one]))
    assert capsys.readouterr().err == "error: mode is no mode\n  hint: write copy\n"
    Terminal().error(SpecError([one, two]))
    assert capsys.readouterr().err.endswith("error: 2 problems\n")


def test_a_connection_in_a_specs_place_is_told_its_flag(backfill: Cli) -> None:
    missed = backfill("doctor", "main", "--daemon", "http://127.0.0.1:1")
    assert missed.code == 2 and "--connection main" in missed.err


def test_a_caller_without_a_token_is_told_how_to_give_one(backfill: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise DaemonError("who are you?", code="unauthenticated", status=401, hint="send a token: Authorization: …")

    monkeypatch.setattr("engine.cli.status.run_async", refused)
    monkeypatch.setattr("engine.cli.status._list", lambda *_: None)
    assert "--token-file FILE, or BACKFILL_TOKEN" in backfill("list", "--daemon", "http://127.0.0.1:1").err


def test_an_interruption_while_the_program_is_loaded_shows_no_traceback() -> None:
    interrupted = (
        "import sys\nclass Stop:\n def find_spec(self, name, *_):\n  if name == 'click': raise KeyboardInterrupt\n"
    )
    interrupted += "sys.meta_path.insert(0, Stop())\nfrom engine.cli.main import main\n"
    ended = subprocess.run([sys.executable, "-c", interrupted], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


@pytest.mark.parametrize(("state", "told"), [(JobState.CANCELLED, 0), (JobState.FAILED, 0), (JobState.PAUSED, 1)])
def test_a_job_that_has_ended_is_not_told_to_be_left_aside(state: JobState, told: int) -> None:
    lender: Any = SimpleNamespace(target=None, max_workers=None)
    events: list[Any] = []
    pool = Pool(lender, emit=events.append)
    result = RunResult(
        job="cents", state=state, rows=0, bytes=0, chunks=0, seconds=1.0, retries=0, resumed=False, drained=False,
        error=HeldByOperator("job was stopped", state=state),
    )  # fmt: skip
    pool._ended(result)
    assert sum(isinstance(event, JobLeftAside) for event in events) == told
    assert pool.errors["cents"] is result.error
