"""What a transform is given and gives back: the values of one column for the rows of a batch, as numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

INFINITY: Final = 2**63 - 1
"""What ``infinity`` of date, timestamp and timestamptz is, seen as int64 (``values.view(np.int64) == INFINITY``);
``-INFINITY`` is ``-infinity``.  The number below that is NaT, which stands for NULL only.  numpy knows of no infinity:
its ``astype`` makes the year 294247 or 1969 of it, ``dates()`` and ``timestamps()`` of a column keep it."""

_DAY_MICROSECONDS: Final = 86_400 * 10**6
_MOST_DAYS: Final = INFINITY // _DAY_MICROSECONDS


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """The values of one column, one per row.

    - ``values``: shape (n,), of the dtype that ``docs/transforms.md`` lists for the column's type.  What stands where
      the value is NULL means nothing (zero, or None among objects).  A masked array is taken apart: what it masks is
      NULL too.
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
        values, masked = _taken_apart(self.values)
        null = _filled(self.null, np.zeros(len(values), np.bool_))
        _check_mask(null, len(values), "null", "values")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "null", null if masked is None else null | masked)
        _check_scale(self.scale)

    def __len__(self) -> int:
        """How many rows."""
        return len(self.values)

    @property
    def infinite(self) -> NDArray[np.bool_]:
        """True where the value is plus or minus infinity: bool of shape (n,), for dates, timestamps and floats."""
        return _infinite(self.values)

    def dates(self) -> Column:
        """The days of timestamps (or of dates), as ``date`` is written: ``datetime64[D]``, each infinity kept."""
        return replace(self, values=_dates(self.values))

    def timestamps(self) -> Column:
        """The midnights of dates (or timestamps of any unit), as ``timestamp`` is written: ``datetime64[us]``, each
        infinity kept.  ``ValueError`` where one is beyond the year 294247, which ``datetime64[us]`` cannot hold.
        """
        return replace(self, values=_timestamps(self.values, self.null))


@dataclass(frozen=True, slots=True, eq=False)
class ListColumn:
    """The values of one column of a one-dimensional array type: the elements of all rows, one after the other.

    Row ``i`` has the elements ``values[offsets[i]:offsets[i + 1]]``.

    - ``values``: shape (m,), the elements of all rows, of the dtype of the element's type.  A masked array is taken
      apart: what it masks is a NULL element.
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
        values, masked = _taken_apart(self.values)
        element_null = _filled(self.element_null, np.zeros(len(values), np.bool_))
        _check_mask(element_null, len(values), "element_null", "values")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "element_null", element_null if masked is None else element_null | masked)
        object.__setattr__(self, "lower", _filled(self.lower, np.ones(rows, np.int32)))
        _check_mask(self.null, rows, "null", "the rows that offsets describe")
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

    def dates(self) -> ListColumn:
        """As ``Column.dates``, of the elements."""
        return replace(self, values=_dates(self.values))

    def timestamps(self) -> ListColumn:
        """As ``Column.timestamps``, of the elements."""
        return replace(self, values=_timestamps(self.values, self.element_null))

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
        infinite |= np.abs(_ticks(values)) == INFINITY
    elif values.dtype.kind == "f":
        infinite |= np.isinf(values)
    return infinite


def _dates(values: NDArray[Any]) -> NDArray[Any]:
    _check_times(values, "dates")
    return _with_infinities(values, values.astype("datetime64[D]"))


def _timestamps(values: NDArray[Any], null: NDArray[np.bool_]) -> NDArray[Any]:
    _check_times(values, "timestamps")
    finite = values[~(_infinite(values) | null | np.isnat(values))]
    days = finite.astype("datetime64[D]").view(np.int64)
    if np.datetime_data(values.dtype)[0] != "us" and (np.abs(days) >= _MOST_DAYS).any():
        raise ValueError("a date beyond what datetime64[us] can hold (year 294247)")
    return _with_infinities(values, values.astype("datetime64[us]"))


def _with_infinities(values: NDArray[Any], converted: NDArray[Any]) -> NDArray[Any]:
    """What numpy converted into a new array, with the infinities in it that numpy knows nothing of."""
    infinite = _infinite(values)
    converted.view(np.int64)[infinite] = _ticks(values)[infinite]
    return converted


def _ticks(values: NDArray[Any]) -> NDArray[np.int64]:
    """Of datetime64, whatever its byte order."""
    return values.astype(values.dtype.newbyteorder("="), copy=False).view(np.int64)


def _check_times(values: NDArray[Any], name: str) -> None:
    if values.dtype.kind != "M":
        raise TypeError(f"{name}() is for datetime64, not for {values.dtype}")


def _taken_apart(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """The plain values, and what a masked array masks; None for any other."""
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.getdata(values), np.ma.getmaskarray(values)
    return values, None


def _filled(given: NDArray[Any] | None, otherwise: NDArray[Any]) -> NDArray[Any]:
    return otherwise if given is None else given


def _check_array(array: object, name: str) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a numpy array, not {type(array).__name__}")
    if array.ndim == 0:
        raise ValueError(f"{name} has one entry per row, not shape ()")


def _check_mask(mask: NDArray[Any], length: int, name: str, beside: str) -> None:
    _check_array(mask, name)
    if isinstance(mask, np.ma.MaskedArray):
        raise TypeError(f"{name} is a plain mask of bool, not a masked array")
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} is a mask of bool, not of {mask.dtype}")
    if mask.shape != (length,):
        raise ValueError(f"{name} has shape {mask.shape} beside {length} of {beside}")


def _check_scale(scale: object) -> None:
    if scale is not None and (not isinstance(scale, int) or isinstance(scale, bool)):
        raise TypeError(f"scale is an int, not {type(scale).__name__}")


def _shown(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"
