"""When the next chunk may start, and how many rows it takes.

Owns: the token bucket (``bucket``: *when*), the chunk sizer (``sizer``: *how much*), and the law that moves both
(``controller``), told once a second what ``law.Situation`` says.  Of the law's parts, ``signals`` makes pressures and
gates of readings, ``gauges`` and ``gates`` make one of many, ``rate`` moves the rate, ``response`` derives chunk time
and workers, ``quiet`` finds times to measure baselines, ``growth`` decides about VACUUM; ``published`` is a decision
as the ledger keeps it.

Refuses to know: databases, SQL, keys, spans, and what a row means.  Nothing here reads a clock by itself.  Everything
that is decided is decided by plain synchronous objects that are told the time; ``TokenBucket`` alone wraps one of
them in futures, so that a worker can await its turn.

Invariants:

- One knob, one job: the bucket never changes a size, the sizer never delays anything.
- Whatever the order of calls, the bucket grants at most ``rate * time + capacity + one chunk`` in any interval.
- A waiter is woken by a change of state, never by a message that could be lost: whenever somebody waits and nothing
  holds them, exactly one timer is armed for the head of the queue.
- The sizer learns from server time only, never from time spent waiting for admission.
- The rate never rises while a signal that counts has no usable reading; whatever gates admits nothing.
"""

from engine.pace.bucket import Admission, TokenBucket, Usage
from engine.pace.sizer import ChunkSizer

__all__ = ["Admission", "ChunkSizer", "TokenBucket", "Usage"]
