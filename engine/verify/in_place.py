"""Verifies, and mends, a job that fills columns of its own table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from engine.db import Connection, classify
from engine.errors import UsageError
from engine.model import KeyValue
from engine.sql import compare_in_place as statements
from engine.sql.compare_in_place import InPlace
from engine.sql.statements import key_list
from engine.verify.agreement import resolve_casts
from engine.verify.findings import READ_DEADLINE_S, Digests, Look, Suspect

LOOKED_AT: Final = 500
"""Rows that one statement looks at."""


class InPlaceComparer:
    """Compares the columns that a job fills with what their expressions give.

    ``connection`` is an open data connection.  ``shape`` may change in ``agree_on_hashes``: what is asked of the
    database by others (``in_place_chunk``) is made from it afterwards.
    """

    def __init__(self, shape: InPlace, connection: Connection) -> None:
        self.shape = shape
        self.connection = connection

    async def agree_on_hashes(self) -> None:
        """Nothing is hashed in place; but what a domain rounds to, only the catalogue knows."""
        table = self.shape.source.table
        columns = await resolve_casts(table, self.shape.columns, self.connection, one_database=True)
        self.shape = replace(self.shape, columns=columns)

    async def digests(self, after: KeyValue | None, to: KeyValue) -> Digests:
        """Rows of ``(after, to]``, and whether all of them are as the job leaves them."""
        first = after is None
        try:
            row = await self._range(statements.in_place_digest(self.shape, first=first), after, to)
            return Digests(row[0]["rows"], row[0]["rows"], equal=row[0]["differing"] == 0)
        except Exception as error:
            if not classify(error).is_of_row:
                raise
        row = await self._range(statements.in_place_count(self.shape, first=first), after, to)
        return Digests(row[0]["n"], row[0]["n"], equal=False)

    async def narrow(self, after: KeyValue | None, to: KeyValue) -> list[Suspect]:
        """The rows of ``(after, to]`` that differ."""
        first = after is None
        try:
            rows = await self._range(statements.in_place_suspects(self.shape, first=first), after, to)
            return [Suspect(tuple(row["key"]), "changed", row["mark"], row["mark"]) for row in rows]
        except Exception as error:
            if not classify(error).is_of_row:
                raise
        rows = await self._range(statements.in_place_keys(self.shape, first=first), after, to)
        looks = await self.look([tuple(row["key"]) for row in rows])
        return [Suspect(look.key, look.kind, look.source_mark, look.target_mark) for look in looks if look.kind]

    async def look(self, keys: Sequence[KeyValue]) -> list[Look]:
        """These rows, now.  A row that is gone, or is not the job's, does not differ."""
        return [look for at in range(0, len(keys), LOOKED_AT) for look in await self._look(keys[at : at + LOOKED_AT])]

    async def _look(self, keys: Sequence[KeyValue]) -> list[Look]:
        try:
            rows = await self._listed(statements.in_place_look(self.shape), keys)
        except Exception as error:
            if not classify(error).is_of_row:
                raise
            if len(keys) > 1:
                middle = len(keys) // 2
                return await self._look(keys[:middle]) + await self._look(keys[middle:])
            rows = await self._listed(statements.in_place_marks(self.shape), keys)
            mark = rows[0]["mark"] if rows else None
            return [Look(keys[0], "changed" if rows else None, (), mark, mark)]
        seen = {row["n"]: row for row in rows}
        return [_looked(key, seen.get(n)) for n, key in enumerate(keys)]

    async def repair(
        self,
        looks: Sequence[Look],
        *,
        delete_extra: bool = False,  # noqa: ARG002 - as between two tables: one has no row that the other lacks
    ) -> list[bool]:
        """Fill the columns of those rows that still differ, in the transaction that the caller has begun; says which
        were written.  There is no version to compare: the expressions are evaluated over the row that is locked.

        Raises ``UsageError`` for a job whose expressions cannot be evaluated a second time.
        """
        if self.shape.done is not None:
            raise UsageError(
                "a job that names `done` is verified by what is left to do, and cannot be repaired",
                hint="resume it, or mend the rows by hand",
            )
        wanted = [look.key for look in looks if look.kind == "changed"]
        written = await self._repair(wanted) if wanted else set()
        return [look.kind == "changed" and look.key in written for look in looks]

    async def release(self) -> None:
        """Nothing is held anywhere else."""

    async def _repair(self, keys: Sequence[KeyValue]) -> set[KeyValue]:
        connection = self.connection
        await connection.execute("SAVEPOINT backfill_repair")
        try:
            await self._listed(statements.in_place_lock(self.shape), keys)
            rows = await self._listed(statements.in_place_repair(self.shape), keys)
        except Exception as error:
            failure = classify(error)
            if failure.lost or not failure.is_of_row:
                raise
            await connection.execute("ROLLBACK TO backfill_repair; RELEASE backfill_repair")
        else:
            await connection.execute("RELEASE backfill_repair")
            return {tuple(row["key"]) for row in rows}
        if len(keys) == 1:
            return set()
        middle = len(keys) // 2
        return await self._repair(keys[:middle]) | await self._repair(keys[middle:])

    async def _range(self, sql: str, after: KeyValue | None, to: KeyValue) -> list[Any]:
        lo = None if after is None else list(after)
        return await self.connection.fetch(sql, lo, list(to), timeout_s=READ_DEADLINE_S)

    async def _listed(self, sql: str, keys: Sequence[KeyValue]) -> list[Any]:
        return await self.connection.fetch(sql, key_list(keys), timeout_s=READ_DEADLINE_S)


def _looked(key: KeyValue, row: Any) -> Look:
    if row is None:
        return Look(key, None, (), None, None)
    return Look(key, "changed" if row["differs"] else None, tuple(row["columns"]), row["mark"], row["mark"])
