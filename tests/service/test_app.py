"""The application between the socket and the handlers: what it lets through, and how it says no."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import BackfillError
from engine.service.access import Peer, Scope
from engine.service.app import SLOW_AT_ONCE
from engine.service.problems import MAX_DETAILS, BadRequest
from engine.service.reading import MAX_DEPTH, MAX_VALUES, json_of, pointer
from engine.service.routes.table import ROUTES
from engine.service.routing import Parameter, Reply, Table
from engine.service.transport import PEER
from engine.wire import shapes
from tests.support.asking import OURSELVES, a_route, asking, config_with

JSON = {"content-type": "application/json"}
PARAMETERS = (
    Parameter("limit", "integer", "How many.", default=50, minimum=1, maximum=200),
    Parameter("force", "boolean", "Whether.", default=False),
    Parameter("wait", "duration", "How long.", maximum=60),
    Parameter("state", "string", "Which.", choices=("running", "done")),
    Parameter("since", "string", "A day.", pattern=r"\d{4}-\d\d-\d\d"),
)


# -- where ------------------------------------------------------------------------------------------------------------


async def test_every_answer_names_its_request_and_forbids_guessing_and_keeping():
    answer = await asking(a_route()).client.get("/it")
    assert answer.status_code == 200 and len(answer.headers["x-request-id"]) == 16
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    other = await asking(a_route()).client.get("/it")
    assert other.headers["x-request-id"] != answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/", "/it/", "//it", "/it/more", "/It", "/%ff", "/it%00", "/it;v=1", "/it%2f", "*"])
async def test_what_is_almost_a_path_is_none(path):
    asked = asking(a_route())
    answer = await asked.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found") and not asked.calls


async def test_letters_of_a_path_may_be_percent_encoded_but_an_encoded_slash_parts_nothing():
    asked = asking(a_route("/v1/jobs/{job}"), a_route("/v1/jobs/{job}/history"))
    assert (await asked.client.get("/v1/%6Aobs/or%64ers")).status_code == 200
    assert asked.calls[0].path == {"job": "orders"}
    answer = await asked.client.get("/v1/jobs/orders%2Fhistory")
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_job")
    assert len(asked.calls) == 1


@pytest.mark.parametrize("name", ["Orders", "..", "%00", "a b", "x" * 200, "'", "ä", "%F0%9F%92%A9", "-a"])
async def test_a_name_that_no_job_can_have_reaches_no_handler(name):
    asked = asking(a_route("/v1/jobs/{job}"))
    answer = await asked.client.get(f"/v1/jobs/{name}")
    assert answer.status_code == 404 and not asked.calls


async def test_another_method_is_told_which_ones_there_are():
    asked = asking(a_route(), a_route(method="POST"), a_route(method="DELETE"))
    answer = await asked.client.put("/it")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, POST"
    options = await asked.client.options("/it")
    assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", answer.headers["allow"])


async def test_head_says_what_get_would_say_without_saying_it():
    asked = asking(a_route())
    get, head = await asked.client.get("/it"), await asked.client.head("/it")
    assert head.status_code == 200 and head.content == b""
    same = ("content-length", "content-type", "cache-control")
    assert [head.headers[name] for name in same] == [get.headers[name] for name in same]
    assert (await asking(a_route(method="POST")).client.head("/it")).status_code == 405


async def test_head_of_a_stream_begins_no_stream():
    closed = asyncio.Event()

    async def stream():
        try:
            yield b": here\n\n"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def handler(call):
        return Reply(stream=stream(), media_type="text/event-stream")

    answer = await asyncio.wait_for(asking(a_route(handler=handler)).client.head("/it"), 5)
    assert answer.status_code == 200 and answer.content == b""


def test_a_spelled_out_path_goes_before_a_name_and_nothing_is_there_twice():
    table = Table([a_route("/v1/{job}"), a_route("/v1/me")])
    assert table.at(("v1", "me"))["GET"].path == "/v1/me"
    assert table.at(("v1", "other"))["GET"].path == "/v1/{job}"
    with pytest.raises(ValueError, match="two routes"):
        Table([a_route("/v1/{job}"), a_route("/v1/{name}")])


async def test_a_host_that_is_not_ours_is_told_so_before_anything_else():
    asked = asking(a_route(scope=None))
    answer = await asked.client.get("/nothing", headers={"host": "evil.example"})
    assert (answer.status_code, answer.json()["code"]) == (421, "misdirected")


# -- the query --------------------------------------------------------------------------------------------------------


async def test_parameters_arrive_converted_and_with_their_defaults():
    asked = asking(a_route(parameters=PARAMETERS))
    assert (await asked.client.get("/it?limit=7&force=true&wait=1.5m&state=done&since=2026-01-31")).status_code == 400
    assert (await asked.client.get("/it?limit=7&force=true&wait=500ms&state=done&since=2026-01-31")).status_code == 200
    assert dict(asked.calls[0].query) == {
        "limit": 7, "force": True, "wait": 0.5, "state": "done", "since": "2026-01-31",
    }  # fmt: skip
    await asked.client.get("/it")
    assert asked.calls[1].query["limit"] == 50 and asked.calls[1].query["state"] is None


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"), ("limit=201", "limit"), ("limit=1e2", "limit"), ("limit=", "limit"),
        ("limit=1&limit=2", "limit"), ("limit=%D9%A1", "limit"), ("limit=" + "9" * 30, "limit"), ("force=1", "force"),
        ("force=True", "force"), ("wait=30", "wait"), ("wait=61s", "wait"), ("wait=-1s", "wait"),
        ("wait=" + "9" * 4000 + "s", "wait"), ("state=failed", "state"), ("state=done%00", "state"),
        ("since=yesterday", "since"), ("since=2026-01-31%0a", "since"), ("colour=red", "colour"),
    ],
)  # fmt: skip
async def test_a_parameter_that_does_not_fit_is_named(query, parameter):
    asked = asking(a_route(parameters=PARAMETERS))
    answer = await asked.client.get(f"/it?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert [error["parameter"] for error in answer.json()["errors"]] == [parameter]
    assert not asked.calls


async def test_every_parameter_that_does_not_fit_is_named_at_once():
    answer = await asking(a_route(parameters=PARAMETERS)).client.get("/it?limit=0&force=maybe&x=1")
    assert [error["parameter"] for error in answer.json()["errors"]] == ["limit", "force", "x"]


@pytest.mark.parametrize("query", ["limit=%ff", "&".join(f"limit{n}=1" for n in range(4_000)), "%C0%80=1"])
async def test_a_query_that_cannot_be_read_is_refused_as_a_whole(query):
    asked = asking(a_route(parameters=PARAMETERS))
    answer = await asked.client.get(f"/it?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request") and not asked.calls


# -- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "seen"), [('"17"', "17"), ("*", None), (None, None), ('"of another release"', "of another release")]
)
async def test_a_revision_arrives_without_its_quotes(sent, seen):
    asked = asking(a_route(method="POST", takes_if_match=True))
    await asked.client.post("/it", headers={"if-match": sent} if sent is not None else {})
    assert [call.if_match for call in asked.calls] == [seen] or (seen or "").count(" ")


@pytest.mark.parametrize("sent", ["17", 'W/"17"', '"17", "18"', '"', '""', '"' + "7" * 65 + '"', '"\xff"', "**"])
async def test_a_precondition_that_is_no_revision_is_refused_and_nothing_is_done(sent):
    asked = asking(a_route(method="POST", takes_if_match=True))
    answer = await asked.client.post("/it", headers=[(b"if-match", sent.encode("latin-1"))])
    assert answer.status_code == 400 and answer.json()["errors"][0]["parameter"] == "if-match" and not asked.calls


@pytest.mark.parametrize("sent", ["", " ", "a b", "x" * 201, "ä", "\x7f"])
async def test_a_key_that_is_no_key_is_refused(sent):
    asked = asking(a_route(method="POST", takes_idempotency_key=True))
    answer = await asked.client.post("/it", headers=[(b"idempotency-key", sent.encode("latin-1"))])
    assert answer.status_code == 400 and not asked.calls


async def test_a_header_that_decides_something_is_there_once():
    asked = asking(a_route(method="POST", takes_if_match=True))
    answer = await asked.client.post("/it", headers=[("if-match", '"1"'), ("if-match", '"2"')])
    assert answer.status_code == 400 and answer.json()["errors"][0]["parameter"] == "if-match" and not asked.calls


async def test_a_revision_that_the_caller_has_is_not_sent_again():
    async def handler(call):
        return Reply(shapes.Health(status="ok"), headers={"etag": '"5"'})

    asked = asking(a_route(handler=handler), a_route(method="POST", handler=handler))
    for seen in ('"5"', 'W/"5"', '"4", "5"', "*"):
        answer = await asked.client.get("/it", headers={"if-none-match": seen})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", '"5"')
    assert (await asked.client.get("/it", headers={"if-none-match": '"4"'})).status_code == 200
    assert (await asked.client.post("/it", headers={"if-none-match": '"5"'})).status_code == 200


# -- bodies -----------------------------------------------------------------------------------------------------------

HOSTILE = {
    "no JSON": (b"{", 400, "bad_request"),
    "something after it": (b"{} {}", 400, "bad_request"),
    "not UTF-8": (b'{"reason": "\xff"}', 400, "bad_request"),
    "UTF-16": ('{"reason": "x"}'.encode("utf-16"), 400, "bad_request"),
    "a byte order mark": (b'\xef\xbb\xbf{"reason": "x"}', 400, "bad_request"),
    "NaN": (b'{"reason": NaN}', 400, "bad_request"),
    "infinity": (b'{"reason": -Infinity}', 400, "bad_request"),
    "beyond a double": (b'{"reason": 1e999}', 400, "bad_request"),
    "a huge integer": (b'{"reason": ' + b"9" * 5000 + b"}", 400, "bad_request"),
    "a key twice": (b'{"reason": "a", "reason": "b"}', 400, "bad_request"),
    "NUL": (b'{"reason": "a\\u0000b"}', 400, "bad_request"),
    "NUL in a key": (b'{"a\\u0000b": 1}', 400, "bad_request"),
    "half of a surrogate pair": (b'{"reason": "\\ud83d"}', 400, "bad_request"),
    "half of one in a key": (b'{"\\ud83d": 1}', 400, "bad_request"),
    "lists without end": (b"[" * 100_000, 400, "bad_request"),
    "lists in lists": (b'{"reason": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", 400, "bad_request"),
    "too many values": (b"[" + b"0," * MAX_VALUES + b"0]", 400, "bad_request"),
    "a list": (b"[]", 422, "invalid_body"),
    "null": (b"null", 422, "invalid_body"),
    "another type": (b'{"reason": 1}', 422, "invalid_body"),
    "another key": (b'{"raison": "x"}', 422, "invalid_body"),
    "too long a reason": (b'{"reason": "' + b"x" * 501 + b'"}', 422, "invalid_body"),
    "too long a body": (b'{"reason": "' + b"x" * 2**20 + b'"}', 413, "too_large"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_body_that_does_not_fit_reaches_no_handler(name):
    body, status, code = HOSTILE[name]
    asked = asking(a_route(method="POST", request=shapes.Order))
    answer = await asked.client.post("/it", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert not asked.calls and not asked.failures


async def test_a_body_is_stopped_at_its_limit_though_nobody_said_how_long_it_is():
    asked, sent = asking(a_route(method="POST", request=shapes.Order)), 0

    async def for_ever():
        nonlocal sent
        while sent < 2**26:
            sent += 65536
            yield b" " * 65536

    answer = await asyncio.wait_for(asked.client.post("/it", content=for_ever(), headers=JSON), 10)
    assert answer.status_code == 413 and sent <= 2**20 + 3 * 65536


async def test_a_body_that_says_that_it_is_too_long_is_not_read():
    asked, sent = asking(a_route(method="POST", request=shapes.Order)), []

    async def body():
        sent.append(1)
        yield b" "

    for length in ("1048577", "1" * 5000):
        answer = await asked.client.post("/it", content=body(), headers=JSON | {"content-length": length})
        assert answer.status_code == 413
    assert not sent


async def test_a_body_that_does_not_come_is_not_waited_for():
    asked = asking(a_route(method="POST", request=shapes.Order), config=config_with(limits={"body_timeout": 0.05}))

    async def body():
        yield b"{"
        await asyncio.Event().wait()

    answer = await asyncio.wait_for(asked.client.post("/it", content=body(), headers=JSON), 10)
    assert (answer.status_code, answer.json()["code"]) == (408, "too_slow")


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"}, JSON | {"content-encoding": "gzip"},
        {"content-type": "application/merge-patch+json"},
    ],
)  # fmt: skip
async def test_only_json_is_read(headers):
    asked = asking(a_route(method="POST", request=shapes.Order))
    answer = await asked.client.post("/it", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type") and not asked.calls


async def test_a_merge_patch_is_for_patch():
    asked = asking(a_route(method="PATCH", request=shapes.PaceChange))
    headers = {"content-type": 'application/merge-patch+json; charset="UTF-8"'}
    assert (await asked.client.patch("/it", content=b'{"workers": null}', headers=headers)).status_code == 200
    assert asked.calls[0].body.model_fields_set == {"workers"}


async def test_a_route_without_a_body_takes_none():
    asked = asking(a_route(method="DELETE"))
    assert (await asked.client.request("DELETE", "/it", content=b"{}", headers=JSON)).status_code == 400
    assert (await asked.client.delete("/it")).status_code == 200


async def test_ten_thousand_mistakes_make_a_short_answer():
    asked = asking(a_route(method="POST", request=shapes.Rows))
    answer = await asked.client.post("/it", json={"ids": ["x"] * 9_000, "y" * 10_000: 1})
    errors = answer.json()["errors"]
    assert answer.status_code == 422 and len(errors) == MAX_DETAILS + 1 and errors[-1]["message"].endswith(" more")
    assert len(answer.content) < 20_000


@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:0123456789.eE+-\\u dbNaInfity', max_size=60).map(str.encode))
def test_no_bytes_are_more_than_a_bad_request(raw):
    with contextlib.suppress(BadRequest):
        assert json_of(raw) == json.loads(raw)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_json_that_somebody_can_mean_arrives_as_it_was_meant(value):
    assert json_of(json.dumps(value).encode()) == value


def test_a_pointer_is_escaped_and_repeats_only_the_beginning_of_a_strangers_key():
    assert pointer(("a/b~c", 0)) == "/a~1b~0c/0"
    assert len(pointer(("x" * 10_000,))) < 100
    assert pointer(("\ud83d",)) == "/?"


# -- time -------------------------------------------------------------------------------------------------------------


async def test_a_handler_has_its_time_and_no_more():
    ended = asyncio.Event()

    async def handler(call):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    asked = asking(a_route(handler=handler, deadline_s=0.05))
    answer = await asked.client.get("/it")
    assert (answer.status_code, answer.json()["code"]) == (503, "took_too_long") and ended.is_set()
    assert answer.headers["retry-after"] == "2"


async def test_who_asks_to_wait_has_that_much_longer():
    async def handler(call):
        await asyncio.sleep(0.2)
        return Reply(shapes.Health(status="ok"))

    asked = asking(a_route(handler=handler, deadline_s=0.05, parameters=PARAMETERS))
    assert (await asked.client.get("/it")).status_code == 503
    assert (await asked.client.get("/it?wait=30s")).status_code == 200


async def test_a_time_limit_of_the_handlers_own_is_not_taken_for_ours():
    async def handler(call):
        raise TimeoutError

    answer = await asking(a_route(handler=handler)).client.get("/it")
    assert (answer.status_code, answer.json()["code"]) == (503, "cannot_connect")


async def test_of_requests_that_read_the_tables_only_so_many_are_answered_at_once():
    let_go, began = asyncio.Event(), asyncio.Semaphore(0)

    async def handler(call):
        began.release()
        await let_go.wait()
        return Reply(shapes.Health(status="ok"))

    asked = asking(a_route(handler=handler, is_slow=True), a_route("/quick"))
    waiting = [asyncio.create_task(asked.client.get("/it")) for _ in range(SLOW_AT_ONCE)]
    for _ in waiting:
        await began.acquire()
    turned_away = await asyncio.wait_for(asked.client.get("/it"), 5)
    assert (turned_away.status_code, turned_away.json()["code"]) == (503, "overloaded")
    assert int(turned_away.headers["retry-after"]) > 0
    assert (await asked.client.get("/quick")).status_code == 200
    let_go.set()
    assert [(await one).status_code for one in waiting] == [200] * SLOW_AT_ONCE
    assert (await asked.client.get("/it")).status_code == 200


async def test_what_tries_something_out_keeps_no_change_waiting():
    let_go, began = asyncio.Event(), asyncio.Semaphore(0)

    async def handler(call):
        began.release()
        await let_go.wait()
        return Reply(shapes.Health(status="ok"))

    tries = a_route(method="POST", handler=handler, is_slow=True, leaves_nothing=True)
    asked = asking(tries, a_route("/change", method="POST", is_slow=True))
    waiting = [asyncio.create_task(asked.client.post("/it")) for _ in range(SLOW_AT_ONCE)]
    for _ in waiting:
        await began.acquire()
    assert (await asked.client.post("/it")).status_code == 503
    assert (await asked.client.post("/change")).status_code == 200
    let_go.set()
    assert [(await one).status_code for one in waiting] == [200] * SLOW_AT_ONCE


def test_a_removal_is_not_counted_among_what_reads_the_tables():
    assert [route.name for route in ROUTES if route.is_slow and route.method == "DELETE"] == []


async def leave(asked, method, while_running, *, reads=True):
    """Ask by ASGI itself, and leave while the handler runs; ``reads``: take what is sent until then."""
    gone, sent = asyncio.Event(), []
    inbox = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        if inbox:
            return inbox.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if message.get("body") and not reads:
            while_running.set()
            await asyncio.Event().wait()

    scope = {
        "type": "http", "method": method, "path": "/it", "raw_path": b"/it", "query_string": b"", PEER: OURSELVES,
        "headers": [(b"host", b"127.0.0.1:8471")],
    }  # fmt: skip
    answering = asyncio.create_task(asked.app(scope, receive, send))
    await asyncio.wait_for(while_running.wait(), 5)
    gone.set()
    return answering, sent


async def test_a_question_whose_caller_left_is_given_up():
    running, ended = asyncio.Event(), asyncio.Event()

    async def handler(call):
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    answering, sent = await leave(asking(a_route(handler=handler)), "GET", running)
    await asyncio.wait_for(answering, 5)
    assert ended.is_set() and not sent


async def test_a_change_that_was_asked_for_is_finished_and_audited_whoever_listens():
    running, let_go = asyncio.Event(), asyncio.Event()

    async def handler(call):
        running.set()
        await let_go.wait()
        return Reply(shapes.Health(status="ok"))

    asked = asking(a_route(method="POST", handler=handler))
    answering, _ = await leave(asked, "POST", running)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not asked.audited and not answering.done()
    let_go.set()
    await asyncio.wait_for(answering, 5)
    assert [error for _, error in asked.audited] == [None]


async def test_a_rehearsal_whose_caller_left_is_given_up_and_audited_as_such():
    running = asyncio.Event()

    async def handler(call):
        running.set()
        await asyncio.Event().wait()

    asked = asking(a_route(method="POST", handler=handler, leaves_nothing=True, is_slow=True))
    answering, _ = await leave(asked, "POST", running)
    await asyncio.wait_for(answering, 5)
    assert [error.code for _, error in asked.audited] == ["given_up"]


@pytest.mark.parametrize("reads", [True, False])
async def test_a_stream_is_closed_as_soon_as_its_reader_leaves(reads):
    running, closed, streams = asyncio.Event(), asyncio.Event(), []

    async def stream():
        try:
            while True:
                yield b": still here\n\n"
                running.set()
                await asyncio.sleep(0)
        finally:
            closed.set()

    async def handler(call):
        streams.append(stream())  # somebody else holds it, too: it is not closed by being forgotten
        return Reply(stream=streams[0], media_type="text/event-stream")

    answering, sent = await leave(asking(a_route(handler=handler)), "GET", running, reads=reads)
    await asyncio.wait_for(answering, 5)
    assert closed.is_set()
    headers = dict(sent[0]["headers"])
    assert sent[0]["status"] == 200 and headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers


# -- what is told, and to whom ----------------------------------------------------------------------------------------


async def test_an_error_that_nobody_foresaw_is_told_without_its_words_and_logged_by_its_number():
    async def handler(call):
        raise ValueError("the key is zebra")

    asked = asking(a_route(handler=handler))
    answer = await asked.client.get("/it")
    assert (answer.status_code, answer.json()["code"]) == (500, "unexpected") and "zebra" not in answer.text
    [(number, request, error)] = asked.failures
    assert number == answer.headers["x-request-id"] and request == "GET /it" and isinstance(error, ValueError)
    assert answer.json()["instance"].endswith(number)


async def test_every_change_that_is_asked_for_is_audited_whatever_becomes_of_it():
    class Refused(BackfillError):
        code = "busy"
        http_status = 409

    async def handler(call):
        raise Refused("not now")

    asked = asking(
        a_route(method="POST", request=shapes.Order),
        a_route("/no", method="POST", handler=handler),
        a_route("/look"),
    )
    answers = [
        await asked.client.post("/it"),
        await asked.client.post("/it", content=b"{"),
        await asked.client.post("/no"),
        await asked.client.get("/look"),
    ]
    assert [answer.status_code for answer in answers] == [200, 415, 409, 200]
    assert [error and error.code for _, error in asked.audited] == [None, "unsupported_media_type", "busy"]
    assert [call.id for call, _ in asked.audited] == [answer.headers["x-request-id"] for answer in answers[:3]]
    assert {call.identity.signature for call, _ in asked.audited} == {"peer root"}


async def test_an_attempt_without_the_right_is_audited_too():
    config = config_with(auth={"loopback": ["read"]})
    asked = asking(a_route(method="POST", scope=Scope.CONTROL), as_peer=Peer(address="127.0.0.1"), config=config)
    answer = await asked.client.post("/it")
    assert answer.status_code == 403 and not asked.calls
    assert [error.code for _, error in asked.audited] == ["forbidden"]


async def test_an_attempt_without_the_right_is_audited_with_the_job_that_it_was_for():
    config = config_with(auth={"loopback": ["read"]})
    route = a_route("/v1/jobs/{job}", method="POST", scope=Scope.CONTROL)
    asked = asking(route, as_peer=Peer(address="127.0.0.1"), config=config)
    for name in ("orders", "No%20Job"):  # the second names nothing, which only somebody who may learns
        assert (await asked.client.post(f"/v1/jobs/{name}")).status_code == 403
    assert [call.path.get("job") for call, _ in asked.audited] == ["orders", None]


async def test_a_change_that_the_daemons_end_cut_off_is_audited_as_such():
    running = asyncio.Event()

    async def handler(call):
        running.set()
        await asyncio.Event().wait()

    asked = asking(a_route(method="POST", handler=handler))
    asking_it = asyncio.create_task(asked.client.post("/it"))
    await asyncio.wait_for(running.wait(), 5)
    asking_it.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking_it
    assert [error.code for _, error in asked.audited] == ["given_up"]
