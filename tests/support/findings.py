"""Situations that preflight should notice, made on a real server: one schema for each, and how to mend it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from engine.plan.preflight import Code

BASE = """
CREATE SCHEMA :schema;
SET search_path = :schema;
CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric NOT NULL, cents bigint, note text);
INSERT INTO orders SELECT g, g FROM generate_series(1, 100) g;
CREATE TABLE orders_v2 (id bigint PRIMARY KEY, amount numeric NOT NULL, cents bigint, note text);
CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
ANALYZE orders;
"""
"""What every situation begins with: a table to fill, and one to copy to."""

BIG = """
CREATE SCHEMA big;
SET search_path = big;
CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric, cents bigint, note text STORAGE PLAIN);
INSERT INTO orders SELECT g, g, NULL, repeat('x', 4200) FROM generate_series(1, 8500) g;
CREATE TABLE orders_v2 (id bigint PRIMARY KEY, amount numeric, cents bigint, note text);
ANALYZE orders;
"""
"""66 MiB of heap, which is worth a word; made once."""

MANY_ROWS = "UPDATE pg_class SET reltuples = {rows}, relpages = 1 WHERE oid = 'orders'::regclass;"
"""The planner believes in so many rows."""


def pretend(rows: float) -> str:
    """SQL that makes the statistics of ``orders`` say so."""
    return MANY_ROWS.format(rows=rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job on the tables of a situation.  ``settings`` are keys of the spec as ``JobSpec`` takes them."""

    schema: str = ":schema"
    source: str = "orders"
    target: str | None = None  # None: in place
    is_copy: bool = False  # the target is in another database
    sets: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"cents": "(amount * 100)::bigint"}))
    user: str | None = None  # who connects: ":plain" is a role without rights; None: the superuser
    settings: Mapping[str, Any] = field(default_factory=dict)


def fill(**settings: Any) -> Job:
    """``cents`` of ``orders`` in place."""
    return Job(settings=settings)


def move(**settings: Any) -> Job:
    """``orders`` into ``orders_v2`` of the same database."""
    return Job(target="orders_v2", settings=settings)


def copy(**settings: Any) -> Job:
    """``orders`` into ``orders_v2`` of another database."""
    return Job(target="orders_v2", is_copy=True, settings=settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What to do to a database, the job that meets it, what the finding must name, and how it goes away again.

    ``:schema``, ``:plain`` and ``:database`` in SQL and words stand for the situation's own.  With neither ``mend`` nor
    ``mended`` the other situations are what shows that the finding is not always there.
    """

    code: Code
    sql: str = ""
    there: str = ""  # in the target's database, for a copy
    job: Job = field(default_factory=fill)
    words: tuple[str, ...]
    mend: str = ""  # SQL after which the finding is gone
    mended: Job | None = None  # a job that has not the finding, in the same situation
    after: str = ""  # SQL without which the situation would outlive its test
    major: int = 16
