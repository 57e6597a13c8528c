"""All gauges that count, as one: the largest pressure leads, the least room and the longest delay rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.pace.signals import Signal

STALE_PART: Final = 0.5
"""Share of ``stale_after_s`` that stands for polling, reporting and one chunk: 2.5 s of a latency's 5 s, which makes
4 s of delay with half of a window of 3 s (pacing.md); a signal asked every 5 s is stale after 15, and acts later.
"""

SHORTEST_DELAY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Gauges:
    """What the gauges say together.  Pressures are None when none of them can say anything."""

    leader: Signal | None = None
    pressure: float | None = None  # of the last window
    certain: float = 0.0  # ... less two standard errors
    steady: float | None = None  # over as many windows as it takes
    error: float = 0.0  # its standard error
    room: float = math.inf  # how many times the present rate would bring the pressure to 1
    sure_room: float = math.inf  # the same, with the standard error on the careful side
    delay_s: float = 4.0  # until a change of the rate shows
    trouble: Signal | None = None  # the first that has no usable reading


def look(steering: Sequence[Signal], now: float, since: float, least_delay_s: float = 0.0) -> Gauges:
    """Read all of ``steering``.  ``since``: when a rate that differs much from the present one last had an effect;
    ``least_delay_s``: the feedback delay that was seen.
    """
    leader: Signal | None = None
    pressure: float | None = None
    steady: float | None = None
    certain, uncertainty, room, sure_room = 0.0, 0.0, math.inf, math.inf
    delay_s = max(SHORTEST_DELAY_S, least_delay_s)
    for signal in steering:
        looked_s = signal.policy.window_s
        found, value = signal.steady_pressure(now, since), signal.pressure(now)
        if found is not None and value is not None:
            smooth, error, looked_s = found
            if pressure is None or value > pressure:
                leader, pressure = signal, value
            if steady is None or smooth > steady:
                steady, uncertainty = smooth, error
            certain = max(certain, value - 2 * signal.error(now))
            room = min(room, signal.room(smooth))
            sure_room = min(sure_room, signal.room(smooth + error))
        delay_s = max(delay_s, looked_s / 2 + STALE_PART * signal.policy.stale_after_s)
    return Gauges(
        leader=leader,
        pressure=pressure,
        certain=certain,
        steady=steady,
        error=uncertainty,
        room=room,
        sure_room=sure_room,
        delay_s=delay_s,
        trouble=next((s for s in steering if s.trouble(now) or s.target is None), None),
    )
