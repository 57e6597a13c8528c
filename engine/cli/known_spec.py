"""The spec of a job that the ledger knows, for commands that go to its tables."""

from __future__ import annotations

import os

from engine.cli.loop import run_async
from engine.cli.places import Place, dsn_of, open_job, place_of
from engine.fleet import Lent
from engine.spec import Dsn, JobSpec


def spec_of(job: str, dsn: str | None, source_dsn: str | None) -> JobSpec:
    """The spec of a job with this terminal's connections: its file, or what the ledger keeps of it.

    Raises ``UsageError`` where a job between two databases is named and its source's connection is not known.
    """
    place = place_of(job, dsn)
    if place.spec is not None:
        return place.spec
    lent = Lent(
        target=Dsn.from_environment(os.environ) if dsn is None else dsn_of(dsn, "--dsn"),
        source=None if source_dsn is None else dsn_of(source_dsn, "--source-dsn"),
    )
    return run_async(_known(place, lent))


async def _known(place: Place, lent: Lent) -> JobSpec:
    async with open_job(place) as ledger:
        return lent.spec_of(await ledger.job(place.job))
