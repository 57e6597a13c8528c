"""Planning: where the rows are, how to cut them into spans, how far a job has come.

Owns the key space (typed keys as positions among estimated rows), the choice of spans and split points, progress and
ETA, and the findings of preflight.

Refuses to know connections, loops, statements and clocks: a routine that must learn something about the table yields a
question (``questions``) and is sent the answer.  Everything here is tested without a database.

Invariants:

* Only the source server orders keys.  A position is an estimate, and a bound is always an existing key that a probe
  has found; the planner relies on the order of the keys an answer lists, never on its own comparison.
* Spans tile the key space: the first begins before the first key, each begins where the one before it ends, the last
  ends at the last key there was.
* The cost of planning grows with the number of spans and not with the number of rows.
* A wrong estimate costs balance, never a row.
"""

from __future__ import annotations

from engine.plan.keyspace import KeySpace, kind_of
from engine.plan.progress import Progress, Report
from engine.plan.questions import Question, Steps
from engine.plan.spans import SpanPlan, plan_spans

__all__ = ["KeySpace", "Progress", "Question", "Report", "SpanPlan", "Steps", "kind_of", "plan_spans"]
