"""Values of signals as people read them: ``31ms``, ``45s``, ``1.5GiB``, ``20%``, ``1,200``."""

from __future__ import annotations

from typing import Final

from engine.pace.law import Unit

DIGITS: Final = 2
"""Digits that count of a number that is measured: more would be noise."""

MOST_DIGITS: Final = 6
"""Where two numbers are compared, digits are added up to here until they differ."""

BINARY_STEP: Final = 1024.0
BINARY_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_value(value: float, unit: Unit, digits: int = DIGITS) -> str:
    """``value`` in its unit, with ``digits`` significant digits (whole numbers keep all of theirs)."""
    match unit:
        case Unit.SECONDS:
            return f"{_number(value, digits)}s" if value >= 1 or value == 0 else f"{_number(value * 1000, digits)}ms"
        case Unit.RATIO:
            return f"{_number(value * 100, digits)}%"
        case Unit.BYTES:
            return _binary(value, digits)
        case Unit.BYTES_PER_S:
            return f"{_binary(value, digits)}/s"
        case Unit.COUNT:
            return _number(value, digits)


def format_comparison(value: float, operator: str, threshold: float, unit: Unit) -> str:
    """``31ms > 20ms``: with as many digits as it takes to see that the two differ."""
    left = right = ""
    for digits in range(DIGITS, MOST_DIGITS + 1):
        left, right = format_value(value, unit, digits), format_value(threshold, unit, digits)
        if left != right:
            break
    return f"{left} {operator} {right}"


def _number(value: float, digits: int) -> str:
    # A number with more digits before the point than asked for keeps them: 1,234 is not 1,200.
    whole_digits = len(str(int(abs(value))))
    if whole_digits >= digits and abs(value) >= 1:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _binary(value: float, digits: int) -> str:
    power = 0
    while value >= BINARY_STEP and power < len(BINARY_UNITS) - 1:
        value /= BINARY_STEP
        power += 1
    space = "" if power else " "
    return f"{_number(value, digits)}{space}{BINARY_UNITS[power]}"
