"""The ledger's door: every read and write of schema ``backfill``, over one connection to the target database.

A ``Ledger`` is cheap: one around the process's control connection (renewals, state, history), and one around each
worker's own data connection (claims and thefts), so that a claim that waits for a lock never delays a renewal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from engine.db.failures import Action, classify
from engine.errors import BackfillError, Busy, LedgerDamaged, UnknownJob
from engine.ledger.pacing import Pacing, orders_of
from engine.ledger.proof import Proof
from engine.ledger.queries import migrations, queries
from engine.ledger.records import (
    Claim,
    Heartbeat,
    HistoryEntry,
    JobRecord,
    JobStatus,
    SpanRecord,
    backends_from_json,
    backends_to_json,
)
from engine.ledger.reporting import Reporting, status_of
from engine.ledger.requests import Request, Requests
from engine.model import Backend, JobState, KeyValue, Mode, Phase, Span, SpanBounds

_UPGRADE_LOCK: Final = 0x6261636B66696C6C  # "backfill" in ASCII: the advisory lock that serialises create and upgrade

UPGRADE_PATIENCE_S: Final = 2.0
"""How long an upgrade may wait for a lock: whoever works in the ledger queues behind it, with leases to renew."""

_LOCK_TIMEOUT: Final = "55P03"
_NOT_ALLOWED: Final = "42501"

NOBODY: Final = "{}"
"""A barrier that waits for nobody, and yet is one: the phase behind it is still to be planned."""


class LedgerMissing(UnknownJob):
    """The target database holds no ledger yet, hence no job."""

    code = "ledger_missing"


class Ledger(Pacing, Proof, Reporting, Requests):
    """Reads and writes the ledger over one connection; safe to share between tasks, one statement at a time."""

    # -- schema ---------------------------------------------------------------------------------------------------

    async def installed_version(self) -> int:
        """The ledger's schema version; 0 when there is no ledger."""
        if await self._value("version") is None:
            return 0
        return int(await self._value("applied_version") or 0)

    async def ensure(self) -> None:
        """Create or upgrade the ledger.  Several processes may ask at once; one does it.

        Raises ``LedgerDamaged`` when the ledger was made by a newer release than this one, and ``Busy`` when somebody
        else keeps its tables so long that an upgrade would have to block those who work.
        """
        newest = migrations()[-1][0]
        if await self.installed_version() == newest:
            return
        async with self._transaction():
            await self.connection.execute(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})")
            installed = await self._installed_inside()
            if installed > newest:
                raise LedgerDamaged(
                    f"the ledger has version {installed}, this release knows {newest}",
                    hint="use the release that made it, or a newer one",
                )
            if installed:
                await self.connection.execute(f"SET LOCAL lock_timeout = {round(UPGRADE_PATIENCE_S * 1000)}")
            for version, script in migrations():
                if version > installed:
                    await self._migrate(script)

    async def _migrate(self, script: str) -> None:
        try:
            await self.connection.execute(script)
        except Exception as error:
            if classify(error).sqlstate != _LOCK_TIMEOUT:
                raise
            raise Busy(
                "the ledger cannot be upgraded now: somebody else keeps its tables",
                hint="try again when that session has ended; a dump of the whole database is one",
            ) from error

    async def require(self) -> None:
        """Raise ``LedgerMissing`` when there is no ledger."""
        if await self.installed_version() == 0:
            raise LedgerMissing("this database holds no ledger", hint="the first `backfill run` creates it")

    async def _installed_inside(self) -> int:
        if await self.connection.fetchval(queries()["version"]) is None:
            return 0
        return int(await self.connection.fetchval(queries()["applied_version"]) or 0)

    # -- jobs -----------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> JobRecord | None:
        """The job of that name, or None."""
        row = await self._row("job", name)
        return None if row is None else _job(row)

    async def job(self, name: str) -> JobRecord:
        """The job of that name; raises ``UnknownJob``."""
        found = await self.find(name)
        if found is None:
            raise UnknownJob(f"no job named {name!r}", hint="backfill list shows the jobs of this ledger")
        return found

    async def workable(self) -> tuple[str, ...]:
        """Names of the jobs that are planned or running."""
        return tuple(row["name"] for row in await self._rows("job_names"))

    async def create(
        self,
        *,
        name: str,
        mode: Mode,
        source: str,
        target: str,
        identity: dict[str, Any],
        spec: dict[str, Any],
        fingerprint: dict[str, Any],
        key_types: Sequence[str],
        rows_estimated: float,
        barrier_snapshot: str | None,
        spans: Sequence[SpanBounds],
        heap_bytes: int | None = None,
        dual_write: dict[str, Any] | None = None,
        target_mark: dict[str, Any] | None = None,
        request: Request | None = None,
    ) -> bool:
        """Freeze a new job in one transaction.  False when another process created it meanwhile.

        ``heap_bytes``: size of the table's heap before the first chunk, where its growth will be measured.
        ``dual_write``: evidence of our own triggers, None without them; ``target_mark``: what the target's server is.
        ``request``: what the job was asked for by; False, too, when another process has just met that request.
        """
        text = queries()
        try:
            async with self._transaction():
                job_id = await self.connection.fetchval(
                    text["create_job"],
                    name,
                    mode.value,
                    source,
                    target,
                    json.dumps(identity, ensure_ascii=False),
                    json.dumps(spec, ensure_ascii=False),
                    json.dumps(fingerprint, ensure_ascii=False),
                    list(key_types),
                    float(rows_estimated),
                    barrier_snapshot,
                    _end(spans),
                    heap_bytes,
                    _maybe_json(dual_write),
                    _maybe_json(target_mark),
                )
                await self._create_spans(job_id, Phase.MOVE, spans)
                if request is not None:
                    await self._note_request(job_id, request)
                await self.connection.fetchrow(text["forget_tombstones"], name)
                if accepted := spec.get("accept"):
                    await self.connection.fetchrow(text["record"], name, "accepted", json.dumps({"findings": accepted}))
        except Exception as error:
            if classify(error).action is Action.CONFLICT:
                return False
            raise
        return True

    async def start(self, job_id: int, more: Sequence[SpanBounds]) -> bool:
        """Open the job for work: the barrier is passed.  ``more`` are spans of rows that appeared behind the frozen
        bound while it was waited for.  False when another process did it first.
        """
        async with self._transaction():
            state = await self.connection.fetchrow(queries()["lock_job"], job_id)
            if state is None or state["state"] != JobState.PLANNED:
                return False
            await self._create_spans(job_id, Phase.MOVE, more)
            await self.connection.fetchrow(queries()["barrier_passed"], job_id)
            await self.connection.fetchrow(queries()["start"], job_id, _end(more))
        return True

    async def change_phase(self, job_id: int, before: Phase, after: Phase, barrier: str | None) -> bool:
        """From one phase to the next, which ``open_phase`` opens when nobody of ``barrier`` is left.  False when there
        is nothing to change (any more).
        """
        async with self._transaction():
            state = await self.connection.fetchrow(queries()["lock_job"], job_id)
            if state is None or state["state"] != before.state or state["phase"] != before or state["is_waiting"]:
                return False
            if await self.connection.fetchval(queries()["unfinished"], job_id, before.value):
                return False
            await self.connection.fetchrow(
                queries()["change_phase"], job_id, before.value, after.value, barrier or NOBODY
            )
        return True

    async def open_phase(
        self, job_id: int, phase: Phase, spans: Sequence[SpanBounds], *, sweep_by: str | None = None
    ) -> bool:
        """The phase's barrier has passed: here are its spans.  False when another process did it first."""
        async with self._transaction():
            state = await self.connection.fetchrow(queries()["lock_job"], job_id)
            if state is None or state["phase"] != phase or not state["is_waiting"]:
                return False
            planned = await self.connection.fetch(queries()["spans"], job_id, phase.value)
            if not planned:
                await self._create_spans(job_id, phase, spans)
                await self.connection.fetchrow(queries()["open_phase"], job_id, phase.value, sweep_by, _end(spans))
            else:  # of a release before 003, which planned them first
                await self.connection.fetchrow(queries()["barrier_passed"], job_id)
        return True

    async def begin_own_verification(
        self,
        job_id: int,
        last: Phase,
        *,
        settle_s: float,
        not_compared: Sequence[str],
        target_mark: dict[str, Any] | None,
    ) -> bool:
        """``verify: after``: all rows are moved, and the job goes on to verify.  False when that is not so any more."""
        async with self._transaction():
            state = await self.connection.fetchrow(queries()["lock_job"], job_id)
            if state is None or state["state"] != JobState.RUNNING or state["phase"] != last or state["is_waiting"]:
                return False
            if await self.connection.fetchval(queries()["unfinished"], job_id, last.value):
                return False
            await self.connection.execute("SET LOCAL synchronous_commit = on")
            await self.connection.fetchrow(queries()["forget_written"], job_id)
            await self.connection.fetchrow(queries()["touched"], job_id)
            await self._begin_verification(
                job_id, repair=False, settle_s=settle_s, not_compared=not_compared, target_mark=target_mark
            )
        return True

    async def finish(self, job_id: int, last: Phase) -> bool:
        """All spans of the last phase are at their bounds: done.  Commits synchronously, so that everything before is
        durable with it.  False when that is not so (any more).
        """
        async with self._transaction():
            await self.connection.execute("SET LOCAL synchronous_commit = on")
            state = await self.connection.fetchrow(queries()["lock_job"], job_id)
            if state is None or state["state"] != JobState.RUNNING or state["phase"] != last or state["is_waiting"]:
                return False
            if await self.connection.fetchval(queries()["unfinished"], job_id, last.value):
                return False
            await self.connection.fetchrow(queries()["forget_written"], job_id)
            await self.connection.fetchrow(queries()["finish"], job_id)
        return True

    async def fail(self, job_id: int, error: BackfillError, *, resumable: bool) -> None:
        """Record that a guard stopped the job; the first failure recorded stays."""
        await self._row("fail", job_id, error.code, error.message, error.hint, resumable)

    async def waits_for(self, job_id: int, whom: str | None) -> None:
        """Tell others whom the barrier waits for."""
        await self._row("waits_for", job_id, whom)

    async def apply_settings(self, job_id: int, spec: dict[str, Any]) -> None:
        """Settings that do not change the job's meaning: the newest run's count."""
        await self._row("apply_settings", job_id, json.dumps(spec, ensure_ascii=False))

    async def apply_fingerprint(self, job_id: int, fingerprint: dict[str, Any]) -> bool:
        """Accept the tables as they are now (a person resumed the job after a schema change).  False when another
        process has done so already.
        """
        return await self._row("apply_fingerprint", job_id, json.dumps(fingerprint, ensure_ascii=False)) is not None

    async def pause(self, name: str, reason: str | None) -> JobState:
        """Sticky: only ``resume`` clears it."""
        return await self._order("pause", name, reason)

    async def pause_by_administrator(self, job_id: int, reason: str) -> None:
        """An administrator ended one of our server processes: stop instead of fighting him."""
        await self._row("pause_running", job_id, reason)

    async def resume(self, name: str, reason: str | None) -> JobState:
        """Clear a pause, or a failure that is resumable."""
        return await self._order("resume", name, reason)

    async def cancel(self, name: str, reason: str | None) -> JobState:
        """Final, unless ``restart`` makes a new job of it."""
        return await self._order("cancel", name, reason)

    async def forget(self, name: str) -> bool:
        """Delete the job; its history stays.  False when there was none."""
        return bool(await self._value("forget", name))

    async def drop(self) -> None:
        """Remove the whole ledger, history included."""
        async with self._turn:
            await self.connection.execute(queries()["drop_all"])

    # -- spans and leases -----------------------------------------------------------------------------------------

    async def spans(self, job_id: int, phase: Phase) -> tuple[SpanRecord, ...]:
        """All spans of a phase, by number."""
        return tuple(
            SpanRecord(
                id=row["id"],
                lo=_key(row["lo"]),
                hi=tuple(row["hi"]),
                cursor=_key(row["cursor"]),
                epoch=row["epoch"],
                rows=row["rows"],
                scanned=row["scanned"],
                rows_estimated=row["rows_estimated"],
                leased=bool(row["leased"]),
            )
            for row in await self._rows("spans", job_id, phase.value)
        )

    async def claim(self, job_id: int, worker: str, backends: tuple[Backend, ...], lease_s: float) -> Claim | None:
        """Take a free span of the current phase, or None when there is none to be had."""
        row = await self._row("claim", job_id, worker, _json(backends), lease_s)
        return None if row is None else _claim(row)

    async def reclaim(
        self, job_id: int, span: Span, worker: str, backends: tuple[Backend, ...], lease_s: float
    ) -> Claim | None:
        """The worker's own span again, after a lost connection, under the next epoch; None when somebody else has it.

        Only after this may the cursor be believed: whatever the lost connection was doing is fenced from here on.
        """
        row = await self._row("reclaim", job_id, span.id, worker, span.epoch, _json(backends), lease_s)
        return None if row is None else _claim(row)

    async def in_use(self, job_id: int, backends: tuple[Backend, ...]) -> frozenset[Backend]:
        """Those of the server processes that work under a live lease: not left behind by anybody."""
        rows = await self._rows("in_use", job_id, _json(backends))
        return frozenset(backends_from_json([json.loads(row["backend"]) for row in rows]))

    async def renew(
        self, job_id: int, held: Sequence[tuple[int, str, int]], lease_s: float
    ) -> dict[int, tuple[str, int]]:
        """Renew the leases that this process holds, as (span, worker, epoch).  Returns span -> (worker, epoch) of those
        that were renewed.
        """
        spans, workers, epochs = ([lease[n] for lease in held] for n in range(3))
        rows = await self._rows("renew", job_id, spans, workers, epochs, lease_s)
        return {row["id"]: (str(row["worker"]), row["epoch"]) for row in rows}

    async def release(self, job_id: int, span: Span, worker: str) -> None:
        """Give the span back at once."""
        await self._row("release", job_id, span.id, worker, span.epoch)

    async def reread(self, job_id: int, span: Span, worker: str) -> Span | None:
        """The span as it stands now, or None when it is not ours any more."""
        row = await self._row("reread", job_id, span.id, worker, span.epoch)
        return None if row is None else _span(row)

    async def stands_as(self, job_id: int, span: Span) -> bool:
        """True while the span is the caller's, and where he thinks: what the fence would say of a chunk of it."""
        cursor = None if span.cursor is None else list(span.cursor)
        return bool(await self._value("stands_as", job_id, span.id, span.epoch, cursor, list(span.hi)))

    async def running_spans(self, job_id: int, phase: Phase) -> tuple[tuple[Span, float], ...]:
        """Unfinished spans that somebody holds, with the rows they have left by the estimate they were planned with."""
        rows = await self._rows("running", job_id, phase.value)
        return tuple((_span(row), float(row["rows_left"])) for row in rows)

    async def unfinished(self, job_id: int, phase: Phase) -> int:
        """How many spans of the phase are not at their upper bound."""
        return int(await self._value("unfinished", job_id, phase.value))

    async def steal(
        self,
        job_id: int,
        victim: Span,
        cut: KeyValue,
        *,
        rows_kept: float,
        rows_taken: float,
        worker: str,
        backends: tuple[Backend, ...],
        lease_s: float,
    ) -> Span | None:
        """Cut ``victim`` at ``cut``, which the caller has seen to lie strictly inside ``(cursor, hi)`` by the order of
        the server that owns it.  The holder keeps ``(…, cut]``, the caller's worker holds the returned ``(cut, hi]``.
        None when the victim has moved since it was read, or another thief took the number of the new span meanwhile:
        nothing has changed then.
        """
        try:
            row = await self._row(
                "steal",
                job_id,
                victim.id,
                None if victim.cursor is None else list(victim.cursor),
                list(victim.hi),
                list(cut),
                rows_kept,
                rows_taken,
                worker,
                _json(backends),
                lease_s,
            )
        except Exception as error:
            if classify(error).action is Action.CONFLICT:
                return None
            raise
        return None if row is None else _span(row)

    # -- people ---------------------------------------------------------------------------------------------------

    async def heartbeat(self, job_id: int, host: str, os_pid: int, beats: Sequence[Heartbeat]) -> None:
        """Tell the others what this process's workers do."""
        await self._row(
            "heartbeat",
            job_id,
            host,
            os_pid,
            [b.worker for b in beats],
            [b.rows_per_s for b in beats],
            [b.retries for b in beats],
            [b.waiting for b in beats],
            [json.dumps(b.waits, ensure_ascii=False) for b in beats],
        )

    async def leave(self, workers: Sequence[str]) -> None:
        """These workers stop now."""
        await self._row("leave", list(workers))

    async def status(self, name: str) -> JobStatus:
        """One job as people see it; raises ``UnknownJob``."""
        row = await self._row("status", name)
        if row is None:
            raise UnknownJob(f"no job named {name!r}", hint="backfill list shows the jobs of this ledger")
        return status_of(row)

    async def list(self) -> tuple[JobStatus, ...]:
        """All jobs, oldest first."""
        return tuple(status_of(row) for row in await self._rows("status_all"))

    async def history(
        self, name: str, *, since_s: float | None = None, limit: int | None = None
    ) -> tuple[HistoryEntry, ...]:
        """What happened to a job, oldest first: in the last ``since_s`` by the database's clock, the last ``limit``."""
        return tuple(
            HistoryEntry(row["id"], row["at"], row["who"], row["what"], json.loads(row["detail"]))
            for row in await self._rows("history", name, since_s, limit)
        )

    async def record(self, name: str, what: str, detail: dict[str, Any]) -> None:
        """Add a line to a job's history."""
        line = (name, what, json.dumps(detail, ensure_ascii=False))
        try:
            await self._row("record", *line)
        except Exception as error:
            if classify(error).sqlstate != _NOT_ALLOWED:
                raise
            await self._row("record_aside", *line)  # the owner of a table need not be allowed to change jobs

    # -- plumbing -------------------------------------------------------------------------------------------------

    async def _order(self, query: str, name: str, reason: str | None) -> JobState:
        await self.job(name)
        return JobState(await self._value(query, name, reason))

    async def _create_spans(self, job_id: int, phase: Phase, spans: Sequence[SpanBounds]) -> None:
        if not spans:
            return
        await self.connection.fetch(
            queries()["create_spans"],
            job_id,
            phase.value,
            [json.dumps(s.lo, ensure_ascii=False) for s in spans],
            [json.dumps(s.hi, ensure_ascii=False) for s in spans],
            [max(0.0, float(s.rows)) for s in spans],
        )


