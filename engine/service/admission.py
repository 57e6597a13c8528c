"""What a submitted spec may ask for, by the operator's rules; every refusal at once, each with its pointer.

A spec is read as one for a daemon (``engine.spec.read_submitted``): it names connections, and holds no connection
string, no variable, no module.  Here its names become this host's connections, signals and role, or are refused.  A
connection that the caller may not use and one that is not there are the same to him.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from engine.errors import Problem, SpecError
from engine.flow.prepare import Inspection
from engine.model import TableName
from engine.service.access import Identity
from engine.service.config import Config, ConnectionConfig
from engine.spec import Dsn, Endpoint, JobSpec, TableRef, by_operator, read_submitted
from engine.spec.document import Path, path_text, pointer_text
from engine.spec.misfit import nearest
from engine.spec.names import parse_names
from engine.spec.signals import NAMED, OperatorSignal
from engine.spec.submitted import shortened

_OPERATOR: Final = "ask the daemon's operator"
# fmt: off
_NOT_COLUMNS: Final = frozenset([
    "current_catalog", "current_date", "current_role", "current_schema", "current_time", "current_timestamp",
    "current_user", "default", "false", "localtime", "localtimestamp", "null", "session_user", "system_user", "true",
    "user",
])
# fmt: on
"""Words that stand for a value without being a column."""


class NotAllowed(SpecError):
    """The spec is one, and asks for what the operator has not allowed.  ``problems``: each thing."""

    code = "not_allowed"
    exit_code = 3
    http_status = 403


@dataclass(frozen=True, slots=True)
class Admitted:
    """A spec that may be run here: with this host's connections, the operator's role, and a limit below the ceiling.

    ``connection``: whose ledger holds the job.  ``spec_hash``: of what was submitted, before the operator's rules.
    """

    spec: JobSpec
    connection: str
    spec_hash: str
    _config: Config

    def check_tables(self, inspection: Inspection) -> None:
        """See that the tables which the catalogue gave are those that were allowed.  Raises ``NotAllowed``."""
        check_tables(inspection, self._config, {side: str(endpoint.connection) for side, endpoint in _sides(self.spec)})


def admit(data: object, config: Config, dsns: Mapping[str, Dsn], identity: Identity) -> Admitted:
    """The submitted spec as it may be run.  Raises ``SpecError`` when it is none, ``NotAllowed`` when it may not."""
    asked = read_submitted(data)
    unknown = [problem for side, endpoint in _sides(asked) for problem in _names(side, endpoint, config, identity)]
    if unknown:
        raise NotAllowed(unknown)
    connections = [_connection(config, endpoint) for _, endpoint in _sides(asked)]
    problems = [
        *_tables(asked, config),
        *_reads_from(asked, config),
        *_role(asked, connections),
        *_rows(asked, connections),
        *_workers(asked, connections),
        *(() if config.allow.expressions else _expressions(asked)),
        *_transform(asked, config),
        *_signals(asked, config),
    ]
    if problems:
        raise NotAllowed(shortened(problems))
    ledger = (asked.target or asked.source).connection
    assert ledger is not None, "a spec for a daemon names its connections"
    return Admitted(_at_home(asked, config, dsns, connections), ledger, _hash(asked), config)


def check_again(spec: JobSpec, config: Config, connections: Mapping[str, str], identity: Identity) -> None:
    """See that a job of a ledger is one that could be submitted now, before it is begun anew or more is written.

    ``connections``: the name here of each side's (``source``, ``target``), as the lender found it; whatever the row
    says.  A table without a schema is left to ``check_tables``, and workers to whoever starts them.  Raises
    ``NotAllowed``.
    """
    unknown = [problem for side, name in connections.items() for problem in _name(side, name, config, identity)]
    if unknown:
        raise NotAllowed(unknown)
    named = [config.connections[name] for name in dict.fromkeys(connections.values())]
    tables = {"source": spec.source.table} | ({} if spec.target is None else {"target": spec.target.table})
    problems = [
        *(
            problem
            for side, table in tables.items()
            if table.schema is not None
            for problem in _table(side, table, _of_side(config, connections, side))
        ),
        *_reading(spec, config, connections["source"], connections.get("target")),
        *_role(spec, named),
        *_rows(spec, named),
        *(() if config.allow.expressions else _expressions(spec)),
        *_transform(spec, config),
    ]
    if problems:
        raise NotAllowed(shortened(problems))


def check_tables(inspection: Inspection, config: Config, connections: Mapping[str, str]) -> None:
    """See that the tables which the catalogue gave are open to jobs.  Raises ``NotAllowed``."""
    found = {"source": inspection.source.name}
    if inspection.target is not None:
        found["target"] = inspection.target.name
    problems = [
        problem for side, name in found.items() for problem in _table(side, name, _of_side(config, connections, side))
    ]
    if problems:
        raise NotAllowed(problems)


def rows_refused() -> NotAllowed:
    """The answer to who asks for rows where the operator has not allowed that."""
    message, hint = "the operator does not allow rows in answers", "the operator writes [allow] show_rows = true"
    return NotAllowed([Problem("show_rows", message, hint)])


def ceiling_of(config: Config, connections: Mapping[str, str]) -> float | None:
    """The most rows a second that a job between these connections may be given."""
    return _lowest(config.connections[name].max_rows_per_s for name in connections.values())


def is_expression(text: str) -> bool:
    """True for whatever is more than the name of one column, quoted or not."""
    names = parse_names(text.strip())
    if names is None or len(names) != 1 or not names[0]:
        return True
    return not text.strip().startswith('"') and names[0] in _NOT_COLUMNS


def role_of(connections: list[ConnectionConfig]) -> tuple[str | None, bool]:
    """The role that the connections' operator wants for a job, and whether they agree on it."""
    roles = {one.role for one in connections if one.role is not None}
    return (next(iter(roles)) if len(roles) == 1 else None), len(roles) <= 1


