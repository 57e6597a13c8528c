"""Whether somebody else is there, from looks at the server's sessions."""

from __future__ import annotations

from dataclasses import replace

from engine.watch.presence import MEMORY_S, STALE_S, Look, Memory

NOBODY = Look(hidden=0, active=0, changed=0.0, server_now=1000.0, sessions=500, begun_by_us=0)


def after(memory: Memory, start: float, seconds: float, look: Look = NOBODY) -> float:
    """The same look twice a second; the time of the last one."""
    now = start
    while now < start + seconds:
        now += 0.5
        memory.add(now, replace(look, server_now=look.server_now + now - start))
    return now


def test_before_the_first_look_nobody_knows() -> None:
    assert not Memory().alone(0.0)


def test_the_first_look_is_enough_to_be_alone() -> None:
    memory = Memory()
    memory.add(0.0, NOBODY)
    assert memory.alone(0.0)


def test_a_statement_that_runs_is_somebody_for_ten_seconds_after() -> None:
    memory = Memory()
    memory.add(0.0, NOBODY)
    memory.add(0.5, replace(NOBODY, active=1))
    assert not memory.alone(0.5)
    assert not memory.alone(after(memory, 0.5, MEMORY_S))
    assert memory.alone(after(memory, 10.5, 1.0))


def test_what_happened_just_before_the_first_look_counts() -> None:
    recent, old = Memory(), Memory()
    recent.add(0.0, replace(NOBODY, changed=999.5))
    old.add(0.0, replace(NOBODY, changed=998.0))
    assert not recent.alone(0.0)
    assert old.alone(0.0)


def test_a_short_statement_between_two_looks_shows() -> None:
    memory = Memory()
    memory.add(0.0, replace(NOBODY, changed=900.0))
    memory.add(0.5, replace(NOBODY, changed=1000.2, server_now=1000.5))
    assert not memory.alone(0.5)


def test_a_session_that_leaves_is_no_sign_and_hides_none() -> None:
    memory = Memory()
    memory.add(0.0, replace(NOBODY, changed=990.0))
    memory.add(0.5, replace(NOBODY, changed=900.0))  # the one that did something at 990 has left
    assert memory.alone(0.5)
    memory.add(1.0, replace(NOBODY, changed=990.0))
    assert memory.alone(1.0)
    memory.add(1.5, replace(NOBODY, changed=1000.1))
    assert not memory.alone(1.5)


def test_an_open_transaction_that_does_nothing_is_no_sign() -> None:
    memory = Memory()
    memory.add(0.0, replace(NOBODY, changed=950.0))
    assert memory.alone(after(memory, 0.0, 5.0, replace(NOBODY, changed=950.0)))


def test_what_is_hidden_may_be_anything() -> None:
    memory = Memory()
    memory.add(0.0, replace(NOBODY, hidden=1))
    assert not memory.alone(0.0)


def test_sessions_too_short_to_be_met_are_counted_without_ours() -> None:
    theirs, ours = Memory(), Memory()
    for step in range(25):
        now = step * 0.5
        theirs.add(now, replace(NOBODY, sessions=500 + step))  # two a second
        ours.add(now, replace(NOBODY, sessions=500 + step, begun_by_us=min(step, 20)))
    assert not theirs.alone(12.0)
    assert ours.alone(12.0)


def test_a_reset_of_the_statistics_is_no_flood() -> None:
    memory = Memory()
    memory.add(0.0, replace(NOBODY, sessions=100_000))
    memory.add(0.5, replace(NOBODY, sessions=0))
    memory.add(1.0, replace(NOBODY, sessions=3))
    assert memory.alone(1.0)


def test_without_looks_nobody_is_alone_for_long() -> None:
    memory = Memory()
    memory.add(0.0, NOBODY)
    assert memory.alone(STALE_S)
    assert not memory.alone(STALE_S + 0.1)
