"""Jobs as commands see them, whether the ledger tells of them or a daemon does."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine.cli.places import PATIENCE_S, Place, Remote, open_job, open_ledger
from engine.db import Database
from engine.errors import HeldByOperator, Stopped, UnknownJob
from engine.ledger.orders import SIGNALS, PaceOrders
from engine.ledger.records import HistoryEntry, JobStatus, Quarantined
from engine.ledger.store import Ledger
from engine.model import JobState
from engine.spec import JobSpec
from engine.spec.signals import SignalKind, SignalSpec, kind_of, without_side

if TYPE_CHECKING:  # loaded when a daemon is spoken to
    from engine.client import AsyncClient
    from engine.wire import shapes

_ANEW: Final = "backfill restart begins it anew"
POLL_S: Final = 20.0
"""How long a daemon is asked to hold its answer back: it knows of changes by itself."""

QUARANTINE_PAGE: Final = 200
LIST_PAGE: Final = 200


class Jobs(Protocol):
    """What may be asked and ordered of jobs, by name."""

    @property
    def unreachable(self) -> Sequence[str]:
        """Databases whose jobs were missing in the last ``list``, since they are away."""
        ...

    async def status(self, job: str) -> JobStatus:
        """The job as it is now; raises ``UnknownJob``."""
        ...

    async def list(self) -> tuple[JobStatus, ...]:
        """All jobs, the oldest first."""
        ...

    async def news(self, seen: JobStatus, within_s: float) -> None:
        """Return when the job may have changed since it was ``seen``, or after so long."""
        ...

    async def pause(self, job: str, reason: str | None) -> JobStatus:
        """Sticky: only ``resume`` clears it."""
        ...

    async def resume(self, job: str, reason: str | None) -> JobStatus:
        """Clear a pause, or a failure; raises ``HeldByOperator`` and ``Stopped`` where that cannot be."""
        ...

    async def cancel(self, job: str, reason: str | None) -> JobStatus:
        """End the job for good."""
        ...

    async def signals(self, job: str) -> dict[str, SignalSpec]:
        """The signals that orders may name besides those that are built in, by name."""
        ...

    async def orders(self, job: str) -> PaceOrders:
        """What was ordered of the job's pace."""
        ...

    async def order_pace(self, job: str, change: PaceOrders, reset: Sequence[str], *, reason: str | None) -> JobStatus:
        """Forget the orders that ``reset`` names, then give those of ``change``."""
        ...

    async def history(self, job: str, *, since_s: float | None, limit: int | None) -> tuple[HistoryEntry, ...]:
        """What happened, oldest first: in the last ``since_s``, the last ``limit``.  It outlives the job."""
        ...

    async def quarantine(
        self, job: str, limit: int, *, show_rows: bool
    ) -> tuple[dict[str, int], Sequence[Quarantined]]:
        """How many rows are set aside by SQLSTATE, and the oldest of them, their keys only with ``show_rows``."""
        ...


@asynccontextmanager
async def open_jobs(place: Place, *, patience_s: float = PATIENCE_S) -> AsyncIterator[Jobs]:
    """The jobs of a place, whose own job is known to be among them.  Raises ``UnknownJob`` with the nearest name."""
    if isinstance(place.where, Remote):
        async with open_daemon(place, patience_s=patience_s) as (client, connection):
            yield DaemonJobs(client, connection)
    else:
        async with open_job(place) as ledger:
            yield LedgerJobs(ledger)


@asynccontextmanager
async def open_all_jobs(where: Database | Remote, *, required: bool = False) -> AsyncIterator[Jobs]:
    """All jobs of a ledger, or of a daemon.  ``required``: where there is no ledger, raise ``LedgerMissing``."""
    if isinstance(where, Remote):
        async with where.client() as client:
            yield DaemonJobs(client, where.connection)
    else:
        async with open_ledger(where, required=required) as ledger:
            yield LedgerJobs(ledger)


