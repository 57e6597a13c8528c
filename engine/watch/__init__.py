"""How the databases feel: probes that turn questions to servers, URLs and standbys into readings.

Owns when and how often anything is asked, the sessions that it is asked through, and whose work is whose (our sessions
and WAL are told from others').  Refuses to know what a reading means: ``pace`` decides, ``flow`` obeys.

Invariants:

* A probe that hangs delays no other one of another session, and ends at its own deadline.
* A question without an answer is a reading without a value, never a zero.
* Nothing outlives ``Watcher.close``.
* No reading holds a value of a row, a key or a secret.
"""

from __future__ import annotations

from engine.watch.build import Place, Watched
from engine.watch.probe import Measured, Probe, ProbeFailed
from engine.watch.watch import Sight, Watch
from engine.watch.watcher import Watcher

__all__ = ["Measured", "Place", "Probe", "ProbeFailed", "Sight", "Watch", "Watched", "Watcher"]
