"""The pages of ``docs/operations``: their blocks, and whether what a command said is what the page shows.

Before each block that is run stands a comment that the reader does not see::

    <!-- situation: held -->              begins a situation of ``tests.operations.situations``
    <!-- situation: held, exits 7 -->     … and the block's last command ends with 7
    <!-- goes on -->                      the next block in the same situation
    <!-- then: the writer commits -->     first something happens there, then the next block

A ``console`` block holds commands, each behind ``$``, and what they print.  A ``sql`` block is run by psql, and the
``text`` block right after it is the result.  In what is expected ``…`` stands for anything within a line, a line of ``…``
alone for any lines.  Where a page shows one time, duration, size, share, speed, fraction, process id, or number of three
digits and more, another will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
WRITTEN_BY_HAND = frozenset({"alerts.md"})
"""Pages without commands of their own, kept by the tests of the alerts."""

ANY = "…"
_BLOCK = re.compile(
    r"(?:^<!-- (?P<comment>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_VARIES = (
    (r"^waited .*\n?", ""),  # which reasons there are, and whether there is one at all
    (r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(\+00(:00)?| UTC)?", "<time>"),
    (r"\b\d\d:\d\d-\d\d:\d\d\b", "<window>"),
    (r"\b\d\d:\d\d:\d\d\b", "<time>"),
    (
        r"(?<![\w.])(\d+ d \d+ h|\d+ h \d+ min|\d+h \d+m|\d+ min \d+ s|\d[\d.,]*(e-\d+)? ?(ms|s|min|minutes|h|d))\b",
        "<duration>",
    ),
    (r"(?<![\w.])\d[\d.,]*( [kMGT])? rows/s(?!\w)", "<speed>"),
    (r"(?<![\w.])\d[\d.,]* ?([KMGT]iB|[kMG]?B|bytes)(/s)?\b", "<size>"),
    (r"(?<![\w.])\d[\d.,]* ?%", "<share>"),
    (r"(?<![\w.])\d[\d.,]* [kMGT]\b", "<number>"),
    (r"\b(worker1:|pid |pressure |chunks of )\d[\d.]*", r"\1<number>"),
    (r"\b\d[\d,]* chunks?\b", "<number> chunks"),
    (r"\b\d+ of \d+ done, \d+ running\b", "<spans>"),
    (r"(?<![\w.])\d+\.\d+\b", "<number>"),
    (r"(?<![\w.])(\d{3,}|\d{1,3}(,\d{3})+)\b", "<number>"),
    (r"-{2,}", "-"),
    # A line of ``backfill list``: how many rows, how fast, and how long.
    (r"^(\S+ \w+ <share>) (<number>|\d+)( (<number>|\d+) <duration>)?", r"\1 <rows>"),
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block and the comment before it."""

    page: str
    at: int  # where its text begins in the page
    line: int
    language: str
    comment: str
    text: str

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.page}:{self.line}"

    @property
    def situation(self) -> str | None:
        """The situation that begins here."""
        found = re.match(r"situation: ([\w -]+)", self.comment)
        return found[1] if found else None

    @property
    def step(self) -> str | None:
        """What happens before this block."""
        found = re.match(r"then: ([\w' -]+)", self.comment)
        return found[1] if found else None

    @property
    def is_explained(self) -> bool:
        """The comment says what the block is run in, or why not."""
        return bool(self.situation or self.step or self.comment.startswith(("goes on", "not run: ")))

    @property
    def code(self) -> int:
        """What the last command ends with."""
        found = re.search(r"exits (\d+)", self.comment)
        return int(found[1]) if found else 0

    @property
    def commands(self) -> list[tuple[str, str]]:
        """Command and expected output, in order."""
        found: list[tuple[str, list[str]]] = []
        lines = iter(self.text.splitlines())
        for line in lines:
            if line.startswith("$ "):
                command = line[2:]
                while command.endswith("\\"):
                    command = f"{command}\n{next(lines)}"
                found.append((command, []))
            else:
                assert found, f"{self.place} begins without a command"
                found[-1][1].append(line)
        return [(command, "\n".join(said)) for command, said in found]


def pages() -> list[str]:
    """The names of the pages."""
    return sorted(path.name for path in FOLDER.glob("*.md") if path.name not in WRITTEN_BY_HAND)


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (FOLDER / page).read_text()
    return [
        Block(page, m.start("text"), text.count("\n", 0, m.start()) + 1, m["language"], m["comment"] or "", m["text"])
        for m in _BLOCK.finditer(text)
    ]


def result_of(block: Block, following: Block | None) -> str | None:
    """What the page says that a ``sql`` block gives; None where it does not say."""
    if following is not None and following.language == "text" and not following.comment:
        return following.text.rstrip("\n")
    return None


def normal(text: str) -> str:
    """Without what differs from one time to the next."""
    text = "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in text.strip("\n").splitlines())
    for pattern, name in _VARIES:
        text = re.sub(pattern, name, text, flags=re.MULTILINE)
    return text


def agrees(expected: str, said: str) -> bool:
    """Whether a command said what the page shows."""
    lines = normal(expected).split("\n")
    pattern = "".join(_any_lines(lines))
    return re.fullmatch(pattern, f"{normal(said)}\n" if normal(said) else "") is not None


def _any_lines(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if line == ANY:
            yield r"(?:[^\n]*\n)*?"
        elif line or len(lines) > 1:
            yield r"[^\n]*?".join(re.escape(part) for part in line.split(ANY)) + r"\n"
