"""Two tables with one numeric column among seven, and what people write today to make cents of it row by row.

``orders`` is the table of all benchmarks; ``sales`` is dearer to both servers (uuid, jsonb).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from bench.stage import ORDERS_COLUMNS

Loop = Callable[[Sequence[asyncpg.Record]], list[tuple[Any, ...]]]

AMOUNT: Final = "amount"
CENTS: Final = "amount_cents"
EXPRESSION: Final = "(amount * 100)::bigint"


@dataclass(frozen=True, slots=True)
class Priced:
    """A table.  ``by_name`` and ``by_place`` make records with cents of rows: as it is written mostly, and as fast as a
    loop gets.
    """

    name: str
    columns: tuple[str, ...]
    types: str  # of all columns, with {amount} for the one that differs
    by_name: Loop
    by_place: Loop
    fill: str = ""  # empty: the stage knows how

    @property
    def counted(self) -> tuple[str, ...]:
        """The columns where cents stand in the amount's place."""
        return tuple(CENTS if name == AMOUNT else name for name in self.columns)

    @property
    def in_cents(self) -> str:
        """What the source looks like then, as SQL."""
        return ", ".join(f"{EXPRESSION} AS {CENTS}" if name == AMOUNT else name for name in self.columns)

    def create(self, amount: str) -> str:
        """The table, with that column instead of the amount."""
        return f"CREATE TABLE {self.name} ({self.types.format(amount=amount)});"

    @property
    def fetch(self) -> str:
        """The rows of a range of keys, for the loops."""
        return f"SELECT {', '.join(self.columns)} FROM {self.name} WHERE id > $1 AND id <= $2 ORDER BY id"


def _orders_by_name(rows: Sequence[asyncpg.Record]) -> list[tuple[Any, ...]]:
    records = []
    for row in rows:
        cents = None if row["amount"] is None else int(row["amount"] * 100)
        records.append(
            (row["id"], row["customer_id"], row["status"], cents, row["note"], row["created_at"], row["flag"]),
        )
    return records


def _orders_by_place(rows: Sequence[asyncpg.Record]) -> list[tuple[Any, ...]]:
    records = []
    for identifier, customer, status, amount, note, created_at, flag in rows:
        cents = None if amount is None else int(amount * 100)
        records.append((identifier, customer, status, cents, note, created_at, flag))
    return records


def _sales_by_name(rows: Sequence[asyncpg.Record]) -> list[tuple[Any, ...]]:
    records = []
    for row in rows:
        cents = None if row["amount"] is None else int(row["amount"] * 100)
        records.append(
            (row["id"], cents, row["note"], row["created_at"], row["flag"], row["ref"], row["payload"]),
        )
    return records


def _sales_by_place(rows: Sequence[asyncpg.Record]) -> list[tuple[Any, ...]]:
    records = []
    for identifier, amount, note, created_at, flag, ref, payload in rows:
        cents = None if amount is None else int(amount * 100)
        records.append((identifier, cents, note, created_at, flag, ref, payload))
    return records


ORDERS: Final = Priced(
    "orders",
    ORDERS_COLUMNS,
    "id bigint PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL, {amount} NOT NULL,"
    " note text, created_at timestamptz NOT NULL, flag boolean NOT NULL",
    _orders_by_name,
    _orders_by_place,
)
SALES: Final = Priced(
    "sales",
    ("id", "amount", "note", "created_at", "flag", "ref", "payload"),
    "id bigint PRIMARY KEY, {amount}, note text, created_at timestamptz, flag boolean, ref uuid, payload jsonb",
    _sales_by_name,
    _sales_by_place,
    """
SELECT setseed(0.5);
INSERT INTO sales
SELECT g, (random() * 10000)::numeric(12,2), CASE WHEN g % 5 > 0 THEN 'note ' || md5(g::text) END,
       timestamptz '2020-01-01' + g * interval '1 second', g % 2 = 0, md5(g::text)::uuid,
       jsonb_build_object('n', g, 'state', (ARRAY['new', 'paid', 'done'])[1 + g % 3])
  FROM generate_series(1, {rows}) AS g;
VACUUM (FREEZE, ANALYZE) sales;
""",
)