def reads_beyond(spec: JobSpec, config: Config, ledger: ConnectionConfig, source: str) -> Iterator[Problem]:
    """What is wrong with a job of one connection's ledger that reads from another connection: that is lent only for the
    tables, and the SQL, that a submitted job might ask of it.
    """
    if ledger.sources is not None and source not in ledger.sources:
        path = ("source", "connection")
        yield _problem(path, "may not be read from by jobs of the target's ledger", f"{_OPERATOR} for `sources`")
    yield from _table("source", spec.source.table, config.connections[source])


def _at_home(asked: JobSpec, config: Config, dsns: Mapping[str, Dsn], connections: list[ConnectionConfig]) -> JobSpec:
    """The spec with what is this host's and its operator's."""
    workers, ceiling = _lowest(one.workers for one in connections), _lowest(one.max_rows_per_s for one in connections)
    asks, pace = asked.for_ledger(), asked.pace.as_file()
    role, _ = role_of(connections)
    asks |= {} if role is None else {"role": role}
    asks |= {} if workers is None else {"workers": int(min(asked.workers, workers))}
    asks["pace"] = ({} if ceiling is None else {"max_rows_per_s": float(ceiling)}) | pace
    source, target = asked.source.connection, asked.target.connection if asked.target is not None else None
    return JobSpec.from_ledger(
        asks,
        source_dsn=dsns[str(source)],
        # A connection string of its own would say that there are two databases.
        target_dsn=None if target in (None, source) else dsns[str(target)],
        signals=config.signals,
        transforms=by_operator(config.allow.transforms),
    )


