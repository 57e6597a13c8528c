"""The spec of one job as values: what the file holds, with defaults filled in and units converted.

Two ways in.  ``engine.spec.load`` validates plain data of a file, the flags or the ledger with a ``Reading`` as
context: then durations and sizes must carry their unit.  Python code builds the models directly, with numbers in
seconds and bytes as the field names say.  Field names end in their unit; the keys of the file (the aliases) do not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, model_validator

from engine.model import Deletes, Order, Verify
from engine.spec import units
from engine.spec.base import SpecModel
from engine.spec.dsn import Dsn
from engine.spec.fields import (
    AcceptedCode,
    Bytes,
    ColumnExpressions,
    ConnectionField,
    DsnField,
    Name,
    Names,
    OnConflict,
    OnConflictField,
    Reading,
    Seconds,
    Sql,
    TableField,
    TransformField,
    WholeNumber,
    choice,
    distinct,
    freeze,
    within,
)
from engine.spec.misfit import Misfit
from engine.spec.pacing import WAL_RATE_RANGE, Bloat, Pace
from engine.spec.rules import contradictions
from engine.spec.signals import SignalSpec
from engine.spec.transforms import TransformRights, by_hand

__all__ = [
    "MAX_WORKERS",
    "NAME_PATTERN",
    "WAL_RATE_RANGE",
    "Bloat",
    "ChunkLimits",
    "Endpoint",
    "Errors",
    "JobSpec",
    "Pace",
]

MAX_NAME_LENGTH: Final = 63
NAME_PATTERN: Final = rf"^[a-z0-9][a-z0-9_.-]{{0,{MAX_NAME_LENGTH - 1}}}$"
MAX_WORKERS: Final = 64
DEFAULT_MIN_ROWS: Final = 50
DEFAULT_MAX_ROWS: Final = 50_000
CHUNK_ROWS_RANGE: Final = (1, 10_000_000)
CHUNK_BYTES_RANGE: Final = (2**16, 2**30)
CHUNK_TARGET_RANGE_S: Final = (0.001, 60.0)
LOCK_TIMEOUT_RANGE_S: Final = (0.001, 3600.0)  # zero would mean to wait for ever
QUARANTINE_RANGE: Final = (0, 1_000_000)
_HASH_DIGITS: Final = 8


class Endpoint(SpecModel):
    """One table and the database that holds it."""

    connection: ConnectionField | None = Field(default=None, examples=["main"])
    """For a daemon, in place of `dsn`: what its operator calls the database. Left out for the target: the source's."""
    dsn: DsnField | None = Field(default=None, examples=["${SOURCE_DSN}"])
    """Connection string: a postgresql:// URL or key=value pairs. `${VAR}` is taken from the environment; a password
    written here is refused. Left out: for the source, BACKFILL_DSN, else libpq's PG* variables; for the target, the
    source's."""
    table: TableField = Field(examples=["public.orders", '"Sales"."Order Lines"'])
    """The table, as SQL spells it: `schema.table`, folded to lower case unless quoted."""


class ChunkLimits(SpecModel):
    """How much one transaction may move."""

    target_s: Annotated[Seconds, within(*CHUNK_TARGET_RANGE_S)] = Field(
        default=0.25, validation_alias="target", examples=["250ms"]
    )
    """How long one chunk should take on the server, 1ms to 60s; rows per chunk are sized to meet it."""
    min_rows: Annotated[WholeNumber, within(*CHUNK_ROWS_RANGE)] = DEFAULT_MIN_ROWS
    """Never fewer rows than this in a chunk (unless the span ends)."""
    max_rows: Annotated[WholeNumber, within(*CHUNK_ROWS_RANGE)] = DEFAULT_MAX_ROWS
    """Never more rows than this in a chunk."""
    max_bytes: Annotated[Bytes, within(*CHUNK_BYTES_RANGE)] = Field(default=16 * 2**20, examples=["16MiB"])
    """Aim for at most this much in a chunk, 64KiB to 1GiB; a single larger row is a chunk of its own."""

    @model_validator(mode="before")
    @classmethod
    def _one_limit_moves_the_other_default(cls, data: Any) -> Any:
        """``max_rows: 10`` alone must not contradict a default that nobody wrote."""
        if isinstance(data, dict):
            low, high = data.get("min_rows"), data.get("max_rows")
            if low is None and type(high) is int:
                data = data | {"min_rows": max(CHUNK_ROWS_RANGE[0], min(DEFAULT_MIN_ROWS, high))}
            elif high is None and type(low) is int:
                data = data | {"max_rows": min(CHUNK_ROWS_RANGE[1], max(DEFAULT_MAX_ROWS, low))}
        return data

    @model_validator(mode="after")
    def _min_below_max(self, info: ValidationInfo) -> Self:
        if self.min_rows > self.max_rows and not isinstance(info.context, Reading):
            raise Misfit("min_rows is larger than max_rows", "lower min_rows or raise max_rows")
        return self


