"""Time windows on days of every kind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec import TimeWindow, Windows
from engine.spec.windows import spoken_wait

BERLIN = ZoneInfo("Europe/Berlin")
# Midnight jumps, half-hour jumps, a day that never was (Apia, 30 December 2011), no jumps at all.
ZONES = [
    "UTC",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "America/Havana",
    "Pacific/Apia",
]


def berlin(day: int, hour: int, minute: int = 0, *, month: int = 3, fold: int = 0) -> datetime:
    """A moment of 2026, when Berlin's clock goes forward on 29 March and back on 25 October (both Sundays)."""
    return datetime(2026, month, day, hour, minute, tzinfo=BERLIN, fold=fold)


def utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("22:00-06:00 Asia/Kolkata", "22:00-06:00 Asia/Kolkata"),
        ("  Mon-Fri   22:00-06:00 UTC ", "Mon-Fri 22:00-06:00 UTC"),
        ("sat,SUN 00:00-24:00 UTC", "Sat,Sun 00:00-24:00 UTC"),
        ("Fri-Mon 01:00-02:00 UTC", "Mon,Fri-Sun 01:00-02:00 UTC"),
        ("Mon-Sun 01:00-02:00 UTC", "01:00-02:00 UTC"),
        ("Wed,Mon 22:00-00:00 Etc/GMT+3", "Mon,Wed 22:00-24:00 Etc/GMT+3"),
    ],
)
def test_a_window_is_written_back_as_it_means(text, written):
    window = TimeWindow.parse(text)
    assert str(window) == written
    assert TimeWindow.parse(written) == window


@pytest.mark.parametrize(
    ("text", "when", "expected"),
    [
        ("08:00-18:00 Europe/Berlin", berlin(2, 8), True),
        ("08:00-18:00 Europe/Berlin", berlin(2, 7, 59), False),
        ("08:00-18:00 Europe/Berlin", berlin(2, 18), False),
        ("22:00-06:00 Europe/Berlin", berlin(2, 23), True),
        ("22:00-06:00 Europe/Berlin", berlin(2, 5, 59), True),
        ("22:00-06:00 Europe/Berlin", berlin(2, 6), False),
        ("22:00-06:00 Asia/Kolkata", datetime(2026, 3, 2, 17, tzinfo=UTC), True),
        # 6 March 2026 is a Friday: its night reaches into Saturday, and Sunday's into Monday is not open.
        ("Mon-Fri 22:00-06:00 Europe/Berlin", berlin(7, 3), True),
        ("Mon-Fri 22:00-06:00 Europe/Berlin", berlin(7, 23), False),
        ("Mon-Fri 22:00-06:00 Europe/Berlin", berlin(9, 3), False),
        ("Sat,Sun 00:00-24:00 Europe/Berlin", berlin(8, 23, 59), True),
        ("Sat,Sun 00:00-24:00 Europe/Berlin", berlin(9, 0), False),
        ("Sun 22:00-24:00 Europe/Berlin", berlin(8, 23), True),
        # The day on which 02:00 to 03:00 do not exist, and the one on which they come twice.
        ("02:00-03:00 Europe/Berlin", berlin(29, 1, 59), False),
        ("02:00-03:00 Europe/Berlin", berlin(29, 3), False),
        ("02:30-04:00 Europe/Berlin", berlin(29, 3), True),
        ("02:00-02:30 Europe/Berlin", berlin(25, 2, 15, month=10), True),
        ("02:00-02:30 Europe/Berlin", berlin(25, 2, 45, month=10), False),
        ("02:00-02:30 Europe/Berlin", berlin(25, 2, 15, month=10, fold=1), True),
    ],
)
def test_the_wall_clock_of_the_zone_decides(text, when, expected):
    assert TimeWindow.parse(text).is_open(when) is expected
    assert Windows((TimeWindow.parse(text),)).is_open(when) is expected


@pytest.mark.parametrize(
    ("text", "when", "opens", "closes"),
    [
        ("22:00-06:00 Europe/Berlin", berlin(2, 12), berlin(2, 22), berlin(2, 12)),
        ("22:00-06:00 Europe/Berlin", berlin(2, 23), berlin(2, 23), berlin(3, 6)),
        ("Mon 08:00-09:00 Europe/Berlin", berlin(2, 9), berlin(9, 8), berlin(2, 9)),
        ("00:00-24:00 Europe/Berlin", berlin(2, 9), berlin(2, 9), None),
        ("Mon-Tue 00:00-24:00 Europe/Berlin", berlin(2, 9), berlin(2, 9), berlin(4, 0)),
        ("02:30-04:00 Europe/Berlin", berlin(29, 0), berlin(29, 3), berlin(29, 0)),
        ("Sun 02:00-03:00 Europe/Berlin", berlin(29, 0), berlin(5, 2, month=4), berlin(29, 0)),
        (
            "02:00-02:30 Europe/Berlin",
            berlin(25, 2, 40, month=10),
            berlin(25, 2, 0, month=10, fold=1),
            berlin(25, 2, 40, month=10),
        ),
        ("01:00-02:30 Europe/Berlin", berlin(25, 1, month=10), berlin(25, 1, month=10), berlin(25, 2, 30, month=10)),
        (
            "02:00-02:30 Europe/Berlin",
            berlin(25, 2, 10, month=10, fold=1),
            berlin(25, 2, 10, month=10, fold=1),
            berlin(25, 2, 30, month=10, fold=1),
        ),
        # Open from the first 02:00 to the second 03:00.
        ("02:00-03:00 Europe/Berlin", berlin(25, 2, month=10), berlin(25, 2, month=10), berlin(25, 3, month=10)),
    ],
)
def test_when_it_opens_and_closes(text, when, opens, closes):
    for windows in (TimeWindow.parse(text), Windows((TimeWindow.parse(text),))):
        assert utc(windows.opens_at(when)) == utc(opens)
        assert utc(windows.closes_at(when)) == utc(closes)


