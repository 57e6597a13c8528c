"""Which transforms this host may load: what a job names counts for nothing without it.

A spec names its transform as ``module.path:function``.  Nothing is imported when a spec is read; whether it may be,
and where it is looked for, travels with the spec beside what the file says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.model import Declaration
from engine.transform.loading import allows


@dataclass(frozen=True, slots=True)
class TransformRights:
    """What this host allows, and what is known of a transform that it does not load.

    ``allowed``: patterns, ``module:function`` or ``module:*``.  ``search``: a folder in which modules are looked for
    after all others.  ``declared``: what the transform read and wrote when its job was begun, as the ledger has it;
    enough for whoever only looks at the job.
    """

    allowed: frozenset[str] = frozenset()
    search: Path | None = None
    declared: Declaration | None = None

    def allow(self, reference: str) -> bool:
        """True when that transform may be loaded here."""
        return allows(reference, self.allowed)


def by_hand(reference: str | None, search: Path | None) -> TransformRights:
    """The rights of somebody who wrote the spec for a process of their own: what it names, and nothing else."""
    return TransformRights() if reference is None else TransformRights(frozenset({reference}), search)


def by_operator(
    patterns: Iterable[str], search: Path | None = None, declared: Declaration | None = None
) -> TransformRights:
    """The rights of a process that works what others wrote."""
    return TransformRights(frozenset(patterns), search, declared)
