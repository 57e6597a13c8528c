"""``bloat.max_growth``: when to VACUUM a heap that a job updates in place, and when to hold the job meanwhile.

Every update that is not HOT leaves a dead version of the row behind.  A VACUUM turns the dead versions of its horizon
into room, and the next updates go there instead of to the end of the file.  With ``d`` bytes that died between the
starts of two VACUUMs and ``w`` bytes that are written while one runs, the file grows by about ``d + w`` once, and not
any more.  So, with a budget ``B = max_growth * bytes at the job's start``::

    start   when  growth + w - room >= 0.85 B  and  room <= 1.2 w      (the room will have run out when it ends)
    hold    when  growth >= B  and  room <= 0                          (the next row would make the file grow)
    both only when B/4 died since: a VACUUM must be worth its scan, and growth by other people's rows is no bloat

``growth`` is measured, so HOT updates, and updates into room that was there before, start nothing.  ``w`` is what died
per second lately times what the last VACUUM took.  ``room`` is an estimate: what the last VACUUM removed minus what
was written since; a file that grows in spite of it shows that there is none.

Indexes are cleaned in only some of the VACUUMs.  One that leaves them out costs next to nothing, but the pages it
leaves stubs on are read again by the next one.  As in the ski rental problem, the indexes are cleaned once the pages
read again cost as much as the indexes would: never more than twice what the best choice would have cost.

The speed has three gears: as gentle as an autovacuum while that fits into a third of the budget, else faster.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

MINIMUM_BYTES: Final = 8 * 1024 * 1024
"""A table smaller than this may grow as it likes: doubling it costs less than any VACUUM is worth."""

HEADROOM: Final = 0.85
"""Share of the budget that is planned with; the rest is for new versions that are wider, and for the last chunks."""

WORTHWHILE: Final = 0.25
"""Share of the budget that must have died before a VACUUM."""

FIRST_GUESS: Final = 0.35
"""``w`` of the first VACUUM as a share of the budget, before any has been measured: it starts at half the budget."""

ROOM_MARGIN: Final = 1.2
DURATION_MARGIN: Final = 1.1
"""The next VACUUM may take so much longer than the longer one of the last two."""

INDEX_WEIGHT: Final = 4.0
"""A page of an index costs a VACUUM about so many times what a page of the heap does that is only read again: it is
also changed, logged and written, and the heap's pages are so a second time (seen: 0.5 s with an index of 64 MB, 0.1 s
without)."""

SURE_ROOM: Final = 0.9
"""Share of the removed bytes that can be written again: pages keep what is too small for a row."""

DISBELIEF: Final = 0.02
"""Share of the table by which the file must grow after a VACUUM before its room counts as used up: several sessions
that need a page at the same moment extend the file by some dozens of them."""

MINIMUM_STUB_ROW_BYTES: Final = 80.0
"""Rows narrower than this need their line pointers back: a page has at most 291 of them, and stubs keep theirs."""

UNKNOWN_ROW_BYTES: Final = 100.0
RATE_WINDOW_S: Final = 3.0
SHORT_WINDOW_S: Final = 0.5
SHORT_WINDOW_CHANGES: Final = 4
"""The job's speed is the higher one of these two windows: one that has just begun, or was just let go, is faster than
its last seconds tell.  In the shorter one, news must have come so often: else it holds a whole second's news."""

MARKS: Final = 1024
"""Moments remembered beyond the horizon; of more than these every second one is forgotten."""

LOOKS_PER_BUDGET: Final = 50.0
"""So often somebody should look while the budget is being used up …"""

FASTEST_BYTES_PER_S: Final = 200e6
LOOKS_AT_FASTEST: Final = 5.0
"""… of which there should be so many even if the job suddenly went as fast as any …"""

SHORTEST_LOOK_S: Final = 0.1
LONGEST_LOOK_S: Final = 5.0
"""… within these bounds, in seconds."""

FIRST_RETRY_S: Final = 2.0
LONGEST_RETRY_S: Final = 300.0
"""After a VACUUM that failed or removed nothing; doubling."""

LATE_S: Final = 1.5
"""The counters, and what other processes have written, may be so late; until then the last rate is taken to go on."""

GENTLE_SHARE: Final = 1 / 3
"""Share of the budget that may be written while a VACUUM runs before it shifts up."""

GEAR_STEP: Final = 10.0


class Gear(NamedTuple):
    """How fast a VACUUM may go: the server's ``vacuum_cost_delay`` (ms) and ``vacuum_cost_limit``."""

    cost_delay_ms: float
    cost_limit: int


GEARS: Final = (Gear(2.0, 200), Gear(2.0, 2000), Gear(0.0, 2000))
"""As an autovacuum (about 40 MB/s of pages made dirty), ten times that, and without a brake."""

