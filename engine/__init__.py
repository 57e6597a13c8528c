"""A backfill engine for live PostgreSQL databases: fills columns in place, fills tables, copies to another database.

The public surface, a handful of names::

    import asyncio, os, engine

    spec = engine.load_spec("job.yaml", os.environ)
    result = asyncio.run(engine.run_job(spec))
    assert result.state is engine.JobState.DONE

Everything else is a room's own business (``docs/architecture.md``).  Names are loaded when they are first used, so that
importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from engine._version import __version__

if TYPE_CHECKING:
    from engine.errors import BackfillError
    from engine.events import Event
    from engine.fleet.local import run_job
    from engine.flow.result import RunResult
    from engine.model import JobState
    from engine.spec import JobSpec, load_spec

__all__ = [
    "BackfillError",
    "Event",
    "JobSpec",
    "JobState",
    "RunResult",
    "__version__",
    "load_spec",
    "run_job",
]

_HOMES = {
    "BackfillError": "engine.errors",
    "Event": "engine.events",
    "JobSpec": "engine.spec",
    "JobState": "engine.model",
    "RunResult": "engine.flow.result",
    "load_spec": "engine.spec",
    "run_job": "engine.fleet.local",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