@asynccontextmanager
async def open_daemon(place: Place, *, patience_s: float = PATIENCE_S) -> AsyncIterator[tuple[AsyncClient, str | None]]:
    """The client of a place's daemon, and which of its connections was asked for.  An unknown job is told the nearest
    name there is, as elsewhere.
    """
    from engine.client import DaemonError

    assert isinstance(place.where, Remote)
    connection = place.where.connection
    async with place.where.client(patience_s=patience_s) as client:
        try:
            yield client, connection
        except DaemonError as error:
            error.hint = error.hint.replace("?connection=", "--connection ")  # in the words of the command line
            raise
        except UnknownJob as error:
            names = [job.job for job in await client.all_jobs(connection=connection)]
            close = difflib.get_close_matches(place.job, names, n=1)
            hint = f"did you mean {close[0]}?" if close else "backfill list shows the jobs of this daemon"
            raise UnknownJob(error.message, hint=hint) from None


class LedgerJobs:
    """Jobs as the ledger tells of them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._news: asyncio.Event | None = None
        self.unreachable: Sequence[str] = ()

    async def status(self, job: str) -> JobStatus:
        """See ``Jobs``."""
        return await self._ledger.status(job)

    async def list(self) -> tuple[JobStatus, ...]:
        """See ``Jobs``."""
        return await self._ledger.list() if await self._ledger.installed_version() else ()

    async def news(self, seen: JobStatus, within_s: float) -> None:  # noqa: ARG002 - one listener hears of all jobs
        """See ``Jobs``."""
        connection = self._ledger.connection
        if self._news is None:
            self._news = news = asyncio.Event()
            if connection.server.capabilities.listen_notify:
                await connection.add_listener("backfill", lambda _: news.set())
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._news.wait()
        self._news.clear()

    async def pause(self, job: str, reason: str | None) -> JobStatus:
        """See ``Jobs``."""
        await self._ledger.pause(job, reason)
        return await self.status(job)

    async def resume(self, job: str, reason: str | None) -> JobStatus:
        """See ``Jobs``."""
        state = await self._ledger.resume(job, reason)
        status = await self.status(job)
        if state is JobState.CANCELLED:
            raise HeldByOperator(f"job {job} was cancelled, which is final", state=state, hint=_ANEW)
        if state is JobState.FAILED:
            raise Stopped(f"job {job} cannot be resumed: {status.error_message}", hint=status.error_hint or _ANEW)
        return status

    async def cancel(self, job: str, reason: str | None) -> JobStatus:
        """See ``Jobs``."""
        await self._ledger.cancel(job, reason)
        return await self.status(job)

    async def signals(self, job: str) -> dict[str, SignalSpec]:
        """See ``Jobs``."""
        spec = JobSpec.from_ledger((await self._ledger.job(job)).spec)
        return {signal.name: signal for signal in spec.pace.effective_signals()}

    async def orders(self, job: str) -> PaceOrders:
        """See ``Jobs``."""
        return (await self._ledger.job(job)).orders

    async def order_pace(self, job: str, change: PaceOrders, reset: Sequence[str], *, reason: str | None) -> JobStatus:
        """See ``Jobs``."""
        await self._ledger.order_pace(job, change, reset, reason=reason)
        return await self.status(job)

    async def history(self, job: str, *, since_s: float | None, limit: int | None) -> tuple[HistoryEntry, ...]:
        """See ``Jobs``."""
        return await self._ledger.history(job, since_s=since_s, limit=limit)

    async def quarantine(
        self, job: str, limit: int, *, show_rows: bool
    ) -> tuple[dict[str, int], Sequence[Quarantined]]:
        """See ``Jobs``."""
        job_id = (await self._ledger.job(job)).id
        rows = await self._ledger.quarantined(job_id, limit)
        shown = rows if show_rows else [replace(row, key=()) for row in rows]
        return await self._ledger.quarantined_by_sqlstate(job_id), shown


class DaemonJobs:
    """Jobs as a daemon tells of them."""

    def __init__(self, client: AsyncClient, connection: str | None) -> None:
        self._client = client
        self._connection = connection
        self._revisions: dict[str, str] = {}
        self.unreachable: Sequence[str] = ()

    async def status(self, job: str) -> JobStatus:
        """See ``Jobs``."""
        return self._status(await self._client.job(job, connection=self._connection))

    async def list(self) -> tuple[JobStatus, ...]:
        """See ``Jobs``."""
        found: list[shapes.Job] = []
        away: set[str] = set()
        cursor: str | None = None
        while True:
            page = await self._client.jobs(limit=LIST_PAGE, cursor=cursor, connection=self._connection)
            found += page.jobs
            away |= {*page.unreachable}
            cursor = page.next
            if cursor is None:
                break
        self.unreachable = sorted(away)
        return tuple(self._status(job) for job in reversed(found))

    async def news(self, seen: JobStatus, within_s: float) -> None:
        """See ``Jobs``."""
        revision = self._revisions.get(seen.job)
        await self._client.changed(seen.job, revision, within_s=max(within_s, POLL_S), connection=self._connection)

    async def pause(self, job: str, reason: str | None) -> JobStatus:
        """See ``Jobs``."""
        return self._status(await self._client.pause(job, reason=reason, connection=self._connection))

    async def resume(self, job: str, reason: str | None) -> JobStatus:
        """See ``Jobs``."""
        try:
            return self._status(await self._client.resume(job, reason=reason, connection=self._connection))
        except (HeldByOperator, Stopped) as error:
            if error.hint.startswith("begin it anew"):  # in the words of the API
                error.hint = _ANEW
            raise

    async def cancel(self, job: str, reason: str | None) -> JobStatus:
        """See ``Jobs``."""
        return self._status(await self._client.cancel(job, reason=reason, connection=self._connection))

    async def signals(self, job: str) -> dict[str, SignalSpec]:
        """See ``Jobs``.  The daemon has the last word: of a signal of the operator's we only know the name."""
        status = await self.status(job)
        names = {without_side(str(signal.get("name"))) for signal in status.signals} | set(status.orders.signals)
        return {
            name: SignalSpec(kind=kind, off=True) if (kind := kind_of(name)) is not None else _of_operator(name)
            for name in sorted(names)
        }

    async def orders(self, job: str) -> PaceOrders:
        """See ``Jobs``."""
        return (await self.status(job)).orders

    async def order_pace(self, job: str, change: PaceOrders, reset: Sequence[str], *, reason: str | None) -> JobStatus:
        """See ``Jobs``."""
        patch = pace_patch(change, reset)
        return self._status(await self._client.pace(job, patch, reason=reason, connection=self._connection))

    async def history(self, job: str, *, since_s: float | None, limit: int | None) -> tuple[HistoryEntry, ...]:
        """See ``Jobs``."""
        if since_s is None and limit is None:
            found = await self._client.whole_history(job, connection=self._connection)
        else:
            page = await self._client.history(job, since_s=since_s, last=limit, limit=1000, connection=self._connection)
            found = page.entries
        return tuple(HistoryEntry(e.id, e.at, e.who, e.what, e.detail) for e in found)

    async def quarantine(
        self, job: str, limit: int, *, show_rows: bool
    ) -> tuple[dict[str, int], Sequence[Quarantined]]:
        """See ``Jobs``."""
        rows: list[Quarantined] = []
        after: str | None = None
        while True:
            found = await self._client.quarantine(
                job,
                limit=min(limit - len(rows), QUARANTINE_PAGE),
                after=after,
                show_rows=show_rows,
                connection=self._connection,
            )
            rows += [
                Quarantined(r.id, tuple(r.key or ()), r.error, r.sqlstate, r.attempts, r.first_at, r.last_at)
                for r in found.rows
            ]
            after = found.next
            if after is None or len(rows) >= limit:
                return found.by_sqlstate, rows

    def _status(self, shown: shapes.Job) -> JobStatus:
        self._revisions[shown.job] = shown.revision
        return status_of(shown)


def status_of(shown: shapes.Job) -> JobStatus:
    """A job of a daemon as the ledger would tell of it."""
    return JobStatus.from_json(shown.model_dump(mode="json", exclude_unset=True))


def pace_patch(change: PaceOrders, reset: Sequence[str]) -> dict[str, Any]:
    """The same orders as a merge patch: what is null is forgotten."""
    patch: dict[str, Any] = {}
    for place in reset:
        name, _, signal = place.partition(".")
        if not signal:
            patch[name] = None
        elif isinstance(patch.setdefault(name, {}), dict):
            patch[name][signal] = None
    ordered = change.as_json()
    signals = ordered.pop(SIGNALS, {})
    if signals:
        patch[SIGNALS] = (patch.get(SIGNALS) or {}) | signals
    return patch | ordered


def _of_operator(name: str) -> SignalSpec:
    return SignalSpec(kind=SignalKind.SQL, off=True, name=name)