FIRST_GEAR: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one look at a heap found.  Counters only grow, unless somebody resets the statistics."""

    now: float
    bytes: int
    index_bytes: int
    updates: int
    hot_updates: int
    deletes: int
    dead_rows: int
    vacuums: int  # that have finished, ours or not
    next_xid: int
    horizon_xid: int  # versions that died before it can be removed
    rows_written: float | None = None  # by the job so far, up to date; None: only the counters are known
    rows_left: float | None = None  # that the job has still to write; None: unknown


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do now."""

    start: bool = False
    hold: bool = False  # admit nothing: the file would grow beyond the budget
    blocked: bool = False  # a VACUUM is due, and the horizon keeps it from removing enough
    whole: bool = True  # clean the indexes, too
    gear: Gear = GEARS[FIRST_GEAR]


@dataclass(frozen=True, slots=True)
class _Mark:
    made: float  # bytes that had died until then
    next_xid: int


@dataclass(slots=True)
class _Run:
    """A VACUUM of ours."""

    since: float
    whole: bool
    removable: float  # bytes, when it began
    made: float  # bytes that had died when it began
    held: bool  # the job was held for it


class GrowthPolicy:
    """Decides for one heap.  ``start_bytes``: its size when the job began; ``rows``: how many it held, None or not
    positive when nobody knows.  ``max_growth``: 0.2 for 20 %.  ValueError unless it is positive and finite.
    """

    def __init__(self, max_growth: float, *, start_bytes: int, rows: float | None = None) -> None:
        if not (math.isfinite(max_growth) and max_growth > 0):
            raise ValueError(f"max_growth must be positive, not {max_growth}")
        self.max_growth = max_growth
        self.start_bytes = start_bytes
        self.budget_bytes = max_growth * start_bytes
        self._row_bytes = max(1.0, start_bytes / rows) if rows is not None and rows > 0 else UNKNOWN_ROW_BYTES
        self._sight: Sight | None = None
        self._first: Sight | None = None
        self._counted = 0.0  # rows that the statistics know to have died since the first look
        self._counted_updates = 0.0
        self._counted_cold = 0.0  # of those updates, the ones that were not HOT
        self._known = 0.0  # bytes that have died: the maximum of what is counted and what is reckoned
        self._known_at = 0.0  # when that last changed, and the size of the file then
        self._bytes_when_known = 0
        self._guess = 0.0  # bytes that will turn out to have died since
        self._removed = 0.0  # bytes of them that are room now, or were
        self._room_given = 0.0  # room when `_made` was …
        self._given_at = 0.0  # … this
        self._bytes_after_vacuum = start_bytes
        self._between_looks_s = 0.0
        self._holds = False  # as last decided
        self._active_s = 0.0  # seconds without a hold: what happens in between tells nothing about the job's speed
        self._marks: deque[_Mark] = deque()  # the last one before the horizon, and all after it
        self._recent: deque[tuple[float, float]] = deque()  # (active seconds, bytes that had died), of the last ones
        self._gear = FIRST_GEAR
        self._run: _Run | None = None
        self._uncredited: _Run | None = None  # of ours, running or just ended: no look has shown yet what it did
        self._durations: dict[bool, deque[float]] = {True: deque(maxlen=2), False: deque(maxlen=2)}
        self._stubs = 0.0  # bytes of pages that hold stubs
        self._read_again = 0.0  # bytes of such pages that VACUUMs have read since the indexes were last cleaned
        self._retry_at = -math.inf
        self._retry_s = FIRST_RETRY_S

    # -- what is known ----------------------------------------------------------------------------------------------

    @property
    def ratio(self) -> float:
        """Growth of the file since the job began: 0.2 for 20 %."""
        return self._growth / self.start_bytes if self.start_bytes > 0 else 0.0

    @property
    def is_running(self) -> bool:
        """True between ``started`` and ``ended``."""
        return self._run is not None

    @property
    def dead_bytes(self) -> float:
        """Dead and not yet room, by our reckoning."""
        return max(0.0, self._made - self._removed)

    @property
    def room_bytes(self) -> float:
        """Estimate of what can still be written before the file grows."""
        return max(0.0, self._room_given - (self._made - self._given_at))

    @property
    def _made(self) -> float:
        """Bytes that have died."""
        return self._known + self._guess

    @property
    def _growth(self) -> float:
        return float(max(0, self._sight.bytes - self.start_bytes)) if self._sight is not None else 0.0

    @property
    def next_look_s(self) -> float:
        """When to look again: often enough to see the budget being used up."""
        looks_per_s = max(self._rate() * LOOKS_PER_BUDGET, FASTEST_BYTES_PER_S * LOOKS_AT_FASTEST)
        return min(LONGEST_LOOK_S, max(SHORTEST_LOOK_S, self.budget_bytes / looks_per_s))

    @property
    def allowance_rows(self) -> float:
        """So many rows may be written after the last look before the heap could exceed its budget: whoever looks too
        late must not have let more pass.  Infinite where growth holds nobody.
        """
        cold = self._cold_share() if self._sight is not None and self._first is not None else 0.0
        if self._sight is None or cold == 0.0 or self._is_free(self._sight):
            return math.inf
        left = max(0.0, self.budget_bytes - self._growth) + self.room_bytes
        return max(left, WORTHWHILE * self.budget_bytes - self.dead_bytes) / (self._row_bytes * cold)

    # -- being told -------------------------------------------------------------------------------------------------

    def look(self, sight: Sight) -> None:
        """Take in a new look; those of a VACUUM's end (``vacuums`` has grown) are credited, whoever ran it."""
        last, self._sight = self._sight, sight
        if last is None:
            self._first = sight
            self._known = sight.dead_rows * self._row_bytes
            self._known_at, self._bytes_when_known = sight.now, sight.bytes
            self._bytes_after_vacuum = sight.bytes
        else:
            self._between_looks_s = max(0.0, sight.now - last.now)
            if not self._holds:
                self._active_s += self._between_looks_s
            self._count(last, sight)
        if last is not None and sight.vacuums > last.vacuums:
            self._credit(sight)
        elif self.room_bytes > 0 and sight.bytes > self._bytes_after_vacuum + DISBELIEF * self.start_bytes:
            self._room_given, self._given_at = 0.0, self._made
        self._remember(_Mark(self._made, sight.next_xid), sight.horizon_xid)

    def started(self, now: float, verdict: Verdict) -> None:
        """The VACUUM that ``verdict`` asked for has begun."""
        self._run = _Run(now, verdict.whole, self._removable(), self._made, verdict.hold)
        self._uncredited = self._run

    def ended(self, now: float, *, failed: bool) -> None:
        """Our VACUUM is over; the next ``look`` shows what it did.  ``failed``: it was cancelled, or never began."""
        assert self._run is not None, "started() first"
        run, self._run = self._run, None
        if self._uncredited is not None:
            self._put_off(now)  # until a look shows that it removed something
        if failed:
            self._uncredited = None
            return
        self._durations[run.whole].append(now - run.since)
        if run.whole:
            self._stubs = self._read_again = 0.0
        else:
            self._read_again += self._stubs
            self._stubs += run.removable
        self._shift(run, self._made - run.made)

    # -- deciding ---------------------------------------------------------------------------------------------------

    def decide(self) -> Verdict:
        """What to do after the last look."""
        verdict = self._decide()
        self._holds = verdict.hold
        return verdict

    def _decide(self) -> Verdict:
        sight = self._sight
        if sight is None or self._is_free(sight):
            return Verdict()
        budget, growth, room = self.budget_bytes, self._growth, self.room_bytes
        whole = self._is_whole(sight)
        least = WORTHWHILE * budget
        rate = self._rate()
        ahead = rate * max(self.next_look_s, self._between_looks_s)  # will be written before somebody looks again
        hold = growth + ahead > budget and room <= ahead and self.dead_bytes >= least
        meanwhile = self._meanwhile(whole=whole, rate=rate)
        pressing = growth + ahead + meanwhile - room >= HEADROOM * budget and room <= ahead + ROOM_MARGIN * meanwhile
        due = self.dead_bytes >= least and (pressing or hold)
        worthwhile = self._removable() >= least
        if self._run is not None:
            self._run.held = self._run.held or hold
        return Verdict(
            start=due and worthwhile and not self.is_running and sight.now >= self._retry_at,
            hold=hold,
            blocked=due and not worthwhile and not self.is_running,
            whole=whole,
            gear=GEARS[-1] if hold else GEARS[self._gear],
        )

    # -- reckoning --------------------------------------------------------------------------------------------------

    def _count(self, last: Sight, sight: Sight) -> None:
        """Add what died between two looks."""
        assert self._first is not None
        updates = max(0, sight.updates - last.updates)  # negative: somebody has reset the statistics
        cold = max(0, updates - max(0, sight.hot_updates - last.hot_updates))
        self._counted += cold + max(0, sight.deletes - last.deletes)
        self._counted_updates += updates
        self._counted_cold += cold
        reckoned = 0.0
        if sight.rows_written is not None and self._first.rows_written is not None:
            # The counters are up to a second old, in which a fast job writes a tenth of a small table.
            reckoned = (sight.rows_written - self._first.rows_written) * self._cold_share()
        known = (self._first.dead_rows + max(self._counted, reckoned)) * self._row_bytes
        age = sight.now - self._known_at
        if known > self._known:
            self._known, self._known_at, self._bytes_when_known = known, sight.now, sight.bytes
            self._guess = 0.0
        elif age > LATE_S:
            self._guess = 0.0
        elif not self._holds:
            grown = (sight.bytes - self._bytes_when_known) * (1.0 if self._cold_share() > 0 else 0.0)
            self._guess = max(self._guess, self._rate() * age, grown)
        # A guess that is taken back makes no room, and nothing that died later was removed before.
        self._given_at, self._removed = min(self._given_at, self._made), min(self._removed, self._made)
        if self._guess == 0.0:
            self._recent.append((self._active_s, known))
        while len(self._recent) > 2 and self._active_s - self._recent[1][0] >= RATE_WINDOW_S:
            self._recent.popleft()

    def _cold_share(self) -> float:
        """Share of the updates that need a VACUUM: as counted, before that as the file's growth suggests."""
        if self._counted_updates > 0:
            return self._counted_cold / self._counted_updates
        assert self._first is not None
        assert self._sight is not None
        return 1.0 if self._sight.bytes > self._first.bytes else 0.0

    def _credit(self, sight: Sight) -> None:
        """A VACUUM has ended: all that died is room now, except what the server still counts as dead."""
        could = self._uncredited.removable if self._uncredited is not None else self._removable()
        removed = min(self.dead_bytes - sight.dead_rows * self._row_bytes, could)
        self._uncredited = None
        self._bytes_after_vacuum = sight.bytes
        if removed > 0:
            self._removed += removed
            self._room_given, self._given_at = self.room_bytes + SURE_ROOM * removed, self._made
            self._retry_at, self._retry_s = -math.inf, FIRST_RETRY_S

    def _remember(self, mark: _Mark, horizon_xid: int) -> None:
        self._marks.append(mark)
        while len(self._marks) > 1 and self._marks[1].next_xid <= horizon_xid:
            self._marks.popleft()
        if len(self._marks) > MARKS:
            self._marks = deque([*self._marks][::2])

    def _removable(self) -> float:
        """Bytes that a VACUUM begun now would remove: what had died before the horizon."""
        assert self._sight is not None
        horizon_xid = self._sight.horizon_xid
        before = self._marks[0]
        if before.next_xid > horizon_xid:
            return 0.0
        made = before.made
        if len(self._marks) > 1:  # in between, as many rows are taken to have died per transaction
            after = self._marks[1]
            made += max(0.0, after.made - made) * (horizon_xid - before.next_xid) / (after.next_xid - before.next_xid)
        return max(0.0, made - self._removed)

    def _rate(self) -> float:
        """Bytes that died per second, while the job was not held, lately."""
        if not self._recent:
            return 0.0
        rates = [_slope(self._recent)]
        recent = [point for point in self._recent if self._active_s - point[0] <= SHORT_WINDOW_S]
        if len({made for _, made in recent}) >= SHORT_WINDOW_CHANGES:
            rates.append(_slope(recent))
        return max(rates)

    def _meanwhile(self, *, whole: bool, rate: float) -> float:
        """Bytes that will be written while a VACUUM begun now runs."""
        known = self._durations[whole] or self._durations[not whole]
        if not known:
            return FIRST_GUESS * self.budget_bytes
        return rate * max(known) * DURATION_MARGIN

    def _is_free(self, sight: Sight) -> bool:
        """True when the heap is too small to matter, or what is left to write fits into the room and the budget."""
        if self.start_bytes < MINIMUM_BYTES:
            return True
        if sight.rows_left is None:
            return False
        left = sight.rows_left * self._row_bytes  # not positive: there were more rows than estimated, and may be more
        return left > 0 and self._growth + max(0.0, left - self.room_bytes) <= self.budget_bytes

    def _is_whole(self, sight: Sight) -> bool:
        if self._row_bytes < MINIMUM_STUB_ROW_BYTES or sight.index_bytes == 0:
            return True
        return self._read_again + self._stubs > INDEX_WEIGHT * sight.index_bytes

    def _shift(self, run: _Run, written: float) -> None:
        """Choose the gear of the next VACUUM from what was written during this one."""
        share = written / self.budget_bytes
        if run.held:
            self._gear = len(GEARS) - 1
        elif share > GENTLE_SHARE:
            self._gear = min(self._gear + 1, len(GEARS) - 1)
        elif share * GEAR_STEP < GENTLE_SHARE:
            self._gear = max(self._gear - 1, 0)

    def _put_off(self, now: float) -> None:
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Change of the second per change of the first, from the first point to the last one; 0 where that is nothing."""
    (began, before), (ended, after) = points[0], points[-1]
    return (after - before) / (ended - began) if ended > began else 0.0