def _maybe_json(value: dict[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _json(backends: tuple[Backend, ...]) -> str:
    return json.dumps(backends_to_json(backends), ensure_ascii=False)


def _end(spans: Sequence[SpanBounds]) -> Sequence[str] | None:
    """The upper bound of the last of the spans, which come in key order."""
    return list(spans[-1].hi) if spans else None


def _key(value: Sequence[str] | None) -> KeyValue | None:
    return None if value is None else tuple(value)


def _span(row: Any) -> Span:
    return Span(
        id=row["id"],
        phase=Phase(row["phase"]),
        lo=_key(row["lo"]),
        hi=tuple(row["hi"]),
        cursor=_key(row["cursor"]),
        epoch=row["epoch"],
        rows=row["rows"],
    )


def _claim(row: Any) -> Claim:
    return Claim(_span(row), backends_from_json(json.loads(row["left_behind"])))


def _job(row: Any) -> JobRecord:
    values = dict(row)
    values["mode"] = Mode(values["mode"])
    values["state"] = JobState(values["state"])
    values["phase"] = None if values["phase"] == "end" else Phase(values["phase"])
    values["key_types"] = tuple(values["key_types"])
    values["move_end"], values["sweep_end"] = _key(values["move_end"]), _key(values["sweep_end"])
    for name in ("identity", "spec", "fingerprint", "ends"):
        values[name] = json.loads(values[name])
    values["ends"] = {phase: tuple(end) for phase, end in values["ends"].items()}
    for name in ("dual_write", "target_mark"):
        values[name] = None if values[name] is None else json.loads(values[name])
    values["orders"] = orders_of(values.pop("pace"), values["limit_rows_per_s"])
    return JobRecord(**values)
