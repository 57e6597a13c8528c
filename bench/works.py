"""The tables and the job of each mover, beside a foreground: put back to the same state before every run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from bench.openloop import make_accounts
from bench.stage import ORDERS_COLUMNS, Stage

TEMPLATE: Final = "untouched"
SOURCE: Final = "work"
"""Where the foreground works, and what the backfill reads or fills."""

TARGET: Final = "target"

CHEAP: Final = "customer_id * 2"
DEAR: Final = "length(md5(repeat(note, 1000)))"
"""Some 60 microseconds a row: a table of the same size then lasts for the minutes that a step takes."""


@dataclass(frozen=True, slots=True)
class Work:
    """One mover's job.  ``begin`` puts the tables back and gives the spec; ``written`` counts the rows done so far."""

    mode: str
    begin: Callable[[], dict[str, Any]]
    written: Callable[[], int]


def make_template(stage: Stage, rows: int) -> None:
    """The tables as they are before every run."""
    stage.create(TEMPLATE)
    stage.make_orders(TEMPLATE, rows)
    make_accounts(stage, TEMPLATE)


def update(stage: Stage, expression: str = CHEAP) -> Work:
    """A new column, filled in place."""

    def begin() -> dict[str, Any]:
        stage.create(SOURCE, TEMPLATE)
        stage.sql(SOURCE, "ALTER TABLE orders ADD COLUMN new_c int")
        stage.settle(SOURCE, "orders")
        return {**_spec(stage, "bench-update"), "set": {"new_c": f"coalesce({expression}, 0)"}}

    return Work("update", begin, lambda: int(stage.sql(SOURCE, "SELECT count(new_c) FROM orders")))


def insert(stage: Stage, expression: str = CHEAP) -> Work:
    """Another table of the same database."""

    def begin() -> dict[str, Any]:
        stage.create(SOURCE, TEMPLATE)
        stage.make_empty_orders(SOURCE, "orders_v2")
        stage.settle(SOURCE, "orders")
        return {**_spec(stage, "bench-insert"), **_into(stage, SOURCE, "orders_v2", expression)}

    return Work("insert", begin, lambda: int(stage.sql(SOURCE, "SELECT count(*) FROM orders_v2")))


def copy(stage: Stage, expression: str = CHEAP) -> Work:
    """A table of another database (of the same server: a machine of its own would hide what it costs)."""

    def begin() -> dict[str, Any]:
        stage.create(SOURCE, TEMPLATE)
        stage.create(TARGET)
        stage.make_empty_orders(TARGET)
        stage.settle(SOURCE, "orders")
        return {**_spec(stage, "bench-copy"), **_into(stage, TARGET, "orders", expression)}

    return Work("copy", begin, lambda: int(stage.sql(TARGET, "SELECT count(*) FROM orders")))


WORKS: Final[dict[str, Callable[[Stage, str], Work]]] = {"update": update, "insert": insert, "copy": copy}


def make(mode: str, stage: Stage, *, cheap: bool) -> Work:
    """That mover's job with a dear or a cheap expression.  With a dear one processors are short; with a cheap one the
    disk is, and a table lasts for seconds.
    """
    return WORKS[mode](stage, CHEAP if cheap else DEAR)


def _spec(stage: Stage, name: str) -> dict[str, Any]:
    return {"name": name, "source": {"dsn": stage.dsn(SOURCE), "table": "orders"}}


def _into(stage: Stage, database: str, table: str, expression: str) -> dict[str, Any]:
    columns = {name: name for name in ORDERS_COLUMNS} | {"customer_id": f"coalesce({expression}, 0)"}
    # Without the final sweep: a run ends before it, or it would be judged by another kind of work.
    return {"target": {"dsn": stage.dsn(database), "table": table}, "columns": columns, "deletes": "none"}
