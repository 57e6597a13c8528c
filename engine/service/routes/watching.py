"""Watching a job: its history, and a stream of what happens to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Final

from engine.ledger.records import HistoryEntry
from engine.service.access import Scope
from engine.service.problems import BadRequest
from engine.service.routes.finding import CONNECTION, find, shown
from engine.service.routing import Call, Parameter, Reply, Route
from engine.service.station import Station
from engine.service.watcher import News, Sight, Watch
from engine.wire import shapes
from engine.wire.shapes import Detail

HEARTBEAT_S: Final = 15.0
"""Between two signs of life in a stream in which nothing happens: proxies close what is silent for long."""

RETRY_MS: Final = 2000
"""How long a browser waits before it comes back."""


async def history(call: Call) -> Reply:
    """What happened to a job, oldest first; also of one that is removed."""
    station, job, query = await find(call, gone=True), call.path["job"], call.query
    limit = int(query["limit"])
    async with station.ledger(call.identity) as ledger:
        if query["last"] is not None or query["since"] is not None:
            last = min(limit, int(query["last"] or limit))
            entries = list(await ledger.history(job, since_s=query["since"], limit=last))
            more = False
        else:
            found = await ledger.history_after({job: int(query["after"])}, limit + 1)
            entries, more = [entry for _, entry in found[:limit]], len(found) > limit
    shown = [history_entry(entry) for entry in entries]
    return Reply(shapes.HistoryPage(entries=shown, next=str(entries[-1].id) if more else None))


def history_entry(entry: HistoryEntry) -> shapes.HistoryEntry:
    """A line of the history as it travels."""
    return shapes.HistoryEntry.model_validate(entry.as_json())


# -- the stream -------------------------------------------------------------------------------------------------------


async def events(call: Call) -> Reply:
    """Server-sent events until the job is over.  The number of an event is the history's own, so that any daemon on
    the same ledger can go on where another one ended.
    """
    station, seen = await find(call, gone=True), _last_event(call)
    return Reply(stream=_stream(call, station, seen), media_type="text/event-stream")


def _last_event(call: Call) -> int | None:
    text = call.headers.get("last-event-id", "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        detail = Detail(parameter="last-event-id", message="is none of ours")
        raise BadRequest("a header does not fit", errors=(detail,))
    return int(text)


async def _stream(call: Call, station: Station, seen: int | None) -> AsyncIterator[bytes]:
    draining, is_over = asyncio.create_task(call.daemon.draining.wait()), False
    try:
        yield f"retry: {RETRY_MS}\n\n".encode()
        async with station.watcher.watch(call.path["job"], seen) as watch:
            while True:
                news = await _next(watch, draining)
                if not call.daemon.doorkeeper.still_knows(call.identity):
                    yield b": who may look has changed; come back\n\n"
                    return
                for piece in (b": still there\n\n",) if news is None else _told(call, station, news):
                    if draining.done():
                        yield b": this daemon is about to end; come back, and go on from the last event\n\n"
                        return
                    yield piece
                if news is not None:
                    is_over = news.gone or (is_over if news.sight is None else news.sight.status.state.is_final)
                    if is_over and news.is_all:
                        yield _event("end", "{}")
                        return
    finally:
        draining.cancel()


async def _next(watch: Watch, draining: asyncio.Task[bool]) -> News | None:
    """What came, or None when it is time for a sign of life, or to go."""
    coming = asyncio.create_task(watch.next())
    try:
        await asyncio.wait((coming, draining), timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
        return coming.result() if coming.done() else None
    finally:
        coming.cancel()


def _told(call: Call, station: Station, news: News) -> Iterator[bytes]:
    for entry in news.entries:
        yield _event("history", history_entry(entry).model_dump_json(), number=entry.id)
    if news.sight is not None:
        yield _event("status", _text(call, station, news.sight))
    if news.trouble is not None:
        yield _event("trouble", json.dumps({"message": news.trouble}))


def _text(call: Call, station: Station, sight: Sight) -> str:
    """A job as it travels, made once for all who watch it and may see everything of it."""
    if call.identity.connections is not None:
        return shown(call, station, sight.status).model_dump_json()
    if sight.text is None:
        sight.text = shown(call, station, sight.status).model_dump_json()
    return sight.text


def _event(name: str, data: str, *, number: int | None = None) -> bytes:
    head = f"event: {name}\n" if number is None else f"id: {number}\nevent: {name}\n"
    return f"{head}data: {data}\n\n".encode()


ROUTES = (
    Route(
        "GET",
        "/v1/jobs/{job}/events",
        "watch_job",
        "What happens to a job, as server-sent events: history, status, trouble, end",
        Scope.READ,
        events,
        media_type="text/event-stream",
        parameters=(CONNECTION,),
        problems=("unknown_job", "ambiguous_job", "cannot_connect"),
    ),
    Route(
        "GET",
        "/v1/jobs/{job}/history",
        "get_history",
        "What happened to a job, when, why, and who did it; oldest first. It outlives the job",
        Scope.READ,
        history,
        answer=shapes.HistoryPage,
        parameters=(
            Parameter("limit", "integer", "At most so many.", default=200, minimum=1, maximum=1000),
            Parameter("after", "integer", "Only what came after the line of this id.", default=0, minimum=0),
            Parameter("since", "duration", "Only what happened in so long, such as 2h.", minimum=0),
            Parameter("last", "integer", "Only the newest so many.", minimum=1, maximum=1000),
            CONNECTION,
        ),
        problems=("unknown_job", "ambiguous_job", "cannot_connect"),
    ),
)
