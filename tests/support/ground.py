"""Where the situations of ``tests.support.findings`` are made: two databases, a schema for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.flow import endpoints_of, inspect
from engine.flow.prepare import Inspection
from engine.model import Finding
from engine.plan.preflight import CATALOGUE, Code
from engine.spec import JobSpec
from tests.support.databases import FreshDatabase, Servers, create_database, drop_database
from tests.support.findings import BASE, BIG, Job, Situation
from tests.support.jobs import in_place, into

PLAIN = f"findings_{os.getpid()}"
"""A role that may connect and nothing else."""


@dataclass(slots=True)
class Ground:
    """Two databases of one server, in which each situation has a schema of its own."""

    here: FreshDatabase
    there: FreshDatabase
    schemas: list[str] = field(default_factory=list)

    def begin(self, sql: str = "", *, there: str | None = None) -> str:
        """A new schema with the two tables, made so by ``sql``; its name.  ``there``: in the other database too."""
        schema = f"s{len(self.schemas) + 1}"
        self.schemas.append(schema)
        self.here.sql(self.said(f"{BASE} {sql}", schema))
        if there is not None:
            self.there.sql(self.said(f"{BASE} {there}", schema))
        return schema

    def said(self, text: str, schema: str) -> str:
        """``text`` with the names of this place."""
        for name, value in ((":schema", schema), (":plain", PLAIN), (":database", self.here.name)):
            text = text.replace(name, value)
        return text

    def sql(self, text: str, schema: str) -> None:
        """Run SQL of a situation."""
        if text:
            self.here.sql(f"SET search_path = {schema}; {self.said(text, schema)}")

    def spec(self, job: Job, schema: str) -> JobSpec:
        """The job's spec."""
        schema = self.said(job.schema, schema)
        server = self.here.server
        source: Any = self.here if job.user is None else server.dsn(self.here.name, user=self.said(job.user, schema))
        table = f"{schema}.{job.source}"
        settings = {"name": schema, **job.settings}
        if job.target is None:
            return in_place(source, table, dict(job.sets), **settings)
        target = self.there if job.is_copy else source
        return into(source, table, target, f"{schema}.{job.target}", **settings)


async def look(spec: JobSpec) -> Inspection:
    return await inspect(spec, endpoints_of(spec), tries=True)


def of_code(seen: Inspection, code: Code) -> list[Finding]:
    return [f for f in seen.findings if f.code == code]


def expect(seen: Inspection, code: Code, *words: str) -> Finding:
    """The finding, at its severity, with these words somewhere in it."""
    found = of_code(seen, code)
    assert found, [f.code for f in seen.findings]
    assert {f.severity for f in found} == {CATALOGUE[code].severity}
    text = "\n".join(f"{f.message}\n{f.remedy}" for f in found)
    for word in words:
        assert word in text
    return found[0]


@pytest.fixture(scope="module")
def grounds(servers: Servers) -> Iterator[Callable[[int], Ground]]:
    """``grounds(16)``: the databases on that server, with a role that may do nothing."""
    made: dict[int, Ground] = {}

    def ground(major: int) -> Ground:
        if major not in made:
            server = servers.get(major)
            made[major] = Ground(create_database(server), create_database(server))
            made[major].here.sql(f"CREATE ROLE {PLAIN} LOGIN; {BIG}")
        return made[major]

    yield ground
    for each in made.values():
        each.here.sql(f"DROP OWNED BY {PLAIN}")
        drop_database(each.here)
        drop_database(each.there)
        each.here.server.sql(f"DROP ROLE {PLAIN}")


async def noticed_and_gone(ground: Ground, situation: Situation) -> None:
    """The finding is there in the situation, with its words, and no longer when that is mended."""
    schema = ground.begin(situation.sql, there=situation.there if situation.job.is_copy else None)
    try:
        words = [ground.said(word, schema) for word in situation.words]
        expect(await look(ground.spec(situation.job, schema)), situation.code, *words)
        ground.sql(situation.mend, schema)
        mended = await look(ground.spec(situation.mended or situation.job, schema))
        assert of_code(mended, situation.code) == []
    finally:
        ground.sql(situation.after, schema)