def test_windows_that_follow_each_other_are_one():
    windows = Windows(tuple(map(TimeWindow.parse, ["08:00-12:00 Europe/Berlin", "11:00-16:00 UTC"])))
    assert utc(windows.closes_at(berlin(2, 9))) == berlin(2, 17).astimezone(UTC)
    assert Windows(tuple(map(TimeWindow.parse, ["00:00-12:00 UTC", "12:00-24:00 UTC"]))).closes_at(berlin(2, 9)) is None


def test_without_windows_it_is_always_open():
    now = berlin(2, 9)
    assert Windows().is_open(now)
    assert (Windows().opens_at(now), Windows().closes_at(now), Windows().reason(now)) == (utc(now), None, "")
    assert Windows().open_s(now, now + timedelta(hours=1)) == 3600


def test_the_reason_names_the_windows_and_the_wait():
    windows = Windows((TimeWindow.parse("22:00-06:00 Asia/Kolkata"),))
    when = datetime(2026, 3, 2, 18, 40, tzinfo=ZoneInfo("Asia/Kolkata"))
    assert windows.reason(when) == "outside the windows 22:00-06:00 Asia/Kolkata; opens in 3h 20m"
    assert windows.reason(when + timedelta(hours=4)) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (45.9, "45s"), (60, "1m"), (725, "12m 5s"), (3600, "1h"), (12_000, "3h 20m"), (187_500, "2d 4h")],
)
def test_waits_are_spoken_in_two_units(seconds, words):
    assert spoken_wait(seconds) == words


def test_open_time_is_counted_over_jumps_of_the_clock():
    night = Windows((TimeWindow.parse("22:00-06:00 Europe/Berlin"),))
    assert night.open_s(berlin(28, 12), berlin(29, 12)) == 7 * 3600
    assert night.open_s(berlin(24, 12, month=10), berlin(25, 12, month=10)) == 9 * 3600
    always = Windows((TimeWindow.parse("00:00-24:00 Europe/Berlin"),))
    for windows in (always, Windows()):
        assert windows.open_s(berlin(28, 12), berlin(29, 12)) == 23 * 3600, "two datetimes of one zone differ by 24 h"
    assert night.open_s(berlin(2, 12), berlin(9, 12)) == 7 * 8 * 3600
    assert night.open_s(berlin(2, 12), berlin(9, 12), enough_s=3600) >= 3600
    assert night.open_s(berlin(2, 23), berlin(2, 23, 30)) == 1800
    assert night.open_s(berlin(2, 23), berlin(2, 22)) == 0


def test_a_moment_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        TimeWindow.parse("22:00-06:00 UTC").is_open(datetime(2026, 3, 2, 12))  # noqa: DTZ001 - that is the mistake


@st.composite
def windows(draw):
    opens, closes = draw(st.integers(0, 1439)), draw(st.integers(1, 1440))
    days = tuple(sorted(draw(st.sets(st.integers(0, 6), min_size=1))))
    return TimeWindow(opens, closes if closes != opens else opens + 1, draw(st.sampled_from(ZONES)), days)


MOMENTS = st.one_of(
    *(
        # Around the jumps: Berlin, Lord Howe (April), Havana, Sao Paulo (2018), and Apia's lost day.
        st.integers(-3 * 1440, 3 * 1440).map(lambda minutes, around=around: around + timedelta(minutes=minutes))
        for around in (
            datetime(2026, 3, 29, tzinfo=UTC),
            datetime(2026, 10, 25, tzinfo=UTC),
            datetime(2026, 4, 4, tzinfo=UTC),
            datetime(2026, 11, 1, tzinfo=UTC),
            datetime(2018, 2, 18, tzinfo=UTC),
            datetime(2018, 11, 4, tzinfo=UTC),
            datetime(2011, 12, 30, tzinfo=UTC),
        )
    )
)


@given(windows(), MOMENTS)
def test_it_opens_at_the_first_open_minute_and_closes_at_the_first_closed_one(window, when):
    """Compared with walking from minute to minute."""

    def first(start: datetime, *, wanted: bool) -> datetime | None:
        if window.is_open(start) is wanted:
            return start
        minutes = (start.replace(second=0) + timedelta(minutes=n) for n in range(1, 16 * 1440))
        return next((minute for minute in minutes if window.is_open(minute) is wanted), None)

    assert utc(window.opens_at(when)) == first(when, wanted=True)
    closes = utc(window.closes_at(when))
    if closes is not None:
        assert closes == first(when, wanted=False)
        assert not window.is_open(closes)
    else:
        assert all(window.is_open(when + timedelta(hours=hours)) for hours in range(14 * 24))


@given(st.lists(windows(), min_size=1, max_size=3), MOMENTS, st.integers(0, 1500))
def test_open_seconds_are_the_open_minutes(given, when, minutes):
    several = Windows(tuple(given))
    start = when.replace(second=0)
    counted = sum(several.is_open(start + timedelta(minutes=n)) for n in range(minutes))
    assert several.open_s(start, start + timedelta(minutes=minutes)) == counted * 60


@given(windows())
def test_every_window_survives_its_text(window):
    if window.opens != window.closes % 1440:
        assert TimeWindow.parse(str(window)) == window
