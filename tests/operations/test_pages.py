"""Every command in ``docs/operations`` is run, in the situation that its page is about, and says what the page shows."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from itertools import zip_longest

import pytest

from tests.operations import situations
from tests.operations.pages import FOLDER, Block, agrees, blocks, pages, result_of
from tests.operations.stage import Stage

Correction = tuple[Block, str]
RUN = ("console", "sql")
WRITES = bool(os.environ.get("BACKFILL_WRITE_PAGES"))
"""For whoever writes a page: where a command says something else than the page shows, put it there."""


LOOKS = re.compile(r"backfill (list|status [\w-]+|pace [\w-]+|history [\w-]+)")
SETTLE_S = 5.0
"""Workers tell of themselves every few seconds: a look that comes too early is repeated."""


@pytest.mark.slow
@pytest.mark.parametrize("page", pages())
def test_a_pages_commands_say_what_it_shows(page: str, stage: Callable[[], Stage]) -> None:
    seen = blocks(page)
    corrections: list[Correction] = []
    on: Stage | None = None
    for block, following in zip_longest(seen, seen[1:]):
        if block.language not in RUN or block.comment.startswith("not run: "):
            continue
        if block.situation is not None:
            on = stage()
            situations.SITUATIONS[block.situation](on)
        assert on is not None, f"{block.place} goes on, but nothing has begun"
        if block.step is not None:
            on.steps[block.step]()
        if block.language == "console":
            corrections += compare_console(block, on)
        else:
            corrections += compare_sql(block, following, on)
    correct(page, corrections)


def compare_console(block: Block, on: Stage) -> list[Correction]:
    commands = [command for command, _ in block.commands]
    deadline = time.monotonic() + (SETTLE_S if all(LOOKS.fullmatch(command) for command in commands) else 0.0)
    while True:
        said = on.shell(commands)
        wrong = list(_disagreements(block, said))
        if not wrong or time.monotonic() > deadline:
            break
    assert not wrong or WRITES, "\n".join(wrong)
    if not wrong:
        return []
    shown = [
        [f"$ {command}", expected if agrees(expected, output) else output.strip("\n")]
        for (command, expected), (_, output) in zip(block.commands, said, strict=True)
    ]
    return [(block, "".join(f"{line}\n" for lines in shown for line in lines if line))]


def _disagreements(block: Block, said: list[tuple[int, str]]) -> Iterator[str]:
    for number, ((command, expected), (code, output)) in enumerate(zip(block.commands, said, strict=True), start=1):
        wanted = block.code if number == len(block.commands) else 0
        if code != wanted:
            yield f"{block.place}: {command} ended with {code}, not {wanted}\n{output}"
        elif not agrees(expected, output):
            yield f"{block.place}: {command}\n--- shown\n{expected}\n--- said\n{output}"


def compare_sql(block: Block, following: Block | None, on: Stage) -> list[Correction]:
    output = on.query(block.text)
    if following is None or (expected := result_of(block, following)) is None or agrees(expected, output):
        return []
    assert WRITES, f"{block.place}\n--- shown\n{expected}\n--- said\n{output}"
    return [(following, f"{output}\n")]


def correct(page: str, corrections: list[Correction]) -> None:
    text = (FOLDER / page).read_text()
    for block, said in reversed(corrections):
        text = text[: block.at] + said + text[block.at + len(block.text) :]
    if corrections:
        (FOLDER / page).write_text(text)


@pytest.mark.parametrize("page", pages())
def test_no_command_is_only_shown(page: str) -> None:
    seen = blocks(page)
    for before, block in zip([None, *seen], seen, strict=False):
        is_result = before is not None and before.language == "sql" and block.language == "text" and not block.comment
        assert is_result or block.is_explained, f"{block.place}: say in which situation it is run, or why it is not"
        if block.language in RUN:
            assert not block.comment.startswith("not run: "), f"{block.place}: what cannot be run is text"
        elif not is_result:
            assert block.language in ("text", "yaml"), f"{block.place}: nobody looks at {block.language}"
            assert block.comment.startswith("not run: "), f"{block.place}: only console and sql are run"


def test_what_cannot_be_run_is_little() -> None:
    everything = [block for page in pages() for block in blocks(page)]
    left_out = [block for block in everything if block.comment.startswith("not run: ")]
    assert len(left_out) * 8 <= len(everything), [block.place for block in left_out]


def test_every_situation_is_on_a_page() -> None:
    used = {block.situation for page in pages() for block in blocks(page)}
    assert set(situations.SITUATIONS) == used - {None}


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("3 rows differ", "2 rows differ"),
        ("a: running 4 % 950 of 20.0 k rows, 2 workers", "a: running 4 % 950 of 20.0 k rows, nobody works on it"),
        ("a  done  100 %  5,000  verified", "a  done  100 %  5,000"),
        ("one\n…", "two\nthree"),
        ("one\ntwo", "one"),
        ("", "an error"),
        ("held: queue 500 > 100", "held: mails 500 > 100"),
        ("retries  0", "retries  1"),
    ],
)
def test_what_matters_is_compared(shown: str, said: str) -> None:
    assert not agrees(shown, said)
    assert agrees(shown, shown)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("started 2026-11-22 16:44:20 UTC (1.1 s ago)", "started 2031-01-02 03:04:05 UTC (2 d 4 h ago)"),
        ("a  running  4 %  950  72  4 min 2 s  2  why", "a running 99 % 1.25 M 2  why"),
        ("limit 400 rows/s", "limit 12.5 k rows/s"),
        ("waited 2 s retry\nend", "end"),
        ("a …\n…\nz", "a b c\nd\ne\nz"),
    ],
)
def test_what_differs_each_time_is_not(shown: str, said: str) -> None:
    assert agrees(shown, said)
