"""Durations, sizes and shares: numbers that carry their unit, to and from text.

A bare number is refused, because nobody can see whether ``lock_timeout: 2`` means seconds or milliseconds.  Decimal
arithmetic keeps ``250ms`` exactly 0.25 s, so that text → number → text → number gives the same number.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from engine.spec.misfit import Misfit

SECONDS: Final = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "min": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}

DURATION_PATTERN: Final = r"^[0-9]{1,9}(\.[0-9]{1,20})? ?(ms|s|m|min|h|d)$"
SIZE_PATTERN: Final = r"^[0-9]{1,15}(\.[0-9]{1,9})? ?(B|kB|KB|MB|GB|KiB|MiB|GiB)$"
PERCENT_PATTERN: Final = r"^[0-9]{1,6}(\.[0-9]{1,9})? ?%$"
_PARTS: Final = re.compile(r"([0-9.]+) ?([A-Za-z]+)")
_DURATION: Final = re.compile(DURATION_PATTERN.rstrip("$") + r"\Z")
_SIZE: Final = re.compile(SIZE_PATTERN.rstrip("$") + r"\Z")
_PERCENT: Final = re.compile(PERCENT_PATTERN.rstrip("$") + r"\Z")

_DURATION_HINT: Final = "write a number and a unit: 250ms, 2s, 5m, 1h, 1d"
_SIZE_HINT: Final = "write a number and a unit: 64KiB, 16MiB, 1GiB (powers of 1024), 10MB (powers of 1000)"

_PERCENT_HINT: Final = "write a number and a sign: 20%, 2.5%"


def parse_duration(text: object) -> float:
    """Seconds of a text such as ``250ms`` or ``1.5h``.  Raises ``Misfit``."""
    if not isinstance(text, str):
        raise Misfit("a duration needs a unit", _DURATION_HINT)
    if not _DURATION.match(text):
        raise Misfit("is not a duration", _DURATION_HINT)
    number, unit = _split(text)
    return float(number * SECONDS[unit])


def parse_size(text: object) -> int:
    """Bytes of a text such as ``16MiB`` or ``10MB``, rounded down to a whole byte.  Raises ``Misfit``."""
    if not isinstance(text, str):
        raise Misfit("a size needs a unit", _SIZE_HINT)
    if not _SIZE.match(text):
        raise Misfit("is not a size", _SIZE_HINT)
    number, unit = _split(text)
    return int(number * BYTES[unit])


def parse_percent(text: object) -> float:
    """The ratio of a text such as ``20%``, which is 0.2.  Raises ``Misfit``."""
    if not isinstance(text, str):
        raise Misfit("a share needs its percent sign", _PERCENT_HINT)
    if not _PERCENT.match(text):
        raise Misfit("is not a share in percent", _PERCENT_HINT)
    return float(Decimal(text.rstrip("% ")) / 100)


def format_percent(ratio: float) -> str:
    """The text that ``parse_percent`` turns into ``ratio`` again, for up to nine decimals of a per cent."""
    return f"{round(Decimal(repr(ratio)) * 100, 9).normalize():f}%"


def format_duration(seconds: float) -> str:
    """The text that ``parse_duration`` turns into exactly ``seconds`` again."""
    exact = Decimal(repr(seconds))
    number, unit = (exact, "s") if exact >= 1 else (exact / SECONDS["ms"], "ms")
    return f"{number.normalize():f}{unit}"


def format_size(size_bytes: int) -> str:
    """The text that ``parse_size`` turns into exactly ``size_bytes`` again, in the largest binary unit that fits."""
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % BYTES[unit] == 0:
            return f"{size_bytes // BYTES[unit]}{unit}"
    return f"{size_bytes}B"


def _split(text: str) -> tuple[Decimal, str]:
    parts = _PARTS.fullmatch(text)
    assert parts is not None, "the caller has matched the whole pattern"
    return Decimal(parts[1]), parts[2]
