"""Compares two tables, in one database or two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar

from engine.db import Connection, classify
from engine.model import KeyValue
from engine.sql import compare
from engine.sql.compare import Compared, Form, Rows
from engine.sql.statements import key_list
from engine.verify.agreement import common_form, resolve_casts
from engine.verify.findings import READ_DEADLINE_S, Digests, Kind, Look, Suspect
from engine.verify.repair import repair

T = TypeVar("T")

LISTED_KEYS: Final = 2000
"""Keys that one statement looks up."""

LOOKED_AT: Final = 500
"""Rows whose values one statement fetches."""


class Comparer:
    """Compares the rows of a job's source with those of its target.

    ``source`` and ``target`` are open data connections; the same object where both tables are in one database.  Used by
    one task at a time, outside of transactions.  ``compared`` may change in ``agree_on_hashes``: what is asked of the
    database by others (``compare.verify_chunk``) is made from it afterwards.
    """

    def __init__(self, compared: Compared, source: Connection, target: Connection) -> None:
        self.compared = compared
        self.source = source
        self.target = target
        self.form = Form.RECORD
        self.holds_source = False  # a repair has locked rows in a transaction of the source's database
        self._here = compare.target_rows(compared)
        self._there = compare.source_rows(compared)
        self._statements: dict[tuple[str, bool], str] = {}

    @property
    def is_one(self) -> bool:
        """True when both tables are in one database."""
        return self.source is self.target

    async def agree_on_hashes(self) -> None:
        """Have both servers hash the same values, and settle on a form of comparison in which they agree."""
        both = self.compared
        columns = await resolve_casts(both.target.table, both.written, self.target, one_database=self.is_one)
        steady = len(both.columns)
        self.compared = replace(both, columns=columns[:steady], unsteady=columns[steady:])
        self.form = await common_form(self.compared, self.source, self.target)
        self._here = compare.target_rows(self.compared)
        self._there = compare.source_rows(self.compared)
        self._statements.clear()

    # -- ranges ------------------------------------------------------------------------------------------------------

    async def digests(self, after: KeyValue | None, to: KeyValue) -> Digests:
        """Both sides of ``(after, to]`` as a whole.

        Where some row cannot be evaluated: how many there are, and that they are not equal.
        """
        try:
            return await self._digests(after, to)
        except Exception as error:
            if not classify(error).is_of_row:
                raise
        rows = await self._on_both(
            compare.count(self._there, first=after is None), compare.count(self._here, first=after is None), after, to
        )
        return Digests(rows[0][0]["n"], rows[1][0]["n"], equal=False)

    async def _digests(self, after: KeyValue | None, to: KeyValue) -> Digests:
        if not self.compared.target.same_order or self.form is Form.VALUES:
            ours, theirs = await self._list(after, to)
            return Digests(len(theirs), len(ours), equal=not _differences(theirs, ours))
        first = after is None
        if self.is_one:
            sql = self._sql("digests", first)
            row = await self.source.fetchrow(sql, _listed(after), list(to), timeout_s=READ_DEADLINE_S)
            assert row is not None
            return Digests(row["rows_source"], row["rows_target"], row["equal"])
        (there,), (here,) = await self._on_both(
            self._sql("digest of the source", first), self._sql("digest of the target", first), after, to
        )
        return Digests(there["n"], here["n"], equal=(there["n"], there["digest"]) == (here["n"], here["digest"]))

    async def narrow(self, after: KeyValue | None, to: KeyValue) -> list[Suspect]:
        """The rows of ``(after, to]`` that differ, or seem to: a look says in what.

        Where the target sorts in another order, rows that only the target has are not among them: see ``extras``.
        """
        try:
            return await self._narrow(after, to)
        except Exception as error:
            if not classify(error).is_of_row:
                raise
        return await self._narrow_by_looking(after, to)

    async def _narrow(self, after: KeyValue | None, to: KeyValue) -> list[Suspect]:
        if self.is_one and self.compared.target.same_order:
            rows = await self.source.fetch(
                self._sql("suspects", after is None), _listed(after), list(to), timeout_s=READ_DEADLINE_S
            )
            return [Suspect(tuple(r["key"]), r["kind"], r["source_mark"], r["target_mark"]) for r in rows]
        ours, theirs = await self._list(after, to, only_different=True)
        return await self._paired(_differences(theirs, ours))

    async def _narrow_by_looking(self, after: KeyValue | None, to: KeyValue) -> list[Suspect]:
        """Some row cannot be evaluated: look at all of them, by halves down to the one."""
        first = after is None
        there = compare.listed_keys(self._there, first=first)
        if self.compared.target.same_order:
            theirs, ours = await self._on_both(there, compare.listed_keys(self._here, first=first), after, to)
        else:
            theirs, ours = await self.source.fetch(there, _listed(after), list(to), timeout_s=READ_DEADLINE_S), []
        keys = dict.fromkeys(tuple(row["key"]) for row in [*theirs, *ours])
        suspects: dict[tuple[str | None, str | None], Suspect] = {}
        for look in await self.look(list(keys)):
            if look.kind is not None:
                # Two texts may be one key (numeric, collations that ignore case): its marks tell.
                marks = (look.source_mark, look.target_mark)
                suspects.setdefault(marks, Suspect(look.key, look.kind, *marks))
        return list(suspects.values())

    async def extras(
        self, after: KeyValue | None, to: KeyValue, *, order: Sequence[str] | None = None
    ) -> list[Suspect]:
        """Rows that only the target has, for targets that sort otherwise: ``(after, to]`` of the *target's* keys.

        ``order`` names the target's key columns in the order in which ``after`` and ``to`` have them, by default that
        of the job's key.  The keys that are found are in the order of the job's key in any case.
        """
        places = {column.name: column for column in self.compared.target.key}
        sql = compare.listed_keys(
            self._here, first=after is None, order=[places[name] for name in order or list(places)]
        )
        rows = await self.target.fetch(sql, _listed(after), list(to), timeout_s=READ_DEADLINE_S)
        found: list[Suspect] = []
        # The source is read later than the target: a row that was deleted on both sides in between is suspected in
        # vain.  The other order would suspect every new row.
        for batch in _batches(rows, LISTED_KEYS):
            held = await self._marks(self.source, self._there, [tuple(row["key"]) for row in batch])
            found += [
                Suspect(tuple(row["key"]), "extra", None, row["mark"])
                for row, mark in zip(batch, held, strict=True)
                if mark is None
            ]
        return found

    # -- rows --------------------------------------------------------------------------------------------------------

    async def look(self, keys: Sequence[KeyValue]) -> list[Look]:
        """These rows as they are now on both sides (one database: in one snapshot), one answer for each key."""
        return [look for batch in _batches(keys, LOOKED_AT) for look in await self._look(batch)]

    async def repair(self, looks: Sequence[Look], *, delete_extra: bool = False) -> list[bool]:
        """Make the target's rows equal to the source's, in the transaction that is open at the target: see
        ``engine.verify.repair``.  After it has ended, ``release``.
        """
        return await repair(self, looks, delete_extra=delete_extra)

    async def release(self) -> None:
        """The target's transaction has ended: let go of what a repair has locked in another database."""
        held, self.holds_source = self.holds_source, False
        if held and not self.source.is_closed:
            await self.source.execute("COMMIT")

    async def _look(self, keys: Sequence[KeyValue]) -> list[Look]:
        try:
            return await self._look_at_once(keys)
        except Exception as error:
            if not classify(error).is_of_row:
                raise
        if len(keys) > 1:
            middle = len(keys) // 2
            return await self._look(keys[:middle]) + await self._look(keys[middle:])
        (there,) = await self._marks(self.source, self._there, keys)
        (here,) = await self._marks(self.target, self._here, keys)
        # The key itself may be what the other side's type cannot hold: then that side does not have it.
        kind: Kind | None = "changed"
        if there is None or here is None:
            kind = "missing" if there is not None else "extra" if here is not None else None
        return [Look(keys[0], kind, (), there, here)]

    async def _look_at_once(self, keys: Sequence[KeyValue]) -> list[Look]:
        flat = key_list(keys)
        if self.is_one:
            both = await self.source.fetch(self._sql("look", False), flat, timeout_s=READ_DEADLINE_S)
            seen = {r["n"]: (r["row0"], r["mark0"], r["row1"], r["mark1"]) for r in both}
        else:
            there, here = await self._run_both(
                self.source.fetch(self._sql("look at the source", False), flat, timeout_s=READ_DEADLINE_S),
                self.target.fetch(self._sql("look at the target", False), flat, timeout_s=READ_DEADLINE_S),
            )
            ours = {r["n"]: (r["row0"], r["mark0"]) for r in here}
            seen = {r["n"]: (r["row0"], r["mark0"], *ours[r["n"]]) for r in there}
        names = [column.name for column in self.compared.columns]
        return [_looked(key, names, *seen[n]) for n, key in enumerate(keys)]

    async def _marks(self, connection: Connection, side: Rows, keys: Sequence[KeyValue]) -> list[str | None]:
        """The marks of those rows on one side; None where there is no row, or can be none."""
        try:
            rows = await connection.fetch(compare.marks((side,)), key_list(keys), timeout_s=READ_DEADLINE_S)
        except Exception as error:
            if not classify(error).is_of_row:
                raise
            if len(keys) == 1:
                return [None]
            middle = len(keys) // 2
            left = await self._marks(connection, side, keys[:middle])
            return left + await self._marks(connection, side, keys[middle:])
        found = {row["n"]: row["mark0"] for row in rows}
        return [found.get(n) for n in range(len(keys))]

    # -- lists of rows -----------------------------------------------------------------------------------------------

    async def _list(
        self, after: KeyValue | None, to: KeyValue, *, only_different: bool = False
    ) -> tuple[list[Any], list[Any]]:
        """``(key, row, mark)`` of the target's and of the source's rows.  ``only_different``: rows that are
        certain to be equal may be left out, on both sides alike.
        """
        first = after is None
        bounds = (_listed(after), list(to))
        there = compare.listed_rows(self._there, self.form, first=first)
        if not self.compared.target.same_order:
            async with self._one_snapshot():
                theirs = await self.source.fetch(there, *bounds, timeout_s=READ_DEADLINE_S)
                return await self._counterparts(theirs), theirs
        here = compare.listed_rows(self._here, self.form, first=first)
        if self.form is Form.VALUES or not only_different:
            theirs, ours = await self._on_both(there, here, after, to)
            return ours, theirs
        theirs, ours = await self._on_both(
            compare.buckets(self._there, self.form, first=first),
            compare.buckets(self._here, self.form, first=first),
            after,
            to,
        )
        digests = [{row["bucket"]: (row["n"], row["digest"]) for row in side} for side in (theirs, ours)]
        different = [n for n in range(compare.BUCKETS) if digests[0].get(n) != digests[1].get(n)]
        if not different:
            return [], []
        theirs, ours = await self._on_both(
            compare.listed_rows(self._there, self.form, first=first, some=True),
            compare.listed_rows(self._here, self.form, first=first, some=True),
            after,
            to,
            different,
        )
        return ours, theirs

    async def _counterparts(self, theirs: Sequence[Any]) -> list[Any]:
        """The target's rows under the keys of these rows of the source, with ``key`` as the source writes it."""
        sql = compare.lookup(self._here, self.form)
        found: list[Any] = []
        for batch in _batches(theirs, LISTED_KEYS):
            keys = key_list([tuple(row["key"]) for row in batch])
            rows = await self.target.fetch(sql, keys, timeout_s=READ_DEADLINE_S)
            found += [{**row, "key": batch[row["n"]]["key"]} for row in rows]
        return found

    async def _paired(self, suspects: list[Suspect]) -> list[Suspect]:
        """Two texts may be one key (numbers of another scale, collations that ignore case): such a row is neither
        missing nor extra.  Only the server knows.
        """
        missing = [s for s in suspects if s.kind == "missing"]
        extra = {s.target_mark: s for s in suspects if s.kind == "extra"}
        if not missing or not extra:
            return suspects
        paired = [s for s in suspects if s.kind == "changed"]
        for batch in _batches(missing, LISTED_KEYS):
            marks = await self._marks(self.target, self._here, [s.key for s in batch])
            for suspect, mark in zip(batch, marks, strict=True):
                kind: Kind = "missing" if mark is None else "changed"
                extra.pop(mark, None)
                paired.append(Suspect(suspect.key, kind, suspect.source_mark, mark))
        return paired + list(extra.values())

    # -- statements --------------------------------------------------------------------------------------------------

    def _sql(self, name: str, first: bool) -> str:
        """The text of a statement that is asked for chunk by chunk, made once."""
        made = self._statements.get((name, first))
        if made is None:
            match name:
                case "digests":
                    made = compare.digests(self.compared, self.form, first=first)
                case "digest of the source":
                    made = compare.digest(self._there, self.form, first=first)
                case "digest of the target":
                    made = compare.digest(self._here, self.form, first=first)
                case "suspects":
                    made = compare.suspects(self.compared, self.form, first=first)
                case "look":
                    made = compare.look((self._there, self._here))
                case "look at the source":
                    made = compare.look((self._there,))
                case _:
                    made = compare.look((self._here,))
            self._statements[name, first] = made
        return made

    async def _on_both(
        self, there: str, here: str, after: KeyValue | None, to: KeyValue, *more: object
    ) -> tuple[list[Any], list[Any]]:
        """A statement over ``(after, to]`` on each side: at once, or one after the other where they share a session."""
        arguments = (_listed(after), list(to), *more)
        if self.is_one:
            first = await self.source.fetch(there, *arguments, timeout_s=READ_DEADLINE_S)
            return first, await self.source.fetch(here, *arguments, timeout_s=READ_DEADLINE_S)
        return await self._run_both(
            self.source.fetch(there, *arguments, timeout_s=READ_DEADLINE_S),
            self.target.fetch(here, *arguments, timeout_s=READ_DEADLINE_S),
        )

    async def _run_both(self, there: Awaitable[list[Any]], here: Awaitable[list[Any]]) -> tuple[list[Any], list[Any]]:
        """Both to their end, even when one fails: a session is used by one statement at a time."""
        results = await asyncio.gather(there, here, return_exceptions=True)
        lists: list[list[Any]] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            lists.append(result)
        return lists[0], lists[1]

    @asynccontextmanager
    async def _one_snapshot(self) -> AsyncIterator[None]:
        """Within one database: every statement inside sees the same."""
        if not self.is_one:
            yield
            return
        await self.source.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            yield
            await self.source.execute("COMMIT")
        except BaseException:
            await self.source.roll_back()
            raise


