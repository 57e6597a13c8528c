"""What a spec says about pace and growth: limits, hours, a deadline, signals."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, Strict, ValidationInfo, model_validator

from engine.spec import units
from engine.spec.base import SpecModel
from engine.spec.fields import Bytes, Moment, Reading, Share, WindowField, distinct, within
from engine.spec.misfit import Misfit
from engine.spec.signals import Listed, OperatorSignal, SignalSpec, effective, repeated
from engine.spec.windows import Windows

MAX_RATE_PER_S: Final = 1e12
WAL_RATE_RANGE: Final = (2**16, 2**40)
GROWTH_RANGE: Final = (0.01, 10.0)


def _read_signals(value: object, info: ValidationInfo) -> tuple[Listed, ...]:
    if isinstance(value, tuple) and all(isinstance(signal, Listed) for signal in value):
        return value
    from engine.spec.signal_forms import read_signals  # fifteen models, for which most specs have no use

    return read_signals(value, info.context)


class Pace(SpecModel):
    """How fast the job may go."""

    max_rows_per_s: Annotated[float, Strict(), Field(gt=0, le=MAX_RATE_PER_S)] | None = Field(
        default=None, examples=[20000]
    )
    """Rows looked at per second, over all workers. Left out: no fixed limit."""
    max_wal_bytes_per_s: Annotated[Bytes, within(*WAL_RATE_RANGE)] | None = Field(default=None, examples=["50MiB"])
    """WAL that the job may write per second, over all workers, 64KiB to 1024GiB. Left out: no fixed limit."""
    windows: Annotated[tuple[WindowField, ...], AfterValidator(distinct)] = Field(
        default=(),
        examples=[["22:00-06:00 Asia/Kolkata"], ["Mon-Fri 22:00-06:00 Europe/Berlin", "Sat,Sun 00:00-24:00 UTC"]],
    )
    """When the job may work: days (left out: all), hours on the wall clock, time zone. A window over midnight belongs
    to the day it begins on. Left out: always."""
    finish_by: Moment | None = Field(
        default=None, examples=["2026-12-01T06:00:00+05:30", "2026-12-01 06:00 Asia/Kolkata"]
    )
    """When the job should be done. It goes no faster for it: it says early when the allowed pace is too slow."""
    listed: Annotated[
        tuple[Listed, ...],
        PlainValidator(_read_signals),
        PlainSerializer(lambda signals: [signal.as_file() for signal in signals]),
    ] = Field(
        default=(),
        validation_alias="signals",
        examples=[[{"commit_latency": {"target": "20ms"}}, {"lock_waits": "off"}], ["api_p99"]],
    )
    """What holds the job back when others need the database. read_latency, commit_latency and lock_waits are on
    without being listed; `off` turns one of them off, or, in place of the list, all. A plain name is a signal that the
    operator of a daemon has configured."""

    @model_validator(mode="after")
    def _each_signal_once(self, info: ValidationInfo) -> Self:
        name = repeated(self.listed)
        if name is not None and not isinstance(info.context, Reading):
            raise Misfit(f"signal {name} is given twice", "remove one")
        return self

    @property
    def signals(self) -> tuple[SignalSpec, ...]:
        """What was listed, as far as it is known what it is."""
        return tuple(signal for signal in self.listed if isinstance(signal, SignalSpec))

    @property
    def unknown_signals(self) -> tuple[str, ...]:
        """Names of an operator's signals of which nobody here has said what they are: whoever moves rows must not go
        on without them.
        """
        return tuple(signal.name for signal in self.listed if isinstance(signal, OperatorSignal))

    def effective_signals(self) -> tuple[SignalSpec, ...]:
        """Every signal that is on, the defaults included."""
        return effective(self.signals)

    @property
    def open_windows(self) -> Windows:
        """All windows together."""
        return Windows(self.windows)

    def as_file(self) -> dict[str, Any]:
        """What was set, as the file writes it."""
        given = {
            "max_rows_per_s": self.max_rows_per_s,
            "max_wal_bytes_per_s": _size_text(self.max_wal_bytes_per_s),
            "windows": [str(window) for window in self.windows] or None,
            "finish_by": self.finish_by.isoformat() if self.finish_by else None,
            "signals": [signal.as_file() for signal in self.listed] or None,
        }
        return {key: value for key, value in given.items() if value is not None}


class Bloat(SpecModel):
    """In place only: how much larger the table may become."""

    max_growth: Annotated[Share, within(*GROWTH_RANGE)] | None = Field(default=None, examples=["20%"])
    """How much the heap may grow beyond its size at the start, 1% to 1000%; the job vacuums in between and waits to
    keep it. Left out: no limit."""


def _size_text(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else units.format_size(size_bytes)
