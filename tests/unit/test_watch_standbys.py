"""The lag of standbys, from where the primary stood when."""

from __future__ import annotations

import pytest

from engine.watch.probe import ProbeFailed
from engine.watch.standbys import MOST_NOTES, PRECISION, Lag, Notes, Standby


def test_a_paused_standby_falls_behind_by_the_second() -> None:
    lag = Lag(in_bytes=False)
    for second in range(11):
        measured = lag.measure(float(second), 1000.0 + 100 * second, [Standby("x", 1000.0)])
        assert measured.value == second
    assert measured.detail == "standby x"


def test_silence_is_no_lag() -> None:
    lag = Lag(in_bytes=False)
    for second in range(100):
        assert lag.measure(float(second), 1000.0, [Standby("x", 1000.0)]).value == 0
    # One byte after an hour of silence is a second old, not an hour.
    assert lag.measure(3600.0, 1000.0, [Standby("x", 1000.0)]).value == 0
    assert lag.measure(3601.0, 1001.0, [Standby("x", 1000.0)]).value == 1.0


def test_bytes() -> None:
    lag = Lag(in_bytes=True)
    assert lag.measure(0.0, 1000.0, [Standby("x", 400.0), Standby("y", 900.0)]).value == 600.0
    assert lag.measure(1.0, 1000.0, [Standby("x", 1000.0), Standby("y", 900.0)]).value == 100.0


def test_the_worst_one_is_named() -> None:
    lag = Lag(in_bytes=False)
    lag.measure(0.0, 1000.0, [])
    lag.measure(5.0, 2000.0, [])
    measured = lag.measure(8.0, 3000.0, [Standby("near", 2000.0), Standby("far", 1000.0)])
    assert (measured.value, measured.detail) == (8.0, "standby far")


def test_no_standby_is_no_lag() -> None:
    measured = Lag(in_bytes=False).measure(0.0, 1000.0, [])
    assert (measured.value, measured.detail) == (0.0, "no standby is connected")


def test_a_standby_that_vanished_fails_until_it_is_back() -> None:
    lag = Lag(in_bytes=True)
    both = [Standby("walreceiver", 900.0), Standby("walreceiver", 1000.0)]
    lag.measure(0.0, 1000.0, both)
    with pytest.raises(ProbeFailed, match="standby walreceiver is gone"):
        lag.measure(1.0, 1000.0, both[:1])
    with pytest.raises(ProbeFailed, match="is gone"):
        lag.measure(2.0, 1000.0, [both[0], Standby("walreceiver", None)])
    assert lag.measure(3.0, 1000.0, both).value == 100.0


def test_a_standby_that_an_earlier_watch_knew_is_missed() -> None:
    lag = Lag(in_bytes=True, known=frozenset({"x"}))
    with pytest.raises(ProbeFailed, match="standby x is gone"):
        lag.measure(0.0, 1000.0, [Standby("y", 1000.0)])
    assert lag.measure(1.0, 1000.0, [Standby("x", 900.0), Standby("y", 1000.0)]).value == 100.0
    assert lag.known == {"x", "y"}
    with pytest.raises(ProbeFailed, match="is gone"):
        lag.measure(2.0, 1000.0, [])
    assert lag.known == {"x", "y"}


def test_who_never_replays_is_no_standby() -> None:
    assert Lag(in_bytes=True).measure(0.0, 1000.0, [Standby("pg_receivewal", None)]).value == 0


def test_behind_from_before_the_watch_nobody_can_say() -> None:
    lag = Lag(in_bytes=False)
    for second in range(3):
        with pytest.raises(ProbeFailed, match=f"since before we watched, by at least {second}s"):
            lag.measure(float(second), 1000.0, [Standby("x", 10.0, reported_s=0.1)])
    # It replays: the server's own figure is about now.
    assert lag.measure(3.0, 1000.0, [Standby("x", 20.0, reported_s=7.5)]).value == 7.5
    assert lag.measure(4.0, 1000.0, [Standby("x", 30.0, reported_s=0.5)]).value == 4.0
    assert lag.measure(5.0, 1000.0, [Standby("x", 1000.0)]).value == 0


def test_a_primary_that_goes_back_is_another_one() -> None:
    lag = Lag(in_bytes=False)
    lag.measure(0.0, 5000.0, [Standby("x", 5000.0)])
    assert lag.measure(10.0, 2000.0, [Standby("x", 2000.0)]).value == 0
    assert lag.measure(11.0, 3000.0, [Standby("x", 2000.0)]).value == 1.0


def test_notes_stay_few_and_reach_back() -> None:
    notes = Notes()
    days = 3
    for second in range(days * 86_400):
        notes.add(float(second), float(second))
    assert len(notes._positions) == len(notes._times) <= MOST_NOTES
    now = days * 86_400.0
    for behind_s in (1, 60, 3600, 86_400):
        age = notes.age(now, now - 1 - behind_s)
        assert age is not None
        assert behind_s <= age <= behind_s * (1 + 3 * PRECISION) + 2
