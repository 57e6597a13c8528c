"""A job's transform as preflight and the movers need it: loaded where this host allows it, judged by both tables.

Whoever only looks at a job need not be able to load its transform: what it reads and writes was noted when the job was
begun, and travels with the spec (``spec.transforms.declared``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from engine.db import Database
from engine.errors import TransformFailed, TransformNotAllowed
from engine.ledger.store import Ledger
from engine.model import Declaration, Table
from engine.plan.preflight import TransformFacts
from engine.spec import JobSpec, TransformRights
from engine.transform.loading import load
from engine.transform.thread import DaemonExecutor

if TYPE_CHECKING:  # numpy is loaded by jobs that need it
    from engine.transform.declare import Transform
    from engine.transform.types import ColumnType

IDENTITY_KEYS: Final = {
    "reference": "transform",  # of the spec
    "reads": "transform_reads",
    "writes": "transform_writes",
    "drops": "transform_drops",
}
"""What a declaration's values are called in what makes a job this job."""


class TransformNotReady(TransformFailed):
    """Its set-up fails in this process: where others work the job, it goes on without us."""


@dataclass(frozen=True, slots=True)
class PreparedTransform:
    """A transform beside the tables it is for.

    ``reads`` and ``writes`` are the types of its columns in the order of the declaration, without those that preflight
    refuses.  ``transform`` None: this host only looks at the job.
    """

    declaration: Declaration
    transform: Transform | None
    reads: tuple[ColumnType, ...]
    writes: tuple[ColumnType, ...]

    @property
    def loaded(self) -> Transform:
        """The function itself.  Raises ``TransformNotAllowed`` where this host may only look at the job."""
        if self.transform is None:
            raise _not_allowed(self.reference)
        return self.transform

    @property
    def reference(self) -> str:
        """How the spec names it."""
        return self.declaration.reference

    @property
    def identity(self) -> dict[str, Any]:
        """What it adds to what makes a job this job."""
        declared = self.declaration.as_json()
        return {key: declared[name] for name, key in IDENTITY_KEYS.items() if name != "reference"}


def declared_by(identity: object) -> Declaration | None:
    """What a job's identity says of its transform; None where it has none, or says nothing that makes sense."""
    if not isinstance(identity, Mapping):
        return None
    try:
        return Declaration.from_json({name: identity.get(key) for name, key in IDENTITY_KEYS.items()})
    except ValueError:
        return None


def only_declared(identity: object) -> TransformRights:
    """The rights of a command that looks at a job of the ledger and runs nothing of it."""
    return TransformRights(declared=declared_by(identity))


async def as_begun(spec: JobSpec, target: Database) -> JobSpec:
    """``spec`` with what the ledger beside its target says of its transform, if it knows the job: enough for whoever
    only looks at it.
    """
    if spec.transform is None or spec.transforms.declared is not None:
        return spec
    connection = await target.connect("look")
    try:
        ledger = Ledger(connection)
        job = await ledger.find(spec.name) if await ledger.installed_version() > 0 else None
    finally:
        await connection.close()
    declared = declared_by(job.identity) if job is not None else None
    return spec if declared is None else spec.with_transforms(replace(spec.transforms, declared=declared))


async def load_transform(spec: JobSpec, *, runs: bool = True) -> tuple[Declaration, Transform | None] | None:
    """The transform of ``spec``, and what it declares; None for a job without one.

    ``runs`` False: only to look at the job, so nothing is loaded if it is known what the transform declares.

    Raises ``TransformNotAllowed`` where it may not be loaded here and nobody knows what it declares, and
    ``TransformNotLoaded`` where its import fails.
    """
    if spec.transform is None:
        return None
    rights = spec.transforms
    is_known = rights.declared is not None and rights.declared.reference == spec.transform
    if rights.declared is not None and is_known and not (runs and rights.allow(spec.transform)):
        return rights.declared, None
    # A module may import much, or hang: whoever waits for it holds up neither the loop nor the process's end.
    loading = partial(load, spec.transform, rights.allowed, search=rights.search)
    transform = await asyncio.get_running_loop().run_in_executor(DaemonExecutor("load"), loading)
    return transform.declaration, transform


def require_allowed(spec: JobSpec) -> None:
    """See that who is to run the job's transform may load it.  Imports nothing.  Raises ``TransformNotAllowed``."""
    if spec.transform is not None and not spec.transforms.allow(spec.transform):
        raise _not_allowed(spec.transform)


def _not_allowed(reference: str) -> TransformNotAllowed:
    return TransformNotAllowed(
        f"its transform {reference} is not allowed here",
        hint=f"--allow-transform {reference}, or [allow] transforms in a daemon's configuration",
    )


def prepare_transform(
    loaded: tuple[Declaration, Transform | None] | None, source: Table, written: Table | None
) -> tuple[PreparedTransform, TransformFacts] | tuple[None, None]:
    """The types of all columns that the transform reads and writes, and what preflight is to judge."""
    if loaded is None:
        return None, None
    from engine.transform.types import column_type

    declaration, transform = loaded
    reads, writes = [], []
    unreadable: list[str] = []
    unwritable: list[str] = []
    for name, form in declaration.reads:
        column = source.column(name)
        kind = column_type(column, form) if column is not None else None
        if kind is not None:
            reads.append(kind)
        elif column is not None:
            unreadable.append(name)
    for name in declaration.writes:
        column = written.column(name) if written is not None else None
        kind = column_type(column) if column is not None else None
        if kind is not None:
            writes.append(kind)
        elif column is not None:
            unwritable.append(name)
    prepared = PreparedTransform(declaration, transform, tuple(reads), tuple(writes))
    facts = TransformFacts(
        reference=declaration.reference,
        reads=declaration.reads,
        writes=declaration.writes,
        drops=declaration.drops,
        unreadable=tuple(unreadable),
        unwritable=tuple(unwritable),
    )
    return prepared, facts
