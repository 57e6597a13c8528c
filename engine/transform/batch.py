"""What a function is given: the columns it reads, for some rows, and what it may say about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.model import Declaration
from engine.transform.columns import Column, ListColumn

MAX_REASON_CHARS: Final = 200
"""A reason stands in the quarantine once for each row."""

NOT_REJECTED: Final = -1


class Misused(Exception):
    """A function asked its batch for something that makes no sense.  The message holds no values.

    The function's fault and not that of a row: no row is looked for.
    """

    @property
    def safe(self) -> str:
        """What is wrong, without anything that the function said itself."""
        return str(self)


class NotRead(Misused, KeyError):
    """A column was asked for that the transform does not read."""

    def __str__(self) -> str:  # KeyError's own would put quotes round it
        return str(self.args[0])

    @property
    def safe(self) -> str:
        """Without the name: it may be a value that the function takes for one."""
        return str(self.args[1])


class _Marks:
    """What was said about rows: one object for a batch and for all that are narrowed from it."""

    __slots__ = ("drop", "reasons", "rejected")

    def __init__(self) -> None:
        self.drop: NDArray[np.bool_] | None = None
        self.rejected: NDArray[np.int64] | None = None  # per row: the place of its reason, or NOT_REJECTED
        self.reasons: list[str] = []


class Batch:
    """Some rows of a table: ``batch["amount"]`` is a column that the transform reads, for all of them.

    The arrays are the function's own: it may overwrite them.  Rows count from 0; what is written is an array of
    ``rows`` entries in the same order, those of rejected and dropped rows included: what stands there is not looked at.
    """

    __slots__ = ("_columns", "_drops", "_marks", "_rows", "_state")

    def __init__(
        self, columns: Mapping[str, Column | ListColumn], rows: int, *, state: Any = None, drops: bool = False
    ) -> None:
        self._columns = dict(columns)
        self._rows = rows
        self._state = state
        self._drops = drops
        self._marks = _Marks()

    @classmethod
    def of(
        cls, columns: Mapping[str, Column | ListColumn | NDArray[Any]], *, state: Any = None, rows: int | None = None
    ) -> Batch:
        """A batch made by hand, to test a transform with.

        Arrays become columns without NULLs, masked arrays columns that are NULL where they are masked.  ``rows`` is
        needed only where there are no columns.  Raises ``ValueError`` where columns differ in length.
        """
        made = {name: _as_column(given) for name, given in columns.items()}
        lengths = {len(column) for column in made.values()} | (set() if rows is None else {rows})
        if len(lengths) != 1:
            raise ValueError(f"the columns of a batch have one length, not {sorted(lengths)}")
        return cls(made, lengths.pop(), state=state, drops=True)

    def narrow(self, declaration: Declaration) -> Batch:
        """The same rows as a batch of a job is for a transform of that declaration: without other columns, and without
        ``drop`` unless it is declared.  What is rejected and dropped there, is here too.  Raises ``ValueError`` where
        a column that is read is not there.
        """
        missing = [repr(name) for name, _ in declaration.reads if name not in self._columns]
        if missing:
            raise ValueError(f"the batch lacks {', '.join(missing)}, which the transform reads")
        columns = {name: self._columns[name] for name, _ in declaration.reads}
        narrowed = Batch(columns, self._rows, state=self._state, drops=declaration.drops)
        narrowed._marks = self._marks
        return narrowed

    @property
    def rows(self) -> int:
        """How many rows there are: at least one."""
        return self._rows

    @property
    def state(self) -> Any:
        """What ``setup`` returned in this worker; None without one.  Batches in flight at once share it."""
        return self._state

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are read, in the order of the declaration."""
        return tuple(self._columns)

    def __getitem__(self, name: str) -> Any:  # Column or ListColumn: which is known to whoever knows the table
        column = self._columns.get(name)
        if column is None:
            reads = f"it reads {', '.join(self._columns) or 'nothing'}"
            raise NotRead(f"the transform does not read {name!r}; {reads}", f"no such column is read; {reads}")
        return column

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __repr__(self) -> str:  # never values: it may end in a log
        return f"<batch of {self._rows} rows: {', '.join(self._columns)}>"

    def reject(self, where: Any, reason: str) -> None:
        """Set rows aside in the quarantine rather than write them.

        ``where``: a mask of shape (rows,), an array of row numbers, or one row number.  ``reason``: one short line for
        whoever looks at the quarantine; no values of the row, which has them.  Of several reasons for one row the
        first is kept.
        """
        if not isinstance(reason, str):
            raise Misused(f"reject: the reason is a str, not {type(reason).__name__}")
        if self._marks.rejected is None:
            self._marks.rejected = np.full(self._rows, NOT_REJECTED, np.int64)
        chosen = self._mask(where, "reject") & (self._marks.rejected == NOT_REJECTED)
        if chosen.any():
            self._marks.rejected[chosen] = len(self._marks.reasons)
            self._marks.reasons.append(one_line(reason, MAX_REASON_CHARS) or "rejected")

    def drop(self, where: Any) -> None:
        """Leave rows out: not inserted into a target; left alone in place.  ``where`` as of ``reject``.

        Only for a transform that declares ``drops=True``.
        """
        if not self._drops:
            raise Misused("drop: the transform is not declared with drops=True")
        mask = self._mask(where, "drop")
        self._marks.drop = mask if self._marks.drop is None else self._marks.drop | mask

    @property
    def rejected(self) -> dict[int, str]:
        """The reason of each row that was rejected, by its number."""
        if self._marks.rejected is None:
            return {}
        rows = np.flatnonzero(self._marks.rejected != NOT_REJECTED)
        return {int(row): self._marks.reasons[self._marks.rejected[row]] for row in rows}

    @property
    def dropped(self) -> NDArray[np.bool_]:
        """Which rows are left out: bool of shape (rows,).  A row that is also rejected counts as rejected."""
        mask = np.zeros(self._rows, np.bool_) if self._marks.drop is None else self._marks.drop.copy()
        if self._marks.rejected is not None:
            mask &= self._marks.rejected == NOT_REJECTED
        return mask

    def _mask(self, where: Any, what: str) -> NDArray[np.bool_]:
        given = where.filled(False) if isinstance(where, np.ma.MaskedArray) else np.asarray(where)
        if given.dtype == np.bool_ and given.shape == (self._rows,):
            return given.copy() if given is where else np.ascontiguousarray(given)
        if given.dtype.kind not in "iu" and given.size:
            raise Misused(
                f"{what}: a mask of bool of shape ({self._rows},) or numbers of rows, not {given.dtype} of"
                f" shape {given.shape}"
            )
        if given.ndim > 1:
            raise Misused(f"{what}: numbers of rows have shape (n,), not {given.shape}")
        numbers = np.atleast_1d(given)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= self._rows):
            raise Misused(f"{what}: rows count from 0 to {self._rows - 1}")
        mask = np.zeros(self._rows, np.bool_)
        mask[numbers.astype(np.int64)] = True
        return mask


def one_line(text: str, most: int) -> str:
    """``text`` in one line of at most ``most`` characters, without control characters."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= most else words[: most - 1] + "…"


def _as_column(given: Column | ListColumn | NDArray[Any]) -> Column | ListColumn:
    if isinstance(given, (Column, ListColumn)):
        return given
    if isinstance(given, np.ma.MaskedArray):
        return Column(np.asarray(given.data), np.ma.getmaskarray(given))
    values = np.asarray(given)
    return Column(values.astype(object) if values.dtype.kind in "UST" else values)  # as a column of text is read
