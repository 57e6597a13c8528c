"""How each kind of signal is written in a file: its keys, their units and ranges.

One small model per kind gives the JSON Schema, the place of every mistake, and a ``SignalSpec``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import (
    Field,
    TypeAdapter,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from engine.model import Side
from engine.spec.base import SpecModel
from engine.spec.fields import Reading
from engine.spec.misfit import Misfit
from engine.spec.signal_values import (
    Count,
    CountTarget,
    Every,
    Lag,
    LagField,
    Latency,
    LockWait,
    OnFailure,
    OnFailureField,
    PromQuery,
    Query,
    ShareOfOne,
    SideField,
    SignalName,
    Size,
    UnitField,
    Url,
)
from engine.spec.signals import (
    ALL_OFF,
    NAMED,
    Listed,
    OperatorSignal,
    SignalKind,
    SignalSpec,
    SignalUnit,
    check_signal_name,
)

OFF: Final = "off"


# -- kinds ------------------------------------------------------------------------------------------------------------


class SignalForm(SpecModel):
    """What all kinds have in common: becoming a ``SignalSpec``."""

    def signal(self, kind: SignalKind) -> SignalSpec:
        """The signal that was written.  Raises ``Misfit``."""
        given: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        lags = [value for value in given.values() if isinstance(value, Lag)]
        if len({lag.in_bytes for lag in lags}) > 1:
            raise Misfit("mixes a duration and a size", "write target and max in the same unit")
        given = {name: value.amount if isinstance(value, Lag) else value for name, value in given.items()}
        given["ignore_failure"] = given.pop("on_failure", OnFailure.HOLD) is OnFailure.IGNORE
        return SignalSpec(kind=kind, in_bytes=any(lag.in_bytes for lag in lags), **given)


class CommitLatency(SignalForm):
    """How long a one-row update and its commit take."""

    target: Latency | None = Field(default=None, examples=["20ms"])
    """What the 90th percentile over 3 s may come to, 0.1ms to 1m. Left out: learnt from the time before the first
    chunk."""


class ReadLatency(SignalForm):
    """How long a read of one random existing row takes."""

    target: Latency | None = Field(default=None, examples=["5ms"])
    """What the 90th percentile over 3 s may come to, 0.1ms to 1m. Left out: learnt from the time before the first
    chunk."""
    query: Query | None = Field(default=None, examples=["select * from orders where id = $1"])
    """One SELECT instead of the built-in one; $1, $2 … are the key columns of a random existing row."""


class ReplicationLag(SignalForm):
    """How far the slowest standby is behind in replaying, in time or in bytes of WAL."""

    target: LagField | None = Field(default=None, examples=["5s", "16MiB"])
    """Where it slows down. Left out, and max too: 5s."""
    maximum: LagField | None = Field(default=None, validation_alias="max", examples=["30s", "100MiB"])
    """Where it stops, in the same unit. Left out, and target too: 30s."""


class SlotRetention(SignalForm):
    """How much WAL the replication slot that is furthest behind keeps on the disk."""

    maximum: Size = Field(validation_alias="max", examples=["10GiB"])
    """Where it stops."""


class ActiveSessions(SignalForm):
    """How many sessions of others are at work on the server."""

    target: CountTarget | None = Field(default=None, examples=[20])
    """Where it slows down."""
    maximum: Count | None = Field(default=None, validation_alias="max", examples=[40])
    """Where it stops."""


class LockWaits(SignalForm):
    """How long somebody else has been waiting for a lock of this job."""

    maximum: LockWait = Field(default=1.0, validation_alias="max", examples=["500ms"])
    """After so long the chunk in the way is cancelled and tried again later, 100ms to 1h."""


class WalRate(SignalForm):
    """How much WAL others write per second."""

    target: Size | None = Field(default=None, examples=["20MiB"])
    """Where it slows down, per second."""
    maximum: Size | None = Field(default=None, validation_alias="max", examples=["80MiB"])
    """Where it stops, per second."""


class WalArchive(SignalForm):
    """How many WAL segments wait to be archived."""

    maximum: Count = Field(default=40, validation_alias="max", examples=[40])
    """Where it stops."""


class VacuumDebt(SignalForm):
    """The share of dead rows in the table that the job writes."""

    target: ShareOfOne | None = Field(default=None, examples=["10%"])
    """Where it slows down."""
    maximum: ShareOfOne | None = Field(default=None, validation_alias="max", examples=["20%"])
    """Where it stops."""


class Autovacuum(SignalForm):
    """Waits while a vacuum that is not the job's own works on the table that the job writes."""


class XidAge(SignalForm):
    """The age of the oldest transaction id that is not frozen yet, over all databases of the server."""

    maximum: Count = Field(validation_alias="max", examples=[1_000_000_000])
    """Where it stops, in transactions."""


