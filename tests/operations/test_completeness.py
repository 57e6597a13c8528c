"""The pages leave nothing out: every field, label, state, stage and reason that an operator may meet is on them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from engine.cli import words
from engine.flow import worker
from engine.ledger.records import JobStatus
from engine.model import JobState, Mode, Phase
from engine.pace.law import Stage
from tests.operations.pages import FOLDER, WRITTEN_BY_HAND, blocks, pages

WATCH = (FOLDER / "watch.md").read_text()
INDEX = (FOLDER / "index.md").read_text()
NOW = datetime(2026, 12, 1, tzinfo=UTC)
SIGNAL = {
    "name": "read_latency", "value": 0.0061, "target": 0.005, "max": None, "baseline": 0.001, "age_s": 0.5,
    "unit": "s", "pressure": 1.2, "detail": "", "error": "",
}  # fmt: skip
FULL = JobStatus(
    job="orders", state=JobState.FAILED, mode=Mode.UPDATE, phase="move", source="a", target="a", rows_done=1,
    rows_estimated=2.0, progress=0.5, rows_per_s=1.0, eta_s=1.0, workers=1, spans_total=1, spans_done=0,
    spans_running=1, bytes_done=1, chunks=1, limit_rows_per_s=1.0, waiting="", waits={"retry": 1.0}, retries=1,
    created_at=NOW, started_at=NOW, finished_at=NOW, error_code="bad_row", error_message="a", error_hint="b",
    resumable=True, signals=(SIGNAL,), deadline={"late_by_s": 1.0}, growth={"ratio": 0.1, "max": 0.2}, quarantined=1,
    verified=False, verification={"outcome": "mismatch", "mismatched": 1},
)  # fmt: skip
FREE = frozenset({"waits", "error", "pace.orders", "pace.deadline", "pace.growth", "verification.columns"})
"""Objects whose names depend on the job, or that one line tells all about."""


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next of its kind."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def first_cells(text: str) -> Iterator[list[str]]:
    """The names in code in the first column of each line of the tables."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield re.findall(r"`([^`]+)`", line.split(" | ")[0])


def fields(value: dict[str, Any], path: str = "") -> Iterator[str]:
    """The names of all fields, those inside others after a dot."""
    for name, inner in value.items():
        here = f"{path}{name}"
        if isinstance(inner, dict) and here not in FREE:
            yield from fields(inner, f"{here}.")
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
            yield from fields(inner[0], f"{here}[].")
        else:
            yield here


def test_every_field_of_status_is_explained_and_no_other() -> None:
    explained: set[str] = set()
    for names in first_cells(section(WATCH, "status --json")):
        above = names[0].rpartition(".")[0]
        explained |= {f"{above}{name}" if name.startswith(".") else name for name in names}
    assert explained == set(fields(FULL.as_json()))


def test_every_label_of_the_details_is_explained_and_no_other() -> None:
    source = inspect.getsource(words.block) + inspect.getsource(words.pace_block)
    labels = set(re.findall(r'\(\s*"([a-z ]+)",\s', source))
    assert {label for label, _ in words.block(FULL)} <= labels
    explained = {name for names in first_cells(section(WATCH, "The details")) for name in names}
    assert explained == labels


def test_the_columns_of_the_list_are_explained() -> None:
    [listed] = [block for block in blocks("list.md") if block.text.startswith("$ backfill list\n")]
    explained = section(WATCH, "The columns of list")
    head = listed.text.splitlines()[1].split()
    assert len(head) > 5 and all(f"`{column}`" in explained for column in head), head


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_is_explained(stage: Stage) -> None:
    [told] = [line for line in section(WATCH, "The details").splitlines() if line.startswith("| `stage`")]
    assert f"`{stage}`" in told


@pytest.mark.parametrize("phase", [*Phase, "end"])
def test_every_phase_is_explained(phase: str) -> None:
    [told] = [line for line in section(WATCH, "status --json").splitlines() if line.startswith("| `phase`")]
    assert f"`{phase}`" in told


@pytest.mark.parametrize("state", JobState)
def test_every_state_leads_to_a_page(state: JobState) -> None:
    assert [state.value] in list(first_cells(section(INDEX, "By state")))


@pytest.mark.parametrize(
    "word", [worker.NO_SPAN, worker.PARKED, "claiming a span", "server cannot be reached", "retry", "window"]
)
def test_what_workers_wait_for_is_explained(word: str) -> None:
    assert f"`{word}`" in section(WATCH, 'Words behind "waited" and "waiting for"')


@pytest.mark.parametrize("why", [words.NOBODY, words.NO_PACER, "held:", "waiting for:"])
def test_every_reason_leads_to_a_page(why: str) -> None:
    assert re.search(rf"^\| `{re.escape(why)}", section(INDEX, "By reason"), re.MULTILINE)


def test_the_index_leads_to_every_page() -> None:
    linked = set(re.findall(r"\(([\w-]+\.md)", INDEX))
    assert linked | {"index.md"} == set(pages()) | WRITTEN_BY_HAND


@pytest.mark.parametrize("page", [page for page in pages() if page not in ("index.md", "list.md", "watch.md")])
def test_a_page_says_what_not_to_do(page: str) -> None:
    assert "**What not to do.**" in (FOLDER / page).read_text()
