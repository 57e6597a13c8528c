"""The spec of a job that the ledger knows, for commands that go to its tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.cli.loop import run_async
from engine.cli.places import Place, Where, dsn_of, open_job, place_of
from engine.fleet import Lent
from engine.spec import Dsn, JobSpec


def spec_of(
    job: str,
    where: Where,
    source_dsn: str | None,
    *,
    urls: Sequence[str] = (),
    transforms: Sequence[str] = (),
    listens: bool = True,
) -> JobSpec:
    """The spec of a job with this terminal's connections: its file, or what the ledger keeps of it.

    ``urls``: addresses that signals of the ledger's job may ask; ``transforms``: what it may run here.  ``listens``
    False: the command asks no signal, so the spec of a job that is given by its name has none.  Raises ``UsageError``
    where a job between two databases is named and its source's connection is not known.
    """
    place = place_of(job, where)
    if place.spec is not None:
        return place.spec
    lent = Lent(
        target=Dsn.from_environment(os.environ) if where.dsn is None else dsn_of(where.dsn, "--dsn"),
        source=None if source_dsn is None else dsn_of(source_dsn, "--source-dsn"),
        urls=frozenset(urls),
        transforms=frozenset(transforms),
        search=Path.cwd() if transforms else None,
    )
    return run_async(_known(place, lent, listens=listens))


async def _known(place: Place, lent: Lent, *, listens: bool) -> JobSpec:
    async with open_job(place) as ledger:
        job = await ledger.job(place.job)
    pace = job.document.get("pace")
    if not listens and isinstance(pace, dict):
        job = replace(job, spec=job.document | {"pace": pace | {"signals": []}})
    return lent.spec_of(job)
