"""Jobs of tests under the rights that ``backfill grants`` gives, and under no others.

In a module that uses the fixture ``under_its_rights``, ``tests.support.jobs.prepare`` (and whoever calls ``limited``
himself) exchanges the superuser of a spec for a login of the test's own.  That login inherits nothing, becomes another
role where rows are moved, and both may do what the generated script says.  What PostgreSQL allows everybody at first is
taken away, so that a right that is missing in the script is missing in the test.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import pytest

from engine.embedded.server import SUPERUSER
from engine.fleet.grants import Grantee, Part, collect, script_of
from engine.flow.endpoints import endpoints_of
from engine.spec import Dsn, Endpoint, JobSpec
from engine.sql import ident

_serial = itertools.count(1)

NOBODY_ELSE = "REVOKE ALL ON DATABASE {database} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC;"
"""What everybody may do in a new database."""

NOR_IN_THE_LEDGER = "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backfill FROM PUBLIC;"


@dataclass(slots=True)
class Rights:
    """The two roles of one test, on whatever servers its databases are."""

    to: Grantee
    _granted: set[tuple[str, ...]] = field(default_factory=set)
    _servers: set[str] = field(default_factory=set)  # how to reach each, without a gate in between
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # two GRANTs on one table at a time fail

    async def limit(self, spec: JobSpec) -> JobSpec:
        """The same job as the test's own login, which may do from now on what the script says.

        A job of somebody who is no superuser stays his.
        """
        if spec.source.dsn is None or urlsplit(spec.source.dsn.secret()).username != SUPERUSER:
            return spec
        source, target = endpoints_of(spec)
        there = spec.source.dsn.secret()
        here = there if spec.target is None or spec.target.dsn is None else spec.target.dsn.secret()
        async with self._turn:
            parts = await collect(spec, source, target)
            for part, dsn in zip(parts, (here,) if len(parts) == 1 else (there, here), strict=True):
                await self._grant(part, dsn)
        changed: dict[str, object] = {"source": self._ours(spec.source), "role": self.to.rows}
        if spec.target is not None and spec.target.dsn is not None:
            changed["target"] = self._ours(spec.target)
        return spec.model_copy(update=changed)

    def _ours(self, endpoint: Endpoint) -> Endpoint:
        assert endpoint.dsn is not None
        return endpoint.model_copy(update={"dsn": Dsn(as_user(endpoint.dsn.secret(), self.to.login))})

    async def _grant(self, part: Part, dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        try:
            # A table that was dropped and made anew has the rights of nobody.
            oids = await connection.fetchval(
                "SELECT array_agg(c.oid::text) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE (n.nspname, c.relname) IN (SELECT * FROM unnest($1::text[], $2::text[]))",
                [table.schema for table, _ in part.tables],
                [table.name for table, _ in part.tables],
            )
            script = "\n".join(script_of(part, self.to))
            key = (part.label, script, *sorted(oids))
            if key in self._granted:
                return
            await self._make_roles(connection, dsn)
            await connection.execute(NOBODY_ELSE.format(database=ident(part.database)))
            await connection.execute(script)
            if part.ledger is not None:
                # First taken from everybody, then given again: what is left is what was given.
                await connection.execute(f"{NOR_IN_THE_LEDGER} {script.replace(part.ledger.strip(), '')}")
            self._granted.add(key)
        finally:
            await connection.close()

    async def _make_roles(self, connection: asyncpg.Connection, dsn: str) -> None:
        port = await connection.fetchval("SELECT inet_server_port()")
        split = urlsplit(dsn)
        address = f"{quote(SUPERUSER)}@127.0.0.1:{port}" if port else split.netloc
        direct = urlunsplit(split._replace(netloc=address, path="/postgres"))
        if direct not in self._servers:
            await connection.execute(
                f"CREATE ROLE {ident(self.to.rows)} NOLOGIN NOSUPERUSER;"
                f"CREATE ROLE {ident(self.to.login)} LOGIN NOSUPERUSER NOINHERIT"
            )
            self._servers.add(direct)

    async def discard(self) -> None:
        """Drop the roles.  What they were granted went with the databases."""
        for dsn in self._servers:
            connection = await asyncpg.connect(dsn)
            try:
                await connection.execute(f"DROP ROLE {ident(self.to.login)}, {ident(self.to.rows)}")
            finally:
                await connection.close()


def as_user(dsn: str, user: str) -> str:
    """The same URI for another user."""
    split = urlsplit(dsn)
    return urlunsplit(split._replace(netloc=f"{quote(user)}@{split.netloc.rpartition('@')[2]}"))


_in_force: list[Rights] = []


async def limited(spec: JobSpec) -> JobSpec:
    """The spec under the rights of its script, where the test's module asked for that; else as it is."""
    return await _in_force[-1].limit(spec) if _in_force else spec


@pytest.fixture
async def under_its_rights() -> AsyncIterator[Rights]:
    """Jobs of this test run as roles that got the script of ``backfill grants`` and nothing else."""
    number = f"{os.getpid()}_{next(_serial)}"
    # Names that have to be quoted.
    rights = Rights(Grantee(rows=f"Moves Rows {number}", login=f"Logs In {number}"))
    _in_force.append(rights)
    try:
        yield rights
    finally:
        _in_force.remove(rights)
        await rights.discard()
