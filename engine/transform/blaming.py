"""Which rows of a batch make a function raise.

Nobody can ask the function, so the batch is halved, in memory, until single rows raise.  For ``r`` of ``n`` rows that
takes at most about ``2 r log2(n)`` calls.  Before that a few rows from all over the batch are tried alone: where every
one of them raises it is not the rows that are wrong, but the function, or what it calls; then it stops at once.  Small
batches have too few rows for that: there those that raise in a row are counted, from batch to batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import numpy as np

from engine._native.rows import Rows
from engine.errors import TooManyBadRows, TransformFailed
from engine.transform.passing import GO_ON, RAISED, Done, Raised, Rejected

TRIED_ALONE: Final = 64
"""Rows that must all raise, each alone, for it to be the function's fault.  A batch of fewer rows may well have only
bad ones."""

Attempt = Callable[[Rows], Awaitable[Done | Raised]]


class InARow:
    """Rows of a worker's small batches that have raised, each alone, since anything last went well.

    ``fields``: that tell one row from another.  A chunk that is tried again brings the same rows: they count once.
    """

    def __init__(self, fields: Iterable[int]) -> None:
        self._fields = sorted(fields)
        self._seen: set[int] = set()

    def add(self, rows: Rows, row: int) -> None:
        """One more has raised."""
        self._seen.add(hash(tuple([rows.value(row, field) for field in self._fields])))

    def end(self) -> None:
        """Something went well."""
        self._seen.clear()

    @property
    def is_outage(self) -> bool:
        """More of them than can be by chance."""
        return len(self._seen) > TRIED_ALONE


async def without_raising(
    attempt: Attempt, rows: Rows, raised: Raised, name: str, *, most: int, found: int, in_a_row: InARow
) -> list[tuple[int, Done]]:
    """What becomes of ``rows``, on which the function has ``raised``, in pieces: each with the number of its first row.

    A row that raises is a piece of its own, rejected.  Raises ``TransformFailed`` where the function is to blame, and
    ``TooManyBadRows`` where more than ``most`` rows of the batch are, of which ``found`` are known already.
    """
    if most <= 0:
        raise TransformFailed(f"{name} raised {raised.shown}", hint=_HINT)
    is_small = rows.count <= TRIED_ALONE
    if not is_small:
        await _try_some_alone(attempt, rows, name)
        in_a_row.end()
    pieces: list[tuple[int, Done]] = []
    left: list[tuple[int, int, Raised | None]] = [(0, rows.count, raised)]  # the last is the next; None: not tried yet
    while left:
        begin, end, outcome = left.pop()
        if outcome is None:
            await asyncio.sleep(0)  # whoever waits may have gone
            tried = await attempt(rows.take(np.arange(begin, end)))
            if isinstance(tried, Done):
                in_a_row.end()
                pieces.append((begin, tried))
                continue
            outcome = tried
        if end - begin > 1:
            middle = (begin + end) // 2
            left += [(middle, end, None), (begin, middle, None)]
            continue
        if is_small and most > TRIED_ALONE:  # else so many are too many anyhow, or asked for one by one
            in_a_row.add(rows, begin)
            if in_a_row.is_outage:
                raise _not_the_rows(name, outcome, "each of more than")
        found += 1
        if found > most:
            raise TooManyBadRows(
                f"{name} raises on more rows of one batch than may be set aside ({most:,}), the last time"
                f" {outcome.shown}",
                hint=_HINT,
                sqlstate=RAISED,
            )
        pieces.append((begin, Done(b"", 0, 0, [Rejected(0, outcome.reason, RAISED)])))
    return pieces


async def _try_some_alone(attempt: Attempt, rows: Rows, name: str) -> None:
    outcome: Done | Raised | None = None
    for row in np.linspace(0, rows.count - 1, TRIED_ALONE).astype(np.int64):
        outcome = await attempt(rows.take([int(row)]))
        if isinstance(outcome, Done):
            return
    assert isinstance(outcome, Raised), "at least one was tried"
    raise _not_the_rows(name, outcome, "each of")


def _not_the_rows(name: str, raised: Raised, how_many: str) -> TransformFailed:
    return TransformFailed(
        f"{name} raised {raised.shown}: on {how_many} {TRIED_ALONE} rows that were tried alone, so it is not the rows",
        hint=f"mend the function, or what it calls; {GO_ON}",
        sqlstate=RAISED,
    )


_HINT: Final = (
    "mend the function, or let it reject such rows, or in a spec file errors: {max_quarantined: N} sets up to N rows"
    f" aside; {GO_ON}"
)
