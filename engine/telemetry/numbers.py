"""Numbers as people read them: ``12.4 M rows``, ``310 k rows/s``, ``24 s``, ``293 MiB``."""

from __future__ import annotations

import math
from typing import Final

_MINUTE_S: Final = 60
_HOUR_S: Final = 60 * _MINUTE_S
_DAY_S: Final = 24 * _HOUR_S
_THOUSANDS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_EXACT_BELOW: Final = 10_000
_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def count(value: float) -> str:
    """``9,999``, ``12.4 k``, ``19.7 M``: exact while that is short, else three digits."""
    if abs(value) < _EXACT_BELOW:
        return f"{value:,.0f}"
    for size, letter in _THOUSANDS:
        if abs(value) >= size:
            return f"{_three_digits(value / size)} {letter}"
    raise AssertionError("the loop covers every large number")


def per_second(value: float) -> str:
    """A rate of rows: ``310 k rows/s``."""
    return f"{f'{value:.2g}' if value < 10 else count(value)} rows/s"


def size(value_bytes: float) -> str:
    """``0 B``, ``16.0 KiB``, ``293 MiB``."""
    step = 0 if value_bytes < 1 else min(int(math.log2(value_bytes) // 10), len(_BINARY) - 1)
    if step == 0:
        return f"{value_bytes:.0f} B"
    return f"{_three_digits(value_bytes / 2 ** (10 * step))} {_BINARY[step]}"


def duration(seconds: float) -> str:
    """``0.42 s``, ``24 s``, ``4 min 10 s``, ``3 h 20 min``, ``2 d 4 h``: two units at most."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "0 s"
    whole = round(seconds)
    if whole < 2 * _MINUTE_S:
        return f"{whole} s"
    for large, large_name, small, small_name in (
        (_DAY_S, "d", _HOUR_S, "h"),
        (_HOUR_S, "h", _MINUTE_S, "min"),
        (_MINUTE_S, "min", 1, "s"),
    ):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {large_name}" + (f" {rest} {small_name}" if rest else "")
    raise AssertionError("two minutes and more have a minute")


def percent(share: float) -> str:
    """``63 %``; never 100 % before the end, so rounded down."""
    return f"{math.floor(share * 100)} %"


def counted(number: int, noun: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _three_digits(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"