class Named(SignalForm):
    """A signal of the user's own."""

    name: SignalName = Field(examples=["queue"])
    """Its name in status and metrics: lower-case letters, digits, `_`."""
    every_s: Every | None = Field(default=None, validation_alias="every", examples=["5s"])
    """How often it is looked at, 200ms to 1h. Left out: every 2s, a Prometheus server every 5s."""
    on_failure: OnFailureField = OnFailure.HOLD
    """What happens without a usable answer. hold: nothing is moved; ignore: as if the signal were not there."""


class Measured(Named):
    """A signal of the user's own that gives a number."""

    target: CountTarget | None = Field(default=None, examples=[100])
    """Where it slows down, in the signal's own unit."""
    maximum: Count | None = Field(default=None, validation_alias="max", examples=[1000])
    """Where it stops, in the signal's own unit."""
    given_unit: UnitField = Field(default=SignalUnit.COUNT, validation_alias="unit")
    """What the number is, for people: s, bytes, bytes/s, ratio or count."""


class SqlSignal(Measured):
    """A number that a query gives."""

    query: Query = Field(examples=["select count(*) from jobs where state = 'waiting'"])
    """One SELECT that gives one row with one number."""
    side: SideField = Side.SOURCE
    """The database that is asked: source or target."""


class PrometheusSignal(Measured):
    """A number that a Prometheus server knows."""

    url: Url = Field(examples=["http://prometheus:9090"])
    """The server's address, http or https, without a user or a password."""
    query: PromQuery = Field(
        examples=["histogram_quantile(0.99, sum by (le) (rate(http_request_duration_seconds_bucket[1m])))"]
    )
    """A PromQL expression that gives one sample."""


class HttpSignal(Named):
    """A check over HTTP: the answer 200 means go, and anything else stop."""

    url: Url = Field(examples=["http://freno/check/app/mysql/shop"])
    """What is fetched (GET), http or https, without a user or a password."""


# -- entries ----------------------------------------------------------------------------------------------------------


def _read_signal(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> SignalSpec:
    """The value of one kind's key as a signal; ``off`` turns a built-in one off."""
    kind = SignalKind(info.field_name or "")
    if kind not in NAMED and isinstance(value, str):
        if value != OFF:
            raise Misfit("must be a mapping, or off", "write {} for its defaults, off to turn it off")
        return SignalSpec(kind=kind, off=True)
    form = handler(value)
    if not isinstance(form, SignalForm):
        raise Misfit("is empty", "write {} for its defaults")
    return form.signal(kind)


_Form = TypeVar("_Form", bound=SignalForm)
Entry = Annotated[_Form | None, WrapValidator(_read_signal)]
"""A form on its way in, a ``SignalSpec`` once it is read."""


class SignalEntry(SpecModel):
    """One signal: exactly one of these keys. A built-in one may be written as `off`."""

    read_latency: Entry[ReadLatency] = None
    commit_latency: Entry[CommitLatency] = None
    replication_lag: Entry[ReplicationLag] = None
    slot_retention: Entry[SlotRetention] = None
    active_sessions: Entry[ActiveSessions] = None
    lock_waits: Entry[LockWaits] = None
    wal_rate: Entry[WalRate] = None
    wal_archive: Entry[WalArchive] = None
    vacuum_debt: Entry[VacuumDebt] = None
    autovacuum: Entry[Autovacuum] = None
    xid_age: Entry[XidAge] = None
    sql: Entry[SqlSignal] = None
    prometheus: Entry[PrometheusSignal] = None
    http: Entry[HttpSignal] = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise Misfit("must name exactly one signal", "give each signal an entry (a dash) of its own")
        return self

    @property
    def signal(self) -> SignalSpec:
        """The one that was written."""
        read: SignalSpec = getattr(self, next(iter(self.model_fields_set)))
        return read


def _read_entry(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Listed | None:
    """A mapping as the signal that it describes, a plain name as what the operator calls so."""
    if not isinstance(value, str):
        entry = handler(value)
        return entry.signal if isinstance(entry, SignalEntry) else None
    if value in list(SignalKind):
        raise Misfit("must be a mapping", f"write - {value}: {{}} for its defaults")
    name = check_signal_name(value)
    known = info.context.signals if isinstance(info.context, Reading) else None
    return (known or {}).get(name, OperatorSignal(name))


_ENTRIES: Final[TypeAdapter[list[Listed | None]]] = TypeAdapter(
    list[Annotated[SignalEntry | None, WrapValidator(_read_entry)]]  # type: ignore[arg-type]  # what the wrap makes of it
)


def read_signals(value: object, context: object) -> tuple[Listed, ...]:
    """The signals that a file lists, or ``off``.  Raises ``Misfit`` and pydantic's ``ValidationError``.

    An entry that is None in plain data was reported before.
    """
    if value == OFF:
        return ALL_OFF
    if not isinstance(value, list) or (None in value and not isinstance(context, Reading)):
        raise Misfit("must be a list of signals, or off", "begin each with a dash: - commit_latency: {target: 20ms}")
    return tuple(entry for entry in _ENTRIES.validate_python(value, context=context) if entry is not None)
