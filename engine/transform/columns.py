"""What a transform is given and gives back: the values of one column for the rows of a batch, as numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

INFINITY: Final = 2**63 - 1
"""What ``infinity`` of date, timestamp and timestamptz is, seen as int64 (``values.view(np.int64) == INFINITY``);
``-INFINITY`` is ``-infinity``.  The number below that is NaT, which stands for NULL only."""


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """The values of one column, one per row.

    - ``values``: shape (n,), of the dtype that ``docs/transforms.md`` lists for the column's type.  What stands where
      the value is NULL means nothing (zero, or None among objects).
    - ``null``: bool of shape (n,), true where the value is NULL.  Left out: no value is.
    - ``scale``: for a ``numeric`` held as int64: a value is ``values * 10**-scale``.  None for everything else.

    The arrays are the transform's own: it may overwrite them.  Raises ``TypeError`` and ``ValueError`` where the
    parts do not fit each other.
    """

    values: NDArray[Any]
    null: NDArray[np.bool_] = None  # type: ignore[assignment]  # filled in below: a reader always finds a mask
    scale: int | None = None

    def __post_init__(self) -> None:
        _check_array(self.values, "values")
        object.__setattr__(self, "null", _filled(self.null, np.zeros(len(self.values), np.bool_)))
        _check_mask(self.null, len(self.values), "null", "values")
        _check_scale(self.scale)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.values)

    @property
    def infinite(self) -> NDArray[np.bool_]:
        """True where the value is plus or minus infinity: bool of shape (n,), for dates, timestamps and floats."""
        return _infinite(self.values)


@dataclass(frozen=True, slots=True, eq=False)
class ListColumn:
    """The values of one column of a one-dimensional array type: the elements of all rows, one after the other.

    Row ``i`` has the elements ``values[offsets[i]:offsets[i + 1]]``.

    - ``values``: shape (m,), the elements of all rows, of the dtype of the element's type.
    - ``offsets``: int64 of shape (n + 1,), from 0 to m, never falling.  A row that is NULL, or empty, has no elements.
    - ``null``: bool of shape (n,), true where the whole array is NULL.  Left out: none is.
    - ``element_null``: bool of shape (m,), true where an element is NULL.  Left out: none is.
    - ``lower``: int32 of shape (n,), the number of the row's first element.  Left out: 1, as PostgreSQL itself counts.
    - ``scale``: as of ``Column``, for arrays of ``numeric``.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]
    null: NDArray[np.bool_] = None  # type: ignore[assignment]  # these three are filled in below
    element_null: NDArray[np.bool_] = None  # type: ignore[assignment]
    lower: NDArray[np.int32] = None  # type: ignore[assignment]
    scale: int | None = None

    def __post_init__(self) -> None:
        _check_array(self.values, "values")
        _check_array(self.offsets, "offsets")
        if self.offsets.ndim != 1 or self.offsets.dtype.kind not in "iu":
            raise TypeError(f"offsets are integers of shape (n + 1,), not {_shown(self.offsets)}")
        offsets = self.offsets.astype(np.int64, copy=False)
        object.__setattr__(self, "offsets", offsets)
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(self.values) or (np.diff(offsets) < 0).any():
            raise ValueError("offsets start at 0, never fall, and end at the number of values")
        rows = len(offsets) - 1
        object.__setattr__(self, "null", _filled(self.null, np.zeros(rows, np.bool_)))
        object.__setattr__(self, "element_null", _filled(self.element_null, np.zeros(len(self.values), np.bool_)))
        object.__setattr__(self, "lower", _filled(self.lower, np.ones(rows, np.int32)))
        _check_mask(self.null, rows, "null", "the rows that offsets describe")
        _check_mask(self.element_null, len(self.values), "element_null", "values")
        _check_array(self.lower, "lower")
        if self.lower.shape != (rows,) or self.lower.dtype != np.int32:
            raise TypeError(f"lower is int32 of shape ({rows},), not {_shown(self.lower)}")
        if (np.diff(offsets)[self.null] > 0).any():
            raise ValueError("a row that is NULL has elements")
        _check_scale(self.scale)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many elements each row has: int64 of shape (n,)."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row that each element belongs to: int64 of shape (m,), as ``np.add.at`` and ``np.bincount`` want it."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    @property
    def infinite(self) -> NDArray[np.bool_]:
        """True where an element is plus or minus infinity: bool of shape (m,)."""
        return _infinite(self.values)

    @classmethod
    def of(cls, rows: Iterable[Iterable[Any] | None], dtype: DTypeLike, *, scale: int | None = None) -> ListColumn:
        """From Python's lists: one per row, None for a row or an element that is NULL.  For tests and small batches."""
        lists = [None if row is None else list(row) for row in rows]
        elements = [element for row in lists if row is not None for element in row]
        values = np.zeros(len(elements), dtype)
        if values.dtype == object:
            values[:] = None
        element_null = np.array([element is None for element in elements], np.bool_)
        for place, element in enumerate(elements):
            if element is not None:
                values[place] = element
        offsets = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(row or ()) for row in lists], out=offsets[1:])
        null = np.array([row is None for row in lists], np.bool_)
        return cls(values, offsets, null, element_null, scale=scale)


def _infinite(values: NDArray[Any]) -> NDArray[np.bool_]:
    infinite = np.zeros(len(values), np.bool_)
    if values.dtype.kind == "M":
        infinite |= np.abs(values.view(np.int64)) == INFINITY
    elif values.dtype.kind == "f":
        infinite |= np.isinf(values)
    return infinite


def _filled(given: NDArray[Any] | None, otherwise: NDArray[Any]) -> NDArray[Any]:
    return otherwise if given is None else given


def _check_array(array: object, name: str) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a numpy array, not {type(array).__name__}")
    if array.ndim == 0:
        raise ValueError(f"{name} has one entry per row, not shape ()")


def _check_mask(mask: NDArray[Any], length: int, name: str, beside: str) -> None:
    _check_array(mask, name)
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} is a mask of bool, not of {mask.dtype}")
    if mask.shape != (length,):
        raise ValueError(f"{name} has shape {mask.shape} beside {length} of {beside}")


def _check_scale(scale: object) -> None:
    if scale is not None and (not isinstance(scale, int) or isinstance(scale, bool)):
        raise TypeError(f"scale is an int, not {type(scale).__name__}")


def _shown(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"
