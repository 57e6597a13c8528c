"""Tables, servers and jobs as values, for the tests of preflight.  Each starts out with nothing to complain about."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from engine.model import Column, Index, Mode, Side, Table, TableName, Trigger
from engine.plan.preflight import ExpressionFacts, PacingFacts, PreflightFacts, ServerPacing, ServerState
from engine.spec import Endpoint, JobSpec, TableRef

_oids = itertools.count(20000)

_BUILT_IN = {
    "bigint": 20,
    "integer": 23,
    "smallint": 21,
    "text": 25,
    "uuid": 2950,
    "numeric": 1700,
    "boolean": 16,
    "timestamp with time zone": 1184,
    "double precision": 701,
    "jsonb": 3802,
    "character varying": 1043,
    "inet": 869,
    "macaddr": 829,
}
COLLATION = "libc en_US.UTF-8 2.36"


def column(name: str, type_name: str = "bigint", **changes: Any) -> Column:
    """A nullable column of that type, without default; text has a collation."""
    base = type_name.split("(", maxsplit=1)[0].strip()
    oid = _BUILT_IN.get(base, 90000)
    collatable = base in ("text", "character varying")
    plain = Column(
        name=name,
        number=1,
        type_oid=oid,
        type_name=type_name,
        base_type=base,
        type_kind="b",
        category_oid=oid,
        not_null=False,
        identity="",
        generated="",
        has_default=False,
        collation='pg_catalog."en_US"' if collatable else None,
        collation_id=COLLATION if collatable else None,
        collation_is_c=False,
        enum_labels=(),
        binary_io=True,
        binary_portable=True,
    )
    return replace(plain, **changes)


def required(name: str, type_name: str = "bigint", **changes: Any) -> Column:
    """A NOT NULL column."""
    return column(name, type_name, not_null=True, **changes)


def index(name: str, *columns: str, **changes: Any) -> Index:
    """A valid unique btree index of about a megabyte."""
    plain = Index(
        name=name,
        oid=next(_oids),
        columns=columns,
        unique=True,
        primary=False,
        immediate=True,
        partial=False,
        valid=True,
        method="btree",
        descending=(False,) * len(columns),
        default_opclass=True,
        size_bytes=1 << 20,
    )
    return replace(plain, **changes)


def primary(*columns: str, **changes: Any) -> Index:
    """The primary key's index."""
    return index("pkey", *columns, **{"primary": True, **changes})


def trigger(name: str, *, on: str, row_level: bool = True, before: bool = True, enabled: bool = True) -> Trigger:
    """A trigger on the events named in ``on``: ``insert update delete``."""
    return Trigger(
        name=name,
        enabled=enabled,
        row_level=row_level,
        before=before,
        on_insert="insert" in on,
        on_update="update" in on,
        on_delete="delete" in on,
        on_truncate="truncate" in on,
    )


def table(name: str = "orders", *columns: Column, indexes: Iterable[Index] | None = None, **changes: Any) -> Table:
    """An ordinary, analysed table; by default ``id bigint primary key, amount numeric``."""
    plain = Table(
        oid=next(_oids),
        name=TableName("public", name),
        kind="r",
        persistence="p",
        relfilenode=1,
        rows=1000.0,
        heap_bytes=1 << 20,
        toast_bytes=0,
        index_bytes=1 << 18,
        fillfactor=100,
        columns=columns or (required("id"), column("amount", "numeric")),
        indexes=(primary("id"),) if indexes is None else tuple(indexes),
        privileges=frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"}),
    )
    return replace(plain, **changes)


@dataclass(frozen=True, slots=True)
class AnyServer:
    """A primary of PostgreSQL 16 with an ordinary role."""

    version_num: int = 160004
    in_recovery: bool = False
    is_superuser: bool = False
    user: str = "worker"


def spec(**changes: Any) -> JobSpec:
    """A job on ``public.orders``."""
    return JobSpec(**{"source": Endpoint(table=TableRef("public", "orders")), **changes})


def expression(text: str, *, place: str, **changes: Any) -> ExpressionFacts:
    """What the server says of an expression at ``set.cents``, ``where`` …; it reads the names that are given."""
    clause, _, name = place.partition(".")
    return ExpressionFacts(clause=clause, column=name or None, text=text, **changes)


def fill(**changes: Any) -> PreflightFacts:
    """A job in place without findings: ``orders.cents`` from ``amount``, new rows filled by a trigger."""
    given: dict[str, Any] = {
        "spec": spec(set={"cents": "amount * 100"}),
        "mode": Mode.UPDATE,
        "source": table(
            "orders",
            required("id"),
            required("amount", "numeric"),
            column("cents", "numeric"),
            triggers=(trigger("fill_cents", on="insert"),),
        ),
        "source_server": AnyServer(),
        "expressions": (
            expression("amount * 100", place="set.cents", identifiers=frozenset({"amount"}), type_name="numeric"),
        ),
    }
    return PreflightFacts(**(given | changes))


NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
"""A Monday."""


def paced(facts: PreflightFacts, *, rows: float | None = 1_000_000, **changes: Any) -> PreflightFacts:
    """``facts`` on a server of which all may be seen and vacuumed, with a standby, a slot and an archive, at noon."""
    server = {
        "can_read_stats": True,
        "can_read_archive": True,
        "standbys": ("replica",),
        "slots": 1,
        "archive_mode": "on",
    }
    pacing = PacingFacts(servers={Side.SOURCE: ServerPacing(**(server | changes))}, now=NOON, rows=rows)
    return replace(facts, pacing=pacing)


def seen(facts: PreflightFacts, *, rows: float | None = 1_000_000, **changes: Any) -> PreflightFacts:
    """``facts`` on servers with room for everything: 100 sessions free, no slots, nobody in a long transaction.

    ``changes`` are those of the server that is written; ``source`` those of the other one, where there is one.
    """
    roomy: dict[str, Any] = {"sessions_free": 100, "sessions_limit": "max_connections (110)"}
    there = changes.pop("source", {})
    states = {Side.SOURCE: ServerState(**(roomy | (there if facts.mode is Mode.COPY else changes)))}
    if facts.mode is Mode.COPY:
        states[Side.TARGET] = ServerState(**(roomy | changes))
    return replace(facts, states=states, rows=rows)


def move(mode: Mode = Mode.INSERT, **changes: Any) -> PreflightFacts:
    """A job from ``orders`` to ``orders_v2`` without findings: same columns, dual-write triggers on the source."""
    server = AnyServer()
    given: dict[str, Any] = {
        "spec": copy_spec(),
        "mode": mode,
        "source": table(triggers=(trigger("dual_write", on="insert update delete", before=False),)),
        "source_server": server,
        "target": table("orders_v2"),
        "target_server": server if mode is Mode.INSERT else AnyServer(),
        "target_has_rows": False,
    }
    return PreflightFacts(**(given | changes))


def copy_spec(**changes: Any) -> JobSpec:
    """A job from ``public.orders`` to ``public.orders_v2``."""
    return spec(**{"target": Endpoint(table=TableRef("public", "orders_v2")), **changes})