class Errors(SpecModel):
    """What bad rows do."""

    max_quarantined: Annotated[WholeNumber, within(*QUARANTINE_RANGE)] = 0
    """Rows that may be set aside, 0 to 1,000,000; 0 stops the job at the first bad row."""


class JobSpec(SpecModel):
    """One backfill: where rows come from, what becomes of them, and how hard to work.

    Without ``target`` columns of the source table are filled in place; with it rows go to another table, in the
    same or another database.
    """

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = Field(default="", examples=["orders-amount-cents"])
    """The job's name, unique in the ledger: lower-case letters, digits, `_`, `.`, `-`. Left out: made from the tables
    and a hash of what the job means."""
    source: Endpoint
    """The table that rows are read from, and filled in place when there is no target."""
    target: Endpoint | None = None
    """The table that rows go to. Left out: in place, on the source."""
    set: ColumnExpressions = Field(default_factory=lambda: freeze({}), examples=[{"cents": "(amount * 100)::bigint"}])
    """In place only: column name to SQL expression over the source row. Column names as the database spells them."""
    columns: ColumnExpressions = Field(default_factory=lambda: freeze({}), examples=[{"id": "id"}])
    """With a target only: target column name to SQL expression over the source row. Left out: columns of the same
    name."""
    transform: TransformField | None = Field(default=None, examples=["shop.transforms:cents"])
    """A Python function that computes columns, as `module.path:function`; it says itself what it reads and writes.
    Imported only by processes that may."""
    where: Sql | None = Field(default=None, examples=["deleted_at is null"])
    """Only source rows for which this SQL condition is true are moved."""
    done: Sql | None = Field(default=None, examples=["amount_cents is not null"])
    """In place only: true for a row that is finished. Left out: all columns that the job writes are not null."""
    key: Names = Field(default=(), examples=[["tenant_id", "id"]])
    """The unique not-null columns to page through, in index order, as the database spells them. Left out: the primary
    key, else a unique not-null index."""
    order: Annotated[Order, choice(Order)] = Order.KEY
    """The order of paging through the source."""
    on_conflict: OnConflictField = Field(default=OnConflict(), examples=["keep", "newest(updated_at)"])
    """With a target only: what happens to a row whose key the target has already. keep: the target's row wins;
    replace: the source's; newest(column): the one with the larger value; fail: the job stops."""
    deletes: Annotated[Deletes, choice(Deletes)] = Deletes.GUARDED
    """With a target only. guarded: rows deleted at the source meanwhile do not survive in the target; none: you
    declare that nobody deletes meanwhile."""
    workers: Annotated[WholeNumber, within(1, MAX_WORKERS)] = 2
    """Chunks in flight at once, in this process."""
    chunk: ChunkLimits = ChunkLimits()
    """How much one transaction may move."""
    pace: Pace = Pace()
    """How fast the job may go."""
    bloat: Bloat = Bloat()
    """In place only: how much larger the table may become."""
    errors: Errors = Errors()
    """What bad rows do."""
    accept: Annotated[tuple[AcceptedCode, ...], AfterValidator(distinct)] = Field(
        default=(), examples=[["TRIGGERS_ON_TARGET"]]
    )
    """Codes of preflight findings that you have looked at and accept; recorded with who and when."""
    role: Name | None = Field(default=None, examples=["backfill_worker"])
    """Role for data statements (SET ROLE), as the database spells it."""
    lock_timeout_s: Annotated[Seconds, within(*LOCK_TIMEOUT_RANGE_S)] = Field(
        default=2.0, validation_alias="lock_timeout", examples=["2s"]
    )
    """Give way after waiting so long for a lock, 1ms to 1h; the chunk is tried again."""
    verify: Annotated[Verify, choice(Verify)] = Verify.NONE
    """Whether the job compares source and target at its end, and is done only then."""

    _operator_signals: Mapping[str, SignalSpec] | None = PrivateAttr(default=None)
    _transforms: TransformRights = PrivateAttr(default=TransformRights())

    @model_validator(mode="after")
    def _complete(self, info: ValidationInfo) -> Self:
        """Refuse contradictions, and give a job without a name its own."""
        if not isinstance(info.context, Reading):  # plain data has been checked before, with every problem at once
            for rule in contradictions({name for name in self.model_fields_set if getattr(self, name)}):
                raise Misfit(f"{rule.path}: {rule.message}", rule.hint)
        if not self.name:
            object.__setattr__(self, "name", self._default_name())
        return self

    def model_post_init(self, context: Any) -> None:
        """Remember what this host's operator has configured: the settings of a job may name it later."""
        if isinstance(context, Reading):
            self._operator_signals = context.signals
            self._transforms = context.transforms or TransformRights()
        else:  # whoever builds a spec in Python could as well import the function
            self._transforms = by_hand(self.transform, None)

    @property
    def in_place(self) -> bool:
        """True when the job fills columns of its source table."""
        return self.target is None

    @property
    def needs_daemon(self) -> bool:
        """True when it names what only the operator of a daemon has configured: a connection, or a signal."""
        operators = any(signal.of_operator for signal in self.pace.signals)
        return self.source.connection is not None or operators or bool(self.pace.unknown_signals)

    @property
    def operator_signals(self) -> Mapping[str, SignalSpec] | None:
        """Every signal that this host's operator has configured, by name, listed here or not; None by hand."""
        return self._operator_signals

    @property
    def transforms(self) -> TransformRights:
        """What this host may load of the transform that the job names."""
        return self._transforms

    def with_transforms(self, rights: TransformRights) -> JobSpec:
        """The same job, with what this host may load of its transform."""
        other = self.model_copy()
        other._transforms = rights  # noqa: SLF001 - its own class
        return other

    def meaning(self) -> dict[str, Any]:
        """What makes it this job and no other, as far as the spec knows it: JSON-able, without connection strings.

        The keys are those of the file.  Keys that the mode does not use are None, so that a default nobody could
        have changed never counts as a difference.
        """
        copies = self.target is not None
        return {
            "source": str(self.source.table),
            "target": str(self.target.table) if self.target else None,
            "set": dict(self.set),
            "columns": dict(self.columns),
            "transform": self.transform,
            "where": self.where,
            "done": self.done,
            "key": list(self.key),
            "order": str(self.order),
            "on_conflict": str(self.on_conflict) if copies else None,
            "deletes": str(self.deletes) if copies else None,
        }

    def settings(self) -> dict[str, Any]:
        """The rest: what the next ``run`` may change in the same job.  JSON-able, written as in the file."""
        return {
            "workers": self.workers,
            "chunk": {
                "target": units.format_duration(self.chunk.target_s),
                "min_rows": self.chunk.min_rows,
                "max_rows": self.chunk.max_rows,
                "max_bytes": units.format_size(self.chunk.max_bytes),
            },
            "pace": self.pace.as_file(),
            "bloat": {"max_growth": units.format_percent(growth)} if (growth := self.bloat.max_growth) else None,
            "errors": {"max_quarantined": self.errors.max_quarantined},
            "accept": list(self.accept),
            "role": self.role,
            "lock_timeout": units.format_duration(self.lock_timeout_s),
            "verify": str(self.verify),
        }

    def for_ledger(self) -> dict[str, Any]:
        """The whole spec in the form of the file, without secrets: ``dsn`` is ``{"reference": "${VAR}"}`` or absent,
        connections and signals of an operator are their names.
        """
        unused = {key for key in ("set", "columns", "key") if not self.meaning()[key]}
        meaning = {key: value for key, value in self.meaning().items() if key not in unused}
        return _without_none(
            {"name": self.name}
            | meaning
            | {"source": _endpoint(self.source), "target": _endpoint(self.target) if self.target else None}
            | self.settings()
        )

    @classmethod
    def from_ledger(
        cls,
        data: Mapping[str, Any],
        *,
        source_dsn: Dsn | None = None,
        target_dsn: Dsn | None = None,
        signals: Mapping[str, SignalSpec] | None = None,
        transforms: TransformRights | None = None,
    ) -> JobSpec:
        """The spec that ``for_ledger`` wrote, with the connection strings, the operator's signals and the transforms of
        this host: what the ledger names is loaded only where ``transforms`` allows it.

        References in ``data`` are not resolved: whether to trust them is the caller's decision.  A name that is not
        among ``signals`` stays one (``pace.unknown_signals``).  Raises ``SpecError`` with every problem when ``data``
        is no spec.
        """
        from engine.spec.load import spec_from_ledger  # validation needs the models

        return spec_from_ledger(
            data, source_dsn=source_dsn, target_dsn=target_dsn, signals=signals, transforms=transforms
        )

    def _default_name(self) -> str:
        tables = self.source.table.name + (f"-to-{self.target.table.name}" if self.target else "")
        slug = re.sub(r"[^a-z0-9_.]+", "-", tables.lower()).strip("-._") or "job"
        # None and empty values are left out: a key that a later version adds must not rename today's jobs.
        text = json.dumps({key: value for key, value in self.meaning().items() if value}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
        return f"{slug[: MAX_NAME_LENGTH - _HASH_DIGITS - 1]}-{digest}"


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    table = {"table": str(endpoint.table)}
    if endpoint.connection is not None:
        return {"connection": endpoint.connection} | table
    reference = endpoint.dsn.reference if endpoint.dsn else None
    return ({"dsn": {"reference": reference}} if reference else {}) | table


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}
