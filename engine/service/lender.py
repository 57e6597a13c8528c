"""What a daemon lends to the jobs of a ledger: its operator's connections, role and signals; nothing the job brings.

A job's row is believed only as far as the configuration allows, whoever wrote it: a submitter through this daemon, a
person with ``backfill run``, or somebody who can write the ledger's tables.  The target is always the ledger's own
database.  A source in another database is one that the configuration names, and is lent for what a submitted job might
ask of it: its ``tables``, and SQL only where expressions are allowed.  A job that asks for more is left aside, with the
reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine.errors import UsageError
from engine.flow.transforming import declared_by
from engine.ledger.records import JobRecord
from engine.model import Mode
from engine.service.admission import expressions_of, reads_beyond, role_of
from engine.service.config import Config, ConnectionConfig
from engine.spec import Dsn, JobSpec, by_operator
from engine.spec.dsn import VARIABLE

_SIGNALS_HINT: Final = "write it under [signals] of this daemon, and refer to it by its name in the job"


class Lender:
    """For ``fleet.Pool``: the spec of a job of one connection's ledger, as this daemon may work it."""

    def __init__(self, config: Config, dsns: Mapping[str, Dsn], connection: str) -> None:
        self.target = dsns[connection]
        self.max_workers = config.connections[connection].workers
        self._config = config
        self._own: ConnectionConfig = config.connections[connection]
        self._dsns = dsns

    def spec_of(self, job: JobRecord) -> JobSpec:
        """The job's spec with this daemon's connections and signals.  Raises ``UsageError`` with the reason why it is
        not worked here, and ``SpecError`` when the ledger's row is no spec.
        """
        connections = [self._own]
        if job.mode is Mode.COPY:
            source = self._copied_from(job)
            connections.append(self._config.connections[source])
            spec = self._spec(job, self._dsns[source], apart=True)
            self._check_source(spec, source)
        else:
            spec = self._spec(job, self.target, apart=job.mode is Mode.INSERT and _says(job, "target", "dsn"))
        _check_role(spec, connections)
        _check_signals(spec)
        return spec

    def source_of(self, job: JobRecord) -> str | None:
        """The name here of the connection that the job reads from; None where that is the ledger's own.

        Raises ``UsageError`` where none here is meant.
        """
        return self._copied_from(job) if job.mode is Mode.COPY else None

    def _spec(self, job: JobRecord, source: Dsn, *, apart: bool) -> JobSpec:
        # References are kept as the ledger has them: who works a job does not rewrite its settings.
        target = _lent(self.target, _reference(job, "target"))
        return JobSpec.from_ledger(
            job.spec,
            source_dsn=_lent(source, _reference(job, "source")),
            target_dsn=target if apart else None,
            signals=self._config.signals,
            transforms=by_operator(self._config.allow.transforms, declared=declared_by(job.identity)),
        )

    def _copied_from(self, job: JobRecord) -> str:
        endpoint = _endpoint(job, "source")
        name = endpoint.get("connection")
        if name is not None:
            if not isinstance(name, str) or name not in self._config.connections:
                raise UsageError(
                    "its source is a connection that is not configured here", hint="add it under [connections]"
                )
            return name
        reference = _reference(job, "source")
        if reference is None:
            raise UsageError(
                "its source's connection is not known here",
                hint="name the source by ${VAR} in its spec, and list VAR under `references` of a connection",
            )
        variable = VARIABLE.fullmatch(reference)
        for known, one in self._config.connections.items():
            if variable is not None and variable[1] in one.references:
                return known
        raise UsageError(
            f"its source is {reference if variable else 'a reference'}, which no connection here stands for",
            hint="list the variable under `references` of that database's connection",
        )

    def _check_source(self, spec: JobSpec, source: str) -> None:
        if spec.target is None:
            # It would be taken for a job in place, on the connection that is lent for reading.
            hint = "backfill restart begins the job anew"
            raise UsageError("the ledger contradicts itself: it is a copy, and has no target", hint=hint)
        for problem in reads_beyond(spec, self._config, self._own, source):
            raise UsageError(f"its {problem.path} {problem.message}: connection {source}", hint=problem.hint)
        if self._config.allow.expressions:
            return
        asks = any(signal.query is not None and not signal.of_operator for signal in spec.pace.signals)
        if asks or any(True for _ in expressions_of(spec)):
            raise UsageError(f"it runs SQL on another connection, {source}", hint="[allow] expressions would let it")


def _check_role(spec: JobSpec, connections: list[ConnectionConfig]) -> None:
    role, agreed = role_of(connections)
    if not agreed:
        raise UsageError("its two connections have different roles here", hint="a job moves rows under one role")
    if role is None and spec.role is not None:
        # Whoever can write the ledger's tables would choose what the operator's login may become.
        raise UsageError(
            f"its role is {spec.role}, and this daemon was given none there",
            hint="write role under [connections.NAME] of this daemon",
        )
    if spec.role != role:
        raise UsageError(
            f"its role is {spec.role or 'nobody in particular'}, and this daemon works as {role} there",
            hint=f"write role: {role} in its spec, and run it once",
        )


def _check_signals(spec: JobSpec) -> None:
    if unknown := spec.pace.unknown_signals:
        raise UsageError(f"its signal {unknown[0]} is not configured here", hint="write it under [signals]")
    for signal in spec.pace.signals:
        if signal.url is not None and not signal.of_operator:
            raise UsageError(f"its signal {signal.name} brings an address of its own", hint=_SIGNALS_HINT)


def _lent(dsn: Dsn, reference: str | None) -> Dsn:
    return Dsn(dsn.secret(), reference=reference, refuses_superusers=dsn.refuses_superusers)


def _endpoint(job: JobRecord, side: str) -> Mapping[str, Any]:
    spec: object = job.spec  # whoever can write the ledger's tables may have made anything of it
    endpoint = spec.get(side) if isinstance(spec, Mapping) else None
    return endpoint if isinstance(endpoint, Mapping) else {}


def _says(job: JobRecord, side: str, key: str) -> bool:
    return key in _endpoint(job, side)


def _reference(job: JobRecord, side: str) -> str | None:
    dsn = _endpoint(job, side).get("dsn")
    reference = dsn.get("reference") if isinstance(dsn, Mapping) else None
    return str(reference) if reference else None
