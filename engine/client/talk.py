"""What is said to a daemon: every route of the API as a plan, and the two conversations made of several requests,
``wait`` and ``follow``.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from engine.client.failures import DaemonError
from engine.client.following import followed
from engine.client.plans import (
    ANSWER_S,
    LEAST_POLL_S,
    POLL_S,
    Ask,
    Habits,
    Outgoing,
    Plan,
    Received,
    Sleep,
    answered,
    query,
    shaped,
    text,
)
from engine.errors import Busy, UsageError
from engine.model import JobState
from engine.wire import shapes

A = TypeVar("A")

Until = Literal["final", "done", "paused", "change"]

SLOW_ANSWER_S: Final = 150.0
"""Of routes that look at the tables themselves; the daemon gives up after two minutes."""

_HEADER: Final = re.compile(r"[\x21-\x7e]{1,300}")
_STATES: Final = {"final": (), "done": (), "paused": (JobState.PAUSED,)}


Followed = shapes.Job | shapes.HistoryEntry | shapes.Trouble
"""What ``follow`` gives: the job whenever it has changed, lines of its history, and what keeps news away for now."""


class Talk:
    """The plans of one client."""

    def __init__(self, habits: Habits) -> None:
        self.habits = habits

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Plan[shapes.Job]:
        """Begin the job of ``spec``, or find it: the same spec is the same job, however often it is submitted.

        ``spec`` names connections of the operator in place of connection strings.  Without an ``idempotency_key``
        each call has one of its own, which its repetitions share; give one to make several calls a single one.
        Raises ``SpecError``, ``SpecChanged`` and ``PreflightRefused``.
        """
        key = idempotency_key or secrets.token_hex(16)
        return self._change("/v1/jobs", spec, shapes.Job, key=key, repeatable=True, timeout_s=SLOW_ANSWER_S)

    def jobs(
        self,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        state: JobState | str | None = None,
        connection: str | None = None,
    ) -> Plan[shapes.JobPage]:
        """One page of jobs, the newest first; ``cursor``: the page before's ``next``."""
        return self._get(
            "/v1/jobs",
            shapes.JobPage,
            connection=connection,
            limit=limit,
            cursor=cursor,
            state=None if state is None else str(state),
        )

    def all_jobs(self, *, state: JobState | str | None = None, connection: str | None = None) -> Plan[list[shapes.Job]]:
        """All jobs, the newest first, page by page."""
        found: list[shapes.Job] = []
        cursor: str | None = None
        while True:
            page = yield from self.jobs(limit=shapes.MAX_PAGE, cursor=cursor, state=state, connection=connection)
            found += page.jobs
            cursor = page.next
            if cursor is None:
                return found

    def job(self, job: str, *, connection: str | None = None) -> Plan[shapes.Job]:
        """The job as it is now.  Raises ``UnknownJob``."""
        return self._get(_job(job), shapes.Job, connection=connection)

    def changed(
        self, job: str, revision: str | None, *, within_s: float = POLL_S, connection: str | None = None
    ) -> Plan[shapes.Job | None]:
        """The job, as soon as its revision is another one; None when ``within_s`` pass before."""
        return self.look(job, within_s, "change", connection, unless=revision)

    def pause(
        self, job: str, *, reason: str | None = None, if_match: str | None = None, connection: str | None = None
    ) -> Plan[shapes.Job]:
        """Stop the job after the chunks in hand, until somebody resumes it.

        ``if_match``: a revision of the job; refused when something else has changed it since.
        """
        return self._order(job, "pause", reason, if_match, connection)

    def resume(
        self, job: str, *, reason: str | None = None, if_match: str | None = None, connection: str | None = None
    ) -> Plan[shapes.Job]:
        """Let a paused job go on, or a failed one whose cause is mended."""
        return self._order(job, "resume", reason, if_match, connection)

    def cancel(
        self, job: str, *, reason: str | None = None, if_match: str | None = None, connection: str | None = None
    ) -> Plan[shapes.Job]:
        """End the job for good; rows that were moved stay."""
        return self._order(job, "cancel", reason, if_match, connection)

    def pace(
        self,
        job: str,
        change: Mapping[str, Any],
        *,
        reason: str | None = None,
        if_match: str | None = None,
        connection: str | None = None,
    ) -> Plan[shapes.Job]:
        """Change how fast the job may go: ``{"max_rows_per_s": 5000}``; None forgets an order, the rest stays.

        Its keys are those of ``engine.wire.shapes.PaceChange``.
        """
        body = dict(change) if reason is None else {**change, "reason": reason}
        return self._change(
            f"{_job(job)}/pace", body, shapes.Job, method="PATCH", connection=connection, if_match=if_match,
            media_type="application/merge-patch+json",
        )  # fmt: skip

    def verify(
        self,
        job: str,
        *,
        repair: bool = False,
        delete_extra: bool = False,
        settle: str | None = None,
        if_match: str | None = None,
        connection: str | None = None,
    ) -> Plan[shapes.Job]:
        """Have both sides of a job that is done compared; ``wait`` tells when that is over."""
        body = {"repair": repair, "delete_extra": delete_extra} | ({} if settle is None else {"settle": settle})
        return self._change(
            f"{_job(job)}/verify", body, shapes.Job, connection=connection, if_match=if_match, timeout_s=SLOW_ANSWER_S
        )

    def restart(
        self,
        job: str,
        *,
        force: bool = False,
        reason: str | None = None,
        if_match: str | None = None,
        connection: str | None = None,
    ) -> Plan[shapes.Job]:
        """Forget the job's progress and begin it anew."""
        body = {"force": force} | ({} if reason is None else {"reason": reason})
        return self._change(
            f"{_job(job)}/restart", body, shapes.Job, connection=connection, if_match=if_match, timeout_s=SLOW_ANSWER_S
        )

    def remove(
        self, job: str, *, force: bool = False, if_match: str | None = None, connection: str | None = None
    ) -> Plan[shapes.Removed]:
        """Take the job out of the ledger, and its triggers off the table; rows of tables and history stay."""
        return self._change(
            _job(job), None, shapes.Removed, method="DELETE", connection=connection, if_match=if_match,
            force=True if force else None, timeout_s=SLOW_ANSWER_S,
        )  # fmt: skip

    # -- what is known of a job ---------------------------------------------------------------------------------------

    def history(
        self,
        job: str,
        *,
        after: str | int | None = None,
        limit: int | None = None,
        since_s: float | None = None,
        last: int | None = None,
        connection: str | None = None,
    ) -> Plan[shapes.HistoryPage]:
        """One page of what happened, oldest first; ``after``: the page before's ``next``, or an entry's number.

        Or only what happened in the last ``since_s``, and only the ``last`` entries; these come in one page.
        """
        return self._get(
            f"{_job(job)}/history",
            shapes.HistoryPage,
            connection=connection,
            after=after,
            limit=limit,
            since=None if since_s is None else f"{round(since_s * 1000)}ms",
            last=last,
        )

    def recent(self, job: str, *, connection: str | None = None) -> Plan[shapes.Recent]:
        """How fast it went in the last ten minutes, as far as that daemon worked it."""
        return self._get(f"{_job(job)}/recent", shapes.Recent, connection=connection)

    def whole_history(self, job: str, *, connection: str | None = None) -> Plan[list[shapes.HistoryEntry]]:
        """All that happened, page by page."""
        return self.history_after(job, None, connection)

    def quarantine(
        self,
        job: str,
        *,
        limit: int | None = None,
        after: str | int | None = None,
        show_rows: bool = False,
        connection: str | None = None,
    ) -> Plan[shapes.Quarantine]:
        """One page of the rows that are set aside, oldest first; ``after``: the page before's ``next``.

        ``show_rows``: with their keys, where the operator allows it.
        """
        return self._get(
            f"{_job(job)}/quarantine",
            shapes.Quarantine,
            connection=connection,
            limit=limit,
            after=after,
            show_rows=True if show_rows else None,
        )

    def retry_quarantine(
        self, job: str, ids: Sequence[int] | None = None, *, connection: str | None = None
    ) -> Plan[shapes.Retried]:
        """Try rows again, each by itself; None: all of them."""
        path = f"{_job(job)}/quarantine/retry"
        return self._change(path, _rows(ids), shapes.Retried, connection=connection, timeout_s=SLOW_ANSWER_S)

    def drop_quarantine(
        self, job: str, ids: Sequence[int] | None = None, *, connection: str | None = None
    ) -> Plan[shapes.Dropped]:
        """Forget rows that are set aside; None: all of them."""
        return self._change(f"{_job(job)}/quarantine/drop", _rows(ids), shapes.Dropped, connection=connection)

    def gate(self, job: str, *, connection: str | None = None) -> Plan[shapes.Gate]:
        """Whether the old side may be given up, with the evidence."""
        return self._get(f"{_job(job)}/gate", shapes.Gate, connection=connection, timeout_s=SLOW_ANSWER_S)

    def grants(
        self,
        job: str,
        *,
        to: str | None = None,
        login: str | None = None,
        repair: bool = False,
        connection: str | None = None,
    ) -> Plan[shapes.Grants]:
        """The GRANT script with which a role can run the job."""
        return self._get(
            f"{_job(job)}/grants",
            shapes.Grants,
            connection=connection,
            to=to,
            login=login,
            repair=True if repair else None,
            timeout_s=SLOW_ANSWER_S,
        )

    def dual_write(self, job: str, *, script: bool = False, connection: str | None = None) -> Plan[shapes.DualWrite]:
        """Whether our triggers are there, as the job needs them; ``script``: with all that installing would do."""
        return self._get(
            f"{_job(job)}/dualwrite",
            shapes.DualWrite,
            connection=connection,
            script=True if script else None,
            timeout_s=SLOW_ANSWER_S,
        )

    def change_dual_write(
        self,
        job: str,
        action: Literal["install", "remove"],
        *,
        patience: str | None = None,
        force: bool = False,
        spec: Mapping[str, Any] | None = None,
        connection: str | None = None,
    ) -> Plan[shapes.DualWriteChanged]:
        """Install or remove our triggers, where the operator allows it.

        ``spec``: of a job that is not begun yet, which is when they are to be installed.
        """
        body: dict[str, Any] = {"action": action} | ({"force": True} if force else {})
        body |= {} if patience is None else {"patience": patience}
        body |= {} if spec is None else {"spec": spec}
        path = f"{_job(job)}/dualwrite"
        return self._change(path, body, shapes.DualWriteChanged, connection=connection, timeout_s=SLOW_ANSWER_S)

    # -- before a job -------------------------------------------------------------------------------------------------

    def plan(self, spec: Mapping[str, Any], *, show_rows: bool = False) -> Plan[shapes.Plan]:
        """What a job would do.  Touches nothing.  ``show_rows``: with rows before and after the transform, where the
        operator allows it.
        """
        return self._change(
            "/v1/plans",
            spec,
            shapes.Plan,
            show_rows=True if show_rows else None,
            repeatable=True,
            timeout_s=SLOW_ANSWER_S,
        )

    def rehearse(self, spec: Mapping[str, Any], *, chunks: int | None = None) -> Plan[shapes.Rehearsal]:
        """Some chunks of the job in transactions that roll back, and what the whole job would cost."""
        return self._change("/v1/rehearsals", spec, shapes.Rehearsal, chunks=chunks, timeout_s=SLOW_ANSWER_S)

    # -- the daemon ---------------------------------------------------------------------------------------------------

    def connections(self) -> Plan[shapes.Connections]:
        """The databases that the caller may name."""
        return self._get("/v1/connections", shapes.Connections)

    def doctor(self, connection: str) -> Plan[shapes.Examination]:
        """What a connection's database is, and what the daemon may do there."""
        path = f"/v1/connections/{quote(connection, safe='')}/doctor"
        return self._get(path, shapes.Examination, timeout_s=SLOW_ANSWER_S)

    def me(self) -> Plan[shapes.Me]:
        """Who the daemon takes the caller for, and what that allows."""
        return self._get("/v1/me", shapes.Me)

    def live(self) -> Plan[shapes.Health]:
        """Whether the process lives."""
        return self._get("/livez", shapes.Health, accepts=(503,))

    def ready(self) -> Plan[shapes.Health]:
        """Whether the daemon has all that it needs; a daemon that has not says what is missing."""
        return self._get("/readyz", shapes.Health, accepts=(503,))

    def metrics(self) -> Plan[str]:
        """The daemon's metrics, in the text form of Prometheus."""
        return self._ask("GET", "/metrics", None, text)

    def openapi(self) -> Plan[dict[str, Any]]:
        """The description of the API."""
        return self._ask("GET", "/openapi.json", None, _object)

    # -- conversations ------------------------------------------------------------------------------------------------

    def wait(
        self, job: str, *, until: Until = "final", timeout_s: float | None = None, connection: str | None = None
    ) -> Plan[shapes.Job]:
        """The job, as soon as it has ended (``final``; ``done`` the same, whatever the end was), is ``paused`` or has
        ended, or has another revision than at the beginning (``change``).

        Outlives restarts of the daemon.  Raises ``Busy`` when ``timeout_s`` pass before.
        """
        began = self.habits.now()
        seen = yield from self.job(job, connection=connection)
        first = seen.revision
        while not (seen.state.is_final or seen.state in _STATES.get(until, ()) or _is_news(until, first, seen)):
            looked = self.habits.now()
            left_s = POLL_S if timeout_s is None else timeout_s - (looked - began)
            if left_s <= 0:
                raise Busy(f"job {job} is {seen.state.value} still, after {timeout_s:g} s")
            news = yield from self.look(job, min(POLL_S, left_s), until, connection, unless=seen.revision)
            seen = news or seen
            if (too_soon_s := LEAST_POLL_S - (self.habits.now() - looked)) > 0:
                yield Sleep(min(too_soon_s, left_s))
        return seen

    def follow(self, job: str, *, after: str | int | None = None, connection: str | None = None) -> Plan[None]:
        """The job's life as it happens, until it ends: a ``Job`` whenever it has changed, each ``HistoryEntry``, and
        ``Trouble`` while the daemon is away.

        ``after``: begin behind that entry of the history, as one who was cut off does; None: with what happens from now
        on.  Nothing is lost or told twice over restarts of the daemon: the stream goes on behind the last entry.
        """
        return followed(self, job, None if after is None else str(after), connection)

    # -- plumbing -----------------------------------------------------------------------------------------------------

    def look(
        self, job: str, hold_s: float, until: str, connection: str | None, *, unless: str | None = None
    ) -> Plan[shapes.Job | None]:
        """The job, when there is news or after ``hold_s``; None when its revision is still ``unless``."""
        waits = hold_s >= 1
        return self._ask(
            "GET",
            _job(job),
            None,
            _unless_unchanged,
            connection=connection,
            wait=f"{hold_s:.0f}s" if waits else None,
            until=until if waits else None,
            unless=unless,
            timeout_s=hold_s + ANSWER_S,
        )

    def history_after(self, job: str, after: str | None, connection: str | None) -> Plan[list[shapes.HistoryEntry]]:
        """What happened behind that entry, page by page; None: from the beginning."""
        found: list[shapes.HistoryEntry] = []
        while True:
            page = yield from self.history(job, after=after, limit=shapes.MAX_PAGE, connection=connection)
            found += page.entries
            if page.next is None or not page.entries:
                return found
            after = page.next

    def _order(
        self, job: str, order: str, reason: str | None, if_match: str | None, connection: str | None
    ) -> Plan[shapes.Job]:
        body = {} if reason is None else {"reason": reason}
        return self._change(f"{_job(job)}/{order}", body, shapes.Job, connection=connection, if_match=if_match)

    def _get(self, path: str, shape: type[A], **options: Any) -> Plan[A]:
        return self._ask("GET", path, None, _reader(shape), **options)

    def _change(
        self, path: str, body: Mapping[str, Any] | None, shape: type[A], *, method: str = "POST", **options: Any
    ) -> Plan[A]:
        return self._ask(method, path, body, _reader(shape), **options)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        read: Callable[[Received], A],
        *,
        if_match: str | None = None,
        unless: str | None = None,
        key: str | None = None,
        repeatable: bool = False,
        accepts: tuple[int, ...] = (),
        timeout_s: float = ANSWER_S,
        media_type: str = "application/json",
        **parameters: Any,
    ) -> Plan[A]:
        headers: dict[str, str] = {"accept": "application/json, application/problem+json, text/plain"}
        if body is not None:
            headers["content-type"] = media_type
        if if_match is not None:
            headers["if-match"] = f'"{if_match}"'
        if unless is not None:
            headers["if-none-match"] = f'"{unless}"'
        if key is not None:
            headers["idempotency-key"] = key
        for name in ("if-match", "if-none-match", "idempotency-key"):
            if not _HEADER.fullmatch(headers.get(name, "x")):
                raise UsageError(f"{name} must be printable ASCII without spaces, and not long")
        request = Outgoing(
            method=method,
            path=path,
            parameters=query(parameters),
            headers=headers,
            body=None if body is None else _encoded(body),
            timeout_s=timeout_s,
        )
        return answered(Ask(request, read, repeatable or method == "GET", accepts), self.habits)


def _is_news(until: str, first: str, seen: shapes.Job) -> bool:
    return until == "change" and seen.revision != first


_read_job: Final = shaped(shapes.Job)


def _job(job: str) -> str:
    return f"/v1/jobs/{quote(job, safe='')}"


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError):
        raise UsageError("that cannot be written as JSON", hint="texts, numbers, lists and mappings") from None


def _rows(ids: Sequence[int] | None) -> dict[str, Any]:
    return {"all": True} if ids is None else {"ids": list(ids)}


def _reader(shape: type[A]) -> Callable[[Received], A]:
    assert issubclass(shape, BaseModel)
    return shaped(shape)


def _unless_unchanged(received: Received) -> shapes.Job | None:
    return None if received.status == 304 else _read_job(received)


def _object(received: Received) -> dict[str, Any]:
    try:
        found = json.loads(received.body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DaemonError("the daemon's answer is no JSON object", code="unexpected_answer")
    return found
