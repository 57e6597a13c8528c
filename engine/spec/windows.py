"""Time windows: when a job may work, as people say it: ``Mon-Fri 22:00-06:00 Asia/Kolkata``.

Pure.  A window is decided on the wall clock of its zone: on a day on which the clock is put forward, the minutes that
are left out are never open; on one on which it is put back, the hour that comes twice is open twice.  A window over
midnight belongs to the day on which it begins.  Moments are datetimes that know their offset; naive ones are refused
(``ValueError``).
"""

from __future__ import annotations

import functools
import re
import zoneinfo
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from engine.spec.misfit import Misfit, nearest

DAY_NAMES: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
EVERY_DAY: Final = tuple(range(len(DAY_NAMES)))
DAY_MINUTES: Final = 24 * 60
LOOK_AHEAD_DAYS: Final = 15
"""Within two weeks every window opens, even one whose only hour the clock leaves out this week."""

_TIME: Final = r"(?:[01][0-9]|2[0-4]):[0-5][0-9]"
_DAYS: Final = r"[A-Za-z]{3}(?:-[A-Za-z]{3})?"
_ZONE: Final = r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}"
WINDOW_PATTERN: Final = rf"^({_DAYS}(,{_DAYS})* )?{_TIME}-{_TIME} {_ZONE}$"
_WINDOW: Final = re.compile(
    rf"(?:(?P<days>{_DAYS}(?:,{_DAYS})*) )?(?P<opens>{_TIME})-(?P<closes>{_TIME})(?: (?P<zone>{_ZONE}))?"
)
_HINT: Final = "write 22:00-06:00 Asia/Kolkata, or Mon-Fri 22:00-06:00 Europe/Berlin"
_ZONE_HINT: Final = "name it as the time zone database does: Asia/Kolkata, Europe/Berlin, UTC"
_OF_THIS_HOST: Final = frozenset({"localtime", "posixrules", "Factory"})  # another zone on each machine of a fleet
_SECOND: Final = timedelta(seconds=1)


@functools.cache
def _known_zones() -> dict[str, str]:
    """Lower-case name to name.  Listing them reads hundreds of files."""
    return {zone.lower(): zone for zone in zoneinfo.available_timezones()}


