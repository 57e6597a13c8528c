"""Comparing: is the target what the source says it should be, and if not, where; and making it so.

Owns what "equal" means, where it is asked, and how a difference is narrowed down to rows and mended.  Refuses to know
jobs, spans, phases, the ledger, and when to look again: ``flow`` decides that.

Invariants:

* Equal means: the same text in every compared column, under the pinned session settings.  A hash may call equal rows
  different (a second look puts that right), never different rows equal, but by the chance of 64 bits.
* Within one database both sides are read in one snapshot.  Between two, a difference is a suspicion until two looks at
  unchanged versions of both rows agree on it.
* A row that the servers cannot evaluate is a difference, and does not stop the comparison of others.
* A repair writes only rows that nobody has written since they were looked at, and deletes none unless it is told to.
"""

from __future__ import annotations

from engine.verify.comparer import Comparer
from engine.verify.findings import Digests, Kind, Look, Suspect
from engine.verify.in_place import InPlaceComparer
from engine.verify.repair import repair

__all__ = ["Comparer", "Digests", "InPlaceComparer", "Kind", "Look", "Suspect", "repair"]
