"""The server's dates and timestamps as whole numbers, and back.

``datetime`` ends at the year 9999 and knows neither BC nor the microsecond of 294276-12-31, so the proleptic Gregorian
calendar is counted here (the days-from-civil arithmetic of the public domain, by Howard Hinnant).  Zero is 2000-01-01,
as in the server.  Texts are those of DateStyle 'ISO, YMD' and TimeZone 'UTC'.
"""

from __future__ import annotations

import re
from typing import Final

DAY_US: Final = 86_400_000_000
USUAL_DAYS: Final = (-10_957, 14_610)  # 1970-01-01 to 2040-01-01: a first guess where no finite value is known
USUAL_MICROSECONDS: Final = (USUAL_DAYS[0] * DAY_US, USUAL_DAYS[1] * DAY_US)

_DAYS_PER_ERA: Final = 146_097  # 400 Gregorian years
_EPOCH: Final = 730_425  # days from 0000-03-01 to 2000-01-01
_TEXT: Final = re.compile(
    r"(?P<year>\d{4,})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?: (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?(?:[+-]00(?::00)*)?)?"
    r"(?P<bc> BC)?"
)


def parse_date(text: str) -> int:
    """Days since 2000-01-01.  Raises ``ValueError`` for text in any other form, infinities included."""
    return parse_timestamp(text) // DAY_US


def parse_timestamp(text: str) -> int:
    """Microseconds since 2000-01-01 00:00.  Raises ``ValueError`` as ``parse_date`` does."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError("not a date or timestamp in ISO form at UTC")
    year = int(match["year"])
    days = _days(1 - year if match["bc"] else year, int(match["month"]), int(match["day"]))
    seconds = 0
    if match["hour"]:
        seconds = (int(match["hour"]) * 60 + int(match["minute"])) * 60 + int(match["second"])
    return days * DAY_US + seconds * 1_000_000 + int((match["fraction"] or "0").ljust(6, "0"))


def format_date(days: int) -> str:
    """The server's text of a date."""
    date, era = _civil(days)
    return date + era


def format_timestamp(microseconds: int, zone: str) -> str:
    """The server's text of a timestamp, with ``zone`` (``+00`` or nothing) after the time."""
    days, rest = divmod(microseconds, DAY_US)
    date, era = _civil(days)
    seconds, fraction = divmod(rest, 1_000_000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    tail = f".{fraction:06d}".rstrip("0") if fraction else ""
    return f"{date} {hour:02d}:{minute:02d}:{second:02d}{tail}{zone}{era}"


def _days(year: int, month: int, day: int) -> int:
    # Years begin in March here, so that the leap day is the last of them.
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * _DAYS_PER_ERA + day_of_era - _EPOCH


def _civil(days: int) -> tuple[str, str]:
    era, day_of_era = divmod(days + _EPOCH, _DAYS_PER_ERA)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    march_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * march_month + 2) // 5 + 1
    month = march_month + 3 if march_month < 10 else march_month - 9
    year = year_of_era + era * 400 + (month <= 2)
    bc = year <= 0
    return f"{1 - year if bc else year:04d}-{month:02d}-{day:02d}", " BC" if bc else ""