def find_zone(name: str) -> zoneinfo.ZoneInfo:
    """The zone of that name in the time zone database.  Raises ``Misfit``."""
    try:
        if name in _OF_THIS_HOST:
            raise KeyError(name)
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # a folder of the database is an OSError
        known = _known_zones()
        guess = nearest(name, known)
        hint = f"did you mean {known[guess]}?" if guess else _ZONE_HINT
        raise Misfit("names a time zone that does not exist", hint) from None


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """Hours of some days of the week, on the wall clock of one zone.

    ``days``: 0 is Monday, ascending.  ``opens`` and ``closes`` are minutes after midnight, ``opens`` in [0, 1440),
    ``closes`` in (0, 1440]; one that closes before it opens lasts until the next day.
    """

    opens: int
    closes: int
    zone: str
    days: tuple[int, ...] = EVERY_DAY

    @classmethod
    def parse(cls, text: str) -> TimeWindow:
        """The window that ``text`` names.  Raises ``Misfit``."""
        match = _WINDOW.fullmatch(" ".join(text.split()))
        if match is None:
            raise Misfit("is not a time window", _HINT)
        if match["zone"] is None:
            raise Misfit("names no time zone", f"add one, for it means another time on each host: {_HINT}")
        find_zone(match["zone"])
        opens, closes = _minutes(match["opens"]), _minutes(match["closes"])
        if opens == DAY_MINUTES or max(opens, closes) > DAY_MINUTES:
            raise Misfit("is not a time window", "hours go from 00:00 to 23:59, and 24:00 is the end of a day")
        if opens == closes:
            raise Misfit("opens and closes at the same time", "write 00:00-24:00 for a whole day")
        # A window that closes at midnight closes at the end of its own day.
        return cls(opens, closes or DAY_MINUTES, match["zone"], _days(match["days"]))

    def __str__(self) -> str:
        days = "" if self.days == EVERY_DAY else f"{_day_names(self.days)} "
        return f"{days}{_clock(self.opens)}-{_clock(self.closes)} {self.zone}"

    def is_open(self, when: datetime) -> bool:
        """True when the job may work at ``when``."""
        local = _in_utc(when).astimezone(zoneinfo.ZoneInfo(self.zone))
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.opens < self.closes:
            return today in self.days and self.opens <= minute < self.closes
        yesterday = (today - 1) % len(DAY_NAMES)
        return (today in self.days and minute >= self.opens) or (yesterday in self.days and minute < self.closes)

    def opens_at(self, when: datetime) -> datetime:
        """The first moment from ``when`` on at which it is open: ``when`` itself if it is."""
        found = self._first(when, wanted=True)
        assert found is not None, "every window opens within two weeks"
        return found

    def closes_at(self, when: datetime) -> datetime | None:
        """The first moment from ``when`` on at which it is closed; None for a window that never closes."""
        return self._first(when, wanted=False)

    def _first(self, when: datetime, *, wanted: bool) -> datetime | None:
        when = _in_utc(when)
        if self.is_open(when) is wanted:
            return when
        return next((moment for moment in self._changes(when) if self.is_open(moment) is wanted), None)

    def _changes(self, when: datetime) -> Iterator[datetime]:
        """Every moment after ``when`` at which the answer may change, ascending: the wall clock reaches an end of the
        window (twice where it is put back), a new day begins, or the clock jumps.
        """
        zone = zoneinfo.ZoneInfo(self.zone)
        first = when.astimezone(zone).date()
        for number in range(-1, LOOK_AHEAD_DAYS):
            day = first + timedelta(days=number)
            moments = {
                _at(day, minute, zone, fold) for minute in (0, self.opens, self.closes % DAY_MINUTES) for fold in (0, 1)
            }
            moments |= set(_jumps(day, zone))
            yield from (moment for moment in sorted(moments) if moment > when)


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows of a job: it may work while one of them is open, and always when there is none."""

    windows: tuple[TimeWindow, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.windows))

    def is_open(self, when: datetime) -> bool:
        """True when the job may work at ``when``."""
        return not self.windows or any(window.is_open(when) for window in self.windows)

    def opens_at(self, when: datetime) -> datetime:
        """The first moment from ``when`` on at which the job may work: ``when`` itself if it may."""
        return min((window.opens_at(when) for window in self.windows), default=_in_utc(when))

    def closes_at(self, when: datetime) -> datetime | None:
        """The first moment from ``when`` on at which the job may not work; None when there is none in two weeks."""
        if not self.windows:
            return None
        moment = _in_utc(when)
        horizon = moment + timedelta(days=LOOK_AHEAD_DAYS)
        while self.is_open(moment):
            # Each that is open now stays so until it closes, and by then another one may have opened.
            ends = [window.closes_at(moment) for window in self.windows if window.is_open(moment)]
            later = [end for end in ends if end is not None]
            if len(later) < len(ends) or max(later) > horizon:
                return None
            moment = max(later)
        return moment

    def open_s(self, start: datetime, end: datetime, *, enough_s: float = float("inf")) -> float:
        """Seconds between ``start`` and ``end`` in which the job may work; stops counting once ``enough_s`` is
        reached.  Takes a fraction of a millisecond per window and day.
        """
        total, moment, end = 0.0, _in_utc(start), _in_utc(end)
        while moment < end and total < enough_s:
            opens = self.opens_at(moment)
            closes = self.closes_at(opens)
            total += max(0.0, (min(closes or end, end) - opens).total_seconds())
            moment = closes or end
        return total

    def reason(self, when: datetime) -> str:
        """Why the job does not work at ``when``, for people; empty when it may work."""
        if self.is_open(when):
            return ""
        wait_s = (self.opens_at(when) - _in_utc(when)).total_seconds()
        return f"outside the windows {self}; opens in {spoken_wait(wait_s)}"


def spoken_wait(seconds: float) -> str:
    """``3h 20m``, ``2d 4h``, ``45s``: the two largest units, for people."""
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest_s if not (days or hours) else 0, "s")]
    spoken = [f"{number}{unit}" for number, unit in parts if number][:2]
    return " ".join(spoken) or "0s"


def _in_utc(when: datetime) -> datetime:
    if when.utcoffset() is None:
        raise ValueError("the moment has no time zone")
    return when.astimezone(UTC)


def _at(day: date, minute: int, zone: zoneinfo.ZoneInfo, fold: int) -> datetime:
    """The moment, in UTC, at which the wall clock shows ``minute`` of ``day``: the first or the second time."""
    return datetime.combine(day, time(minute // 60, minute % 60, fold=fold), zone).astimezone(UTC)


def _jumps(day: date, zone: zoneinfo.ZoneInfo) -> Iterable[datetime]:
    """The moment of ``day`` at which the clock of ``zone`` is put forward or back, in UTC, to the second."""
    before, after = _at(day, 0, zone, 0), _at(day + timedelta(days=1), 0, zone, 0)
    if before.astimezone(zone).utcoffset() == after.astimezone(zone).utcoffset():
        return
    offset = before.astimezone(zone).utcoffset()
    while after - before > _SECOND:
        middle = before + timedelta(seconds=int((after - before).total_seconds()) // 2)
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    yield after


def _minutes(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _days(text: str | None) -> tuple[int, ...]:
    if text is None:
        return EVERY_DAY
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        start, end = _day(first), _day(last or first)
        days |= {number % len(DAY_NAMES) for number in range(start, end + 1 + len(DAY_NAMES) * (end < start))}
    return tuple(sorted(days))


def _day(name: str) -> int:
    if name.title() not in DAY_NAMES:
        raise Misfit("names a day that does not exist", f"days are {', '.join(DAY_NAMES)}")
    return DAY_NAMES.index(name.title())


def _day_names(days: tuple[int, ...]) -> str:
    """``Mon-Fri``, ``Sat,Sun``, ``Mon,Wed-Fri``: runs of three and more as a range."""
    runs: list[list[int]] = []
    for day in days:
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    words = [
        [f"{DAY_NAMES[run[0]]}-{DAY_NAMES[run[-1]]}"] if len(run) > 2 else [DAY_NAMES[day] for day in run]
        for run in runs
    ]
    return ",".join(word for run in words for word in run)
