"""The databases of a job, as its spec names them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from engine.db import Database
from engine.model import Side
from engine.spec import Dsn, JobSpec
from engine.spec.dsn import FALLBACK_VARIABLE


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The job's databases.  In place, and within one database, both are the same object."""

    source: Database
    target: Database

    @property
    def is_one(self) -> bool:
        """True when source and target are one database."""
        return self.source is self.target


def endpoints_of(spec: JobSpec, environment: Mapping[str, str] = os.environ) -> tuple[Database, Database]:
    """The spec's two databases; without a DSN: BACKFILL_DSN, else libpq's own variables.  A target without a DSN is in
    the source's database.
    """
    default = environment.get(FALLBACK_VARIABLE, "")

    def database(dsn: Dsn | None, side: Side) -> Database:
        return Database(
            dsn if dsn is not None else default,
            side=side,
            job=spec.name,
            role=spec.role,
            lock_timeout_s=spec.lock_timeout_s,
        )

    if spec.target is None or spec.target.dsn is None:
        both = database(spec.source.dsn, Side.TARGET)
        return both, both
    return database(spec.source.dsn, Side.SOURCE), database(spec.target.dsn, Side.TARGET)
