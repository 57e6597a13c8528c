"""What a host lends to the jobs of a ledger, and to which jobs it lends nothing.

What a job's row says is believed only as far as this host allows.  The ledger's own database is the target, so the
target's connection is always the one we were given.  The source of a job between two databases is reached by the
connection string that the operator of this host gave, or by a reference (``${SOURCE_DSN}``) to a variable that the
operator allowed to be looked up; a signal's URL is asked only if the operator allowed it.  Any other job is left to
other hosts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from engine.errors import UsageError
from engine.flow.transforming import declared_by
from engine.ledger.records import JobRecord
from engine.model import Mode
from engine.spec import Dsn, JobSpec, by_operator

DEFAULT_VARIABLES: Final = ("SOURCE_DSN", "TARGET_DSN")
_ASTRAY: Final = ("..", "\\", "\N{REPLACEMENT CHARACTER}")
"""What no path may have in it once decoded: a way up, what some servers take for a slash, bytes that are no text."""


class Lender(Protocol):
    """Knows this host's connections."""

    @property
    def target(self) -> Dsn:
        """The ledger's database."""
        ...

    @property
    def max_workers(self) -> int | None:
        """The most workers of one job here; None: as many as its spec says."""
        ...

    def spec_of(self, job: JobRecord) -> JobSpec:
        """The job's spec with this host's connections.  Raises ``BackfillError`` for a job that is not worked here."""
        ...


@dataclass(frozen=True, slots=True)
class Lent:
    """What this host lends to jobs of the ledger: connections, names of variables that references may mean, URLs (with
    everything below them) that signals may ask, and transforms (``module:function``, ``module:*``) that may be loaded,
    ``search`` being the folder where their modules are looked for last.
    """

    target: Dsn
    source: Dsn | None = None
    variables: frozenset[str] = frozenset(DEFAULT_VARIABLES)
    urls: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    max_workers: int | None = None
    transforms: frozenset[str] = frozenset()
    search: Path | None = None

    def spec_of(self, job: JobRecord) -> JobSpec:
        """The job's spec with this host's connections.  Raises ``UsageError`` when its source cannot be reached from
        here, and ``SpecError`` when the ledger's row is no spec.
        """
        return self._checked(self._with_connections(job))

    def _with_connections(self, job: JobRecord) -> JobSpec:
        # References are kept as the ledger has them: who works a job does not rewrite its settings.
        target = Dsn(self.target.secret(), reference=_reference(job, "target"))
        if job.mode is not Mode.COPY:
            source = Dsn(self.target.secret(), reference=_reference(job, "source"))
            in_target = job.mode is Mode.INSERT and _reference(job, "target") is not None
            return self._spec(job, source, target if in_target else None)
        return self._spec(job, self._source_of(job), target)

    def _spec(self, job: JobRecord, source: Dsn, target: Dsn | None) -> JobSpec:
        rights = by_operator(self.transforms, self.search, declared_by(job.identity))
        return JobSpec.from_ledger(job.spec, source_dsn=source, target_dsn=target, transforms=rights)

    def _checked(self, spec: JobSpec) -> JobSpec:
        """The spec, unless one of its signals would have this host contact an address that nobody here named."""
        for listened in spec.pace.effective_signals():
            url = listened.url
            if url is not None and not any(_is_below(url, allowed) for allowed in self.urls):
                address = "{0.scheme}://{0.netloc}".format(urlsplit(url))
                raise UsageError(
                    f"its signal {listened.name} asks {address}, which this worker may not contact",
                    hint=f"allow it by --allow-url {address}",
                )
        return spec

    def _source_of(self, job: JobRecord) -> Dsn:
        reference = _reference(job, "source")
        if self.source is not None:
            return Dsn(self.source.secret(), reference=reference)
        if reference is None:
            raise UsageError("its source's connection is not known here", hint="give it by --source-dsn")
        variable = reference.removeprefix("${").removesuffix("}")
        if variable not in self.variables:
            raise UsageError(
                f"its source is {reference}, which this worker may not look up", hint=f"allow it by --env {variable}"
            )
        if not self.environment.get(variable):
            raise UsageError(f"its source is {reference}, which is not set here", hint=f"export {variable}")
        return Dsn(self.environment[variable], reference=reference)


def _is_below(url: str, allowed: str) -> bool:
    """True for the allowed URL itself and for what is below its path, however its server spells out the path."""
    asked, root = urlsplit(url), urlsplit(allowed)
    if (asked.scheme, asked.netloc) != (root.scheme, root.netloc):
        return False
    path, top = _decoded(asked.path), _decoded(root.path).rstrip("/")
    # A slash that was encoded is a step down for some servers, and part of a name for others.
    if path.count("/") != asked.path.count("/") or any(bad in path for bad in _ASTRAY):
        return False
    return path == top or path.startswith(f"{top}/")


def _decoded(path: str) -> str:
    """Without percent signs, even where they were encoded themselves: some way may decode it twice."""
    while (plain := unquote(path)) != path:
        path = plain
    return path


def _reference(job: JobRecord, side: str) -> str | None:
    endpoint = job.document.get(side)
    dsn = endpoint.get("dsn") if isinstance(endpoint, Mapping) else None
    reference = dsn.get("reference") if isinstance(dsn, Mapping) else None
    return str(reference) if reference else None
