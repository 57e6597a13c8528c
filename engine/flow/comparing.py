"""What a job's verification compares, over sessions that are open: made from the prepared job."""

from __future__ import annotations

from engine.db import Connection
from engine.flow.prepare import Prepared
from engine.sql import read_expression
from engine.sql.compare import compared, verify_chunk
from engine.sql.compare_in_place import in_place, in_place_chunk
from engine.verify import Comparer, InPlaceComparer

AnyComparer = Comparer | InPlaceComparer


def comparer_of(prepared: Prepared, source: Connection, target: Connection) -> AnyComparer:
    """A comparer over these sessions; the same one twice, where both sides are in one database."""
    written = {column.name: column for column in prepared.written_table.columns}
    if prepared.target is not None:
        shape = compared(prepared.source, prepared.target, written, volatile=prepared.unrepeatable)
        return Comparer(shape, source, target)
    spec = prepared.spec
    # What a transform makes of a row is not computed a second time: all that can be said is whether it is done.
    unsteady = prepared.transform is not None or (spec.done is not None and prepared.unrepeatable)
    done = prepared.done if unsteady else None
    assignments = {name: read_expression(text).sql for name, text in spec.set.items()}
    return InPlaceComparer(in_place(prepared.source, assignments, written, done=done), target)


def chunk_statement(comparer: AnyComparer, *, first: bool) -> str | None:
    """The one statement that compares a chunk and advances if it agrees; None where there is no such statement: two
    databases, another order, or servers that agree on no hash.
    """
    if isinstance(comparer, InPlaceComparer):
        return in_place_chunk(comparer.shape, first=first)
    if not comparer.is_one or not comparer.compared.target.same_order:
        return None
    return verify_chunk(comparer.compared, comparer.form, first=first)