def _hash(asked: JobSpec) -> str:
    text = json.dumps(asked.for_ledger(), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


# -- rules ------------------------------------------------------------------------------------------------------------


def _names(side: str, endpoint: Endpoint, config: Config, identity: Identity) -> Iterator[Problem]:
    return _name(side, str(endpoint.connection), config, identity)


def _name(side: str, connection: str, config: Config, identity: Identity) -> Iterator[Problem]:
    usable = [name for name in config.connections if identity.may_use(name)]
    if connection not in usable:
        guess = nearest(connection, usable)
        listed = f"yours are {', '.join(usable)}" if usable else f"none is yours: {_OPERATOR}"
        hint = f"did you mean {guess}?" if guess else listed
        yield _problem((side, "connection"), "is not a connection that you may name", hint)


def _tables(asked: JobSpec, config: Config) -> Iterator[Problem]:
    for side, endpoint in _sides(asked):
        if endpoint.table.schema is None:
            yield _problem((side, "table"), "names no schema", f"write schema.table: public.{endpoint.table}")
        else:
            yield from _table(side, endpoint.table, _connection(config, endpoint))


def _table(side: str, table: TableRef | TableName, connection: ConnectionConfig) -> Iterator[Problem]:
    if table.schema is None or not any(each.matches(table.schema, table.name) for each in connection.tables):
        reach = ", ".join(map(str, connection.tables)) or "none"
        yield _problem((side, "table"), "is not a table that jobs may touch", f"open to jobs are: {reach}")


def _reads_from(asked: JobSpec, config: Config) -> Iterator[Problem]:
    return _reading(
        asked, config, str(asked.source.connection), None if asked.target is None else asked.target.connection
    )


def _reading(asked: JobSpec, config: Config, source: str, target: str | None) -> Iterator[Problem]:
    if target is not None and source != target:
        # The table itself has been looked at.
        found = reads_beyond(asked, config, config.connections[target], source)
        yield from (problem for problem in found if problem.pointer == "/source/connection")


def _role(asked: JobSpec, connections: list[ConnectionConfig]) -> Iterator[Problem]:
    role, agreed = role_of(connections)
    if not agreed:
        hint = f"a job moves rows under one role: {_OPERATOR}"
        yield _problem(("target", "connection"), "has another role than the source's", hint)
    elif asked.role is not None and asked.role != role:
        yield _problem(("role",), "is the operator's to choose", "leave it out")


def _rows(asked: JobSpec, connections: list[ConnectionConfig]) -> Iterator[Problem]:
    ceiling = _lowest(one.max_rows_per_s for one in connections)
    if ceiling is not None and (asked.pace.max_rows_per_s or 0) > ceiling:
        hint = f"at most {ceiling:,g}; a job that sets no limit gets that"
        yield _problem(("pace", "max_rows_per_s"), "is above what the operator allows", hint)


def _workers(asked: JobSpec, connections: list[ConnectionConfig]) -> Iterator[Problem]:
    workers = _lowest(one.workers for one in connections)
    if workers is not None and "workers" in asked.model_fields_set and asked.workers > workers:
        yield _problem(("workers",), "are more than the operator allows", f"at most {workers:g}")


def expressions_of(spec: JobSpec) -> Iterator[Path]:
    """Where the spec holds SQL that is more than a column's name."""
    for key, expressions in (("set", spec.set), ("columns", spec.columns)):
        yield from ((key, column) for column, text in expressions.items() if is_expression(text))
    for key, text in (("where", spec.where), ("done", spec.done)):
        if text is not None and is_expression(text):
            yield (key,)


def _expressions(asked: JobSpec) -> Iterator[Problem]:
    hint = f"name a column; for SQL {_OPERATOR}: [allow] expressions"
    for path in expressions_of(asked):
        yield _problem(path, "is an SQL expression, which the operator does not allow", hint)


def _transform(asked: JobSpec, config: Config) -> Iterator[Problem]:
    """Before anything is imported."""
    if asked.transform is not None and not by_operator(config.allow.transforms).allow(asked.transform):
        listed = ", ".join(config.allow.transforms) or "none"
        hint = f"allowed are: {listed}; for another {_OPERATOR}: [allow] transforms"
        yield _problem(("transform",), "is not a transform that the operator allows", hint)


def _signals(asked: JobSpec, config: Config) -> Iterator[Problem]:
    for number, signal in enumerate(asked.pace.listed):
        path: Path = ("pace", "signals", number)
        if isinstance(signal, OperatorSignal):
            if signal.name not in config.signals:
                guess = nearest(signal.name, config.signals)
                listed = f"there are: {', '.join(config.signals) or 'none'}"
                hint = f"did you mean {guess}?" if guess else listed
                yield _problem(path, "is not a signal that the operator has configured", hint)
        elif signal.kind in NAMED:
            hint = "refer by its name to one that the operator has under [signals]"
            yield _problem((*path, signal.kind.value), "is for the operator alone to write", hint)
        elif signal.query is not None:
            hint = "leave it out: the built-in one reads a random row"
            yield _problem((*path, signal.kind.value, "query"), "is for the operator alone to write", hint)


def _problem(path: Path, message: str, hint: str) -> Problem:
    return Problem(path_text(path), message, hint, pointer=pointer_text(path))


def _sides(spec: JobSpec) -> list[tuple[str, Endpoint]]:
    return [("source", spec.source)] + ([("target", spec.target)] if spec.target is not None else [])


def _connection(config: Config, endpoint: Endpoint) -> ConnectionConfig:
    return config.connections[str(endpoint.connection)]


def _of_side(config: Config, connections: Mapping[str, str], side: str) -> ConnectionConfig:
    """A target without a connection of its own is in the source's database."""
    return config.connections[connections.get(side, connections["source"])]


def _lowest(limits: Iterable[float | None]) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)