def _listed(key: KeyValue | None) -> list[str] | None:
    return None if key is None else list(key)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _differences(theirs: Sequence[Any], ours: Sequence[Any]) -> list[Suspect]:
    """Rows of the source against rows of the target, by the text of their keys."""
    unseen = {tuple(row["key"]): row for row in ours}
    found: list[Suspect] = []
    for row in theirs:
        other = unseen.pop(tuple(row["key"]), None)
        if other is None:
            found.append(Suspect(tuple(row["key"]), "missing", row["mark"], None))
        elif other["row"] != row["row"]:
            found.append(Suspect(tuple(row["key"]), "changed", row["mark"], other["mark"]))
    found += [Suspect(tuple(row["key"]), "extra", None, row["mark"]) for row in unseen.values()]
    return found


def _looked(
    key: KeyValue,
    names: Sequence[str],
    theirs: list[str | None] | None,
    their_mark: str | None,
    ours: list[str | None] | None,
    our_mark: str | None,
) -> Look:
    if theirs is None or ours is None:
        kind: Kind | None = "missing" if theirs is not None else "extra" if ours is not None else None
        return Look(key, kind, (), their_mark, our_mark)
    columns = tuple(name for name, left, right in zip(names, theirs, ours, strict=True) if left != right)
    return Look(key, "changed" if columns else None, columns, their_mark, our_mark)
