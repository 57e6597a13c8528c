"""Numbers and colours as Grafana shows them: units, value mappings, thresholds, named colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

COLOURS: Final = {
    "green": "#56a64b",
    "semi-dark-green": "#37872d",
    "dark-green": "#19730e",
    "yellow": "#f2cc0c",
    "light-yellow": "#ffee52",
    "orange": "#ff780a",
    "red": "#e02f44",
    "dark-red": "#ad0317",
    "blue": "#3274d9",
    "purple": "#a352cc",
    "dark-purple": "#6a2d8f",
    "text": "#24292e",
    "transparent": "#ffffff00",
}
CLASSIC: Final = (
    "#56a64b",
    "#e0b400",
    "#3274d9",
    "#ff780a",
    "#e02f44",
    "#8f3bb8",
    "#5fb3b3",
    "#8a5a2b",
    "#e05fa8",
    "#5d6d7e",
    "#96d98d",
    "#8ab8ff",
    "#ffb357",
    "#ff7383",
)
"""The colour of a line by its place, near Grafana's classic palette on a light background."""

_TIMES: Final = ((86400.0, "day"), (3600.0, "hour"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SHORT: Final = ("", "K", "Mil", "Bil", "Tri")
_COUNTS: Final = ("", "K", "M", "B", "T")
_METRIC: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def colour(name: str) -> str:
    """A named colour of Grafana's, or one that is already a number."""
    return COLOURS.get(name, name)


def formatted(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit."""
    if math.isnan(value):
        return "NaN"
    if unit == "percentunit":
        return f"{_digits(value * 100, decimals)}%"
    if unit == "s":
        return _time(value, decimals)
    if unit in ("bytes", "binBps"):
        step = 0 if abs(value) < 1 else min(int(math.log2(abs(value)) // 10), len(_BINARY) - 1)
        return f"{_digits(value / 1024**step, decimals)} {_BINARY[step]}" + ("/s" if unit == "binBps" else "")
    if unit == "sishort":
        size, letter = next(((s, n) for s, n in _METRIC if abs(value) >= s), (1.0, ""))
        return f"{_digits(value / size, decimals)} {letter}".strip()
    step = 0 if abs(value) < 1 else min(int(math.log10(abs(value)) // 3), len(_COUNTS) - 1)
    size = (_COUNTS if unit.startswith("count:") else _SHORT)[step]
    suffix = {"short": "", "cps": "c/s", "ops": "ops/s"}.get(unit, unit.partition(":")[2])
    return " ".join(part for part in (_digits(value / 1000**step, decimals), size, suffix) if part)


def _time(value: float, decimals: int | None) -> str:
    size, name = next(((s, n) for s, n in _TIMES if abs(value) >= s), (1.0, "s"))
    number = _digits(value / size, decimals)
    plural = "s" if name in ("day", "hour", "min") and number != "1" else ""
    return f"{number} {name}{plural}"


def _digits(value: float, decimals: int | None) -> str:
    if decimals is None:
        is_whole = math.isclose(value, round(value), abs_tol=1e-9)
        decimals = 0 if is_whole or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{decimals}f}" if decimals else f"{value:.0f}"


def mapped(value: float | str, mappings: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """The text and colour that a value mapping gives, if one does."""
    text = f"{value:g}" if isinstance(value, float) else value
    for mapping in mappings:
        if mapping["type"] == "value" and text in mapping["options"]:
            found = mapping["options"][text]
            return found.get("text", text), colour(found.get("color", "text"))
    return None


def by_threshold(value: float, thresholds: Mapping[str, Any] | None) -> str:
    """The colour of the last step that the value reaches."""
    found = "text"
    for step in (thresholds or {}).get("steps", ()):
        if step["value"] is None or value >= step["value"]:
            found = step["color"]
    return colour(found)


def readable_on(background: str) -> str:
    """Black or white, whichever can be read there."""
    red, green, blue = (int(background[place : place + 2], 16) for place in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 165 else "#24292e"
