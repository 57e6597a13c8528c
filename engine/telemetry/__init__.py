"""What happened, for people and for programs: events become JSON lines, sentences, readable numbers and metrics.

Consumes events and statuses; nothing below this room imports it.  Refuses to know databases, loops and terminals: a
stream is anything with ``write`` and ``flush``.  Metrics are not imported here: most commands need none of them, and
their library takes a while to load (``telemetry.metrics``, ``telemetry.exposition``).

Invariants:

* Listening never fails the work: a reader that went away is forgotten, not reported as an error of the job.
* No row value, key or secret gets here, because no event holds one.
* Warned once per change, not once per chunk.
* A metric is defined in ``telemetry.catalogue`` and nowhere else, and the number of its series is bounded.
"""

from __future__ import annotations

from engine.telemetry.lines import JsonLines, finished_event, tee
from engine.telemetry.messages import Level, message

__all__ = ["JsonLines", "Level", "finished_event", "message", "tee"]
