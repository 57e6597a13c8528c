"""Following a job: the stream of events, taken up again wherever it breaks; polling, where no stream comes through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from pydantic import ValidationError

from engine.client.failures import DaemonError, error_of
from engine.client.plans import (
    LEAST_POLL_S,
    POLL_S,
    Broken,
    Give,
    NotSent,
    Open,
    Outgoing,
    Plan,
    Read,
    Received,
    Sleep,
    query,
    retry_after_s,
)
from engine.client.stream import EventReader, ServerEvent, TooLong
from engine.errors import BackfillError, CannotConnect
from engine.wire import shapes

if TYPE_CHECKING:
    from engine.client.talk import Talk

SILENCE_S: Final = 50.0
"""Longer than three heartbeats of the daemon: a stream that says nothing for so long is broken."""

RETRY_S: Final = 2.0
"""Between two streams, where the daemon has not said otherwise."""

EMPTY_STREAMS: Final = 3
"""So many streams in a row that end before they said anything: something on the way holds them back."""

_NO_STREAM: Final = ("not_found", "method_not_allowed", "not_acceptable")
_LATER: Final = (429, 502, 503, 504)


class _NoStream(Exception):
    """There is a daemon, and no stream from it."""


def followed(talk: Talk, job: str, after: str | None, connection: str | None) -> Plan[None]:
    """The plan behind ``Talk.follow``."""
    following = _Following(talk, job, after, connection)
    try:
        yield from following.by_stream()
    except _NoStream:
        yield from following.by_polling()


class _Following:
    """What was told already, so that nothing is told twice."""

    def __init__(self, talk: Talk, job: str, after: str | None, connection: str | None) -> None:
        self._talk = talk
        self._job = job
        self._connection = connection
        self._last_id = after
        self._seen: shapes.Job | None = None
        self._troubled_since: float | None = None

    # -- by a stream --------------------------------------------------------------------------------------------------

    def by_stream(self) -> Plan[None]:
        """Streams, one after another.  Raises ``_NoStream``."""
        attempt = empty = 0
        reader = EventReader(self._last_id or "")
        while True:
            outcome = yield Open(self._request())
            if isinstance(outcome, Received) and outcome.status == 200:
                if not outcome.headers.get("content-type", "").startswith("text/event-stream"):
                    raise _NoStream
                reader = EventReader(self._last_id or "", reader.retry_s)
                said = yield from self._read(reader)
                if said is None:
                    return
                attempt, empty = (0, 0) if said else (attempt + 1, empty + 1)
                if empty >= EMPTY_STREAMS:
                    raise _NoStream
                yield from self._rest(self._talk.habits.random.uniform(0.5, 1.0) * (reader.retry_s or RETRY_S))
                continue
            error, asked_s = self._turned_away(outcome)
            yield from self._trouble(error)
            yield Sleep(self._talk.habits.pause_s(attempt, asked_s))
            attempt += 1

    def _request(self) -> Outgoing:
        headers = {"accept": "text/event-stream"}
        if self._last_id:
            headers["last-event-id"] = self._last_id
        path = f"/v1/jobs/{quote(self._job, safe='')}/events"
        return Outgoing("GET", path, query({"connection": self._connection}), headers, timeout_s=SILENCE_S)

    def _turned_away(self, outcome: Received | NotSent | Broken) -> tuple[BackfillError, float | None]:
        """What keeps the stream away for now.  Raises what will keep it away for good."""
        if not isinstance(outcome, Received):
            return self._talk.habits.unreachable(outcome), None
        error = error_of(outcome.status, outcome.body, self._talk.habits.daemon)
        if outcome.status in _LATER:
            return error, retry_after_s(outcome)
        if isinstance(error, DaemonError) and (error.code in _NO_STREAM or outcome.status == 406):
            raise _NoStream
        raise error

    def _read(self, reader: EventReader) -> Plan[bool | None]:
        """One stream to its end.  None when the job has ended, else whether it was more than opened."""
        while True:
            piece = yield Read()
            if piece is None or isinstance(piece, Broken):
                return reader.heard
            try:
                for event in reader.feed(piece):
                    if event.kind == "end":
                        yield from self._last_look()
                        return None
                    yield from self._told(event)
            except TooLong:
                raise DaemonError("the daemon's stream has no end of a line", code="unexpected_answer") from None
            if reader.heard:  # a heartbeat is a sign of life, too
                self._troubled_since = None

    def _told(self, event: ServerEvent) -> Plan[None]:
        try:
            match event.kind:
                case "history":
                    entry = shapes.HistoryEntry.model_validate_json(event.data)
                    self._last_id = event.id or str(entry.id)
                    yield Give(entry)
                case "status":
                    seen = shapes.Job.model_validate_json(event.data)
                    self._begin_at(seen)
                    yield from self._show(seen)
                case "trouble":
                    yield Give(shapes.Trouble.model_validate_json(event.data))
                case _:  # of a newer daemon
                    return
        except ValidationError:
            raise DaemonError(f"the daemon's event {event.kind} has another form", code="unexpected_answer") from None

    # -- by polling ---------------------------------------------------------------------------------------------------

    def by_polling(self) -> Plan[None]:
        """The same by requests that the daemon holds back until there is news."""
        hold_s = 0.0
        while True:
            looked = self._talk.habits.now()
            try:
                known = None if self._seen is None else self._seen.revision
                seen = yield from self._talk.look(self._job, hold_s, "change", self._connection, unless=known)
                if seen is not None:
                    self._begin_at(seen)
                history = yield from self._talk.history_after(self._job, self._last_id, self._connection)
            except CannotConnect as error:
                yield from self._trouble(error)
                continue
            self._troubled_since = None
            for entry in history:
                self._last_id = str(entry.id)
                yield Give(entry)
            if seen is not None:
                yield from self._show(seen)
                if seen.state.is_final:
                    return
            hold_s = POLL_S
            yield from self._rest(LEAST_POLL_S - (self._talk.habits.now() - looked))

    # -- both ---------------------------------------------------------------------------------------------------------

    def _begin_at(self, seen: shapes.Job) -> None:
        """Who has not said where to begin begins with what comes behind the first look, by stream and by polling.

        Without it, a stream taken up anew would leave out what happened between the two.
        """
        if not self._last_id:
            self._last_id = seen.revision

    def _show(self, seen: shapes.Job) -> Plan[None]:
        if seen != self._seen:
            self._seen = seen
            yield Give(seen)

    def _last_look(self) -> Plan[None]:
        """The job as it ended, where the stream did not say so."""
        if self._seen is None or not self._seen.state.is_final:
            yield from self._show((yield from self._talk.job(self._job, connection=self._connection)))

    def _trouble(self, error: BackfillError) -> Plan[None]:
        """Tells it once; raises it when it has lasted too long."""
        now = self._talk.habits.now()
        if self._troubled_since is None:
            self._troubled_since = now
            yield Give(shapes.Trouble(message=error.message))
        elif now - self._troubled_since > self._talk.habits.patience_s:
            raise error

    def _rest(self, seconds: float) -> Plan[None]:
        if seconds > 0:
            yield Sleep(seconds)
