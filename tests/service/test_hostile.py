"""Requests that nobody sends by mistake, at a real daemon in a process of its own: refused, cheap, and soon forgotten."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from itertools import chain, repeat

import psutil
import pytest

from tests.support.daemon import config_of, daemon_process

GIGABYTE = 2**30
ROUNDS = 6
GROWTH_BYTES = 24 * 2**20
"""What memory may grow by between the second round of everything and the last: allocators round up, leaks add up."""


@pytest.fixture
async def daemon(database):
    database.sql("CREATE TABLE orders (id int PRIMARY KEY, amount int, cents bigint)")
    database.sql("INSERT INTO orders SELECT g, g FROM generate_series(1, 1000) g")
    async with daemon_process(config_of(database)) as running:
        answer = await running.client.post("/v1/jobs", json=spec())
        assert answer.status_code == 201, answer.text
        yield running
        assert not [line for line in running.lines() if line["event"] == "request.failed"]
        assert (await running.client.get("/livez")).status_code == 200


def spec(**changes):
    return {
        "name": "orders",
        "source": {"connection": "main", "table": "public.orders"},
        "set": {"cents": "amount * 100"},
        "pace": {"signals": "off", "max_rows_per_s": 5},
    } | changes


async def said(daemon, *pieces, most=GIGABYTE):
    """Write bytes as they are, until all are written or the daemon has had enough: the answer, and how much it took.

    The last piece, in a list, is written again and again.
    """
    reader, writer = await asyncio.open_unix_connection(daemon.url.removeprefix("unix://"))
    answer, took = bytearray(), 0

    async def read():
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                answer.extend(piece)

    reading = asyncio.create_task(read())
    with suppress(ConnectionError):
        for piece in pieces if isinstance(pieces[-1], bytes) else chain(pieces[:-1], repeat(pieces[-1][0])):
            if took >= most or reading.done():
                break
            writer.write(piece)
            await writer.drain()
            took += len(piece)
    if took < most:
        await asyncio.wait_for(reading, 30)
    reading.cancel()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return bytes(answer), took


def status(answer):
    return int(answer.split(b" ", 2)[1]) if answer else None


def head(method, path, *headers, host="localhost"):
    lines = (f"{method} {path} HTTP/1.1", f"Host: {host}", *headers)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


POST = head("POST", "/v1/jobs", "Content-Type: application/json", "Transfer-Encoding: chunked")


async def test_a_gigabyte_without_a_length_is_cut_off_after_its_first_megabytes(daemon):
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    answers = await asyncio.gather(*(said(daemon, POST, [chunk]) for _ in range(8)))
    assert {status(answer) for answer, _ in answers} == {413}
    assert max(took for _, took in answers) < 32 * 2**20


async def test_a_gigabyte_that_is_announced_is_refused_before_it_is_read(daemon):
    request = head("POST", "/v1/jobs", "Content-Type: application/json", f"Content-Length: {GIGABYTE}")
    answer, took = await said(daemon, request)
    assert status(answer) == 413 and took < 1000


PATHS = [
        "/page/../config.py", "/page/%2e%2e/config.py", "/page/..%2fconfig.py", "/page/..%5cconfig.py",
        "/page//etc/passwd", "/page/%2fetc%2fpasswd", "/page/page.css%00.html", "/page/.", "/page/..", "/page/",
        "/page/page.css/", "/page/%70age.css%20", "/../../etc/passwd", "/page/....//etc/passwd", "/page/__init__.py",
]  # fmt: skip


async def test_the_page_has_its_files_and_no_path_leads_out_of_it(daemon):
    for path in PATHS:
        answer, _ = await said(daemon, head("GET", path, "Connection: close"))
        assert status(answer) in (400, 404), path
        assert b"root:" not in answer and b"import" not in answer, path


HEADS = {
    "ten thousand headers": head("GET", "/livez", *(f"X-{n}: 1" for n in range(10_000))),
    "a header of a megabyte": head("GET", "/livez", "X: " + "x" * 2**20),
    "a key of a megabyte": head("POST", "/v1/jobs", "Idempotency-Key: " + "k" * 2**20),
    "a path of a megabyte": head("GET", "/" + "a" * 2**20),
    "ten thousand parameters": head("GET", "/v1/jobs?" + "&".join(f"limit={n}" for n in range(10_000))),
    "a thousand parameters": head("GET", "/v1/jobs?" + "&".join(f"a{n}=1" for n in range(1000)), "Connection: close"),
    "a revision of a megabyte": head("POST", "/v1/jobs/orders/pause", 'If-Match: "' + "1" * 2**20 + '"'),
}


async def test_a_head_that_is_too_much_is_refused(daemon):
    for name, text in HEADS.items():
        answer, _ = await said(daemon, text)
        assert status(answer) in (400, 431), name
        assert status((await said(daemon, head("GET", "/livez", "Connection: close")))[0]) == 200


def cursor(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


CURSORS = [
    "x", "=", "\x00", "e30", "a" * 3999, cursor([]), cursor({"main": -1}), cursor({"main": 2**70}), cursor({"main": "1"}),
    cursor({"main": True}), cursor({"main": 1.5}), cursor({"nowhere": 1}), cursor("x"), cursor({"main": None}),
    base64.urlsafe_b64encode(b"[" * 2500).decode(), base64.urlsafe_b64encode(b"\xff\xfe").decode(),
]  # fmt: skip


async def test_a_cursor_that_nobody_gave_out_is_refused_or_leads_nowhere_else(daemon):
    for text in CURSORS:
        answer = await daemon.client.get("/v1/jobs", params={"cursor": text})
        assert answer.status_code in (200, 400), (text, answer.text)
        if answer.status_code == 200:
            assert {job["job"] for job in answer.json()["jobs"]} <= {"orders"}


PAGES = ("history?after={}", "quarantine?after={}", "history?limit={}", "history?since={}", "quarantine?limit={}")
NUMBERS = ("-1", "0", "9" * 18, "9" * 19, "1e3", "NaN", "99999999d", "0.00000000000000000001s", "'", "%00")


async def test_a_number_that_no_page_begins_with_is_refused_or_leads_nowhere(daemon):
    for page in PAGES:
        for text in NUMBERS:
            answer = await daemon.client.get(f"/v1/jobs/orders/{page.format(text)}")
            assert answer.status_code in (200, 400), (page, text, answer.text)


REVISIONS = ('"0"', '"-1"', '"9223372036854775808"', '"1e3"', '"x"', '"\uff11"', '"\'; drop"', "x" * 1000)


async def test_a_revision_that_is_not_the_jobs_changes_nothing(daemon):
    for text in REVISIONS:
        answer = await daemon.client.post("/v1/jobs/orders/cancel", headers=[(b"if-match", text.encode())])
        assert answer.status_code in (400, 412), (text, answer.text)
    assert (await daemon.client.get("/v1/jobs/orders")).json()["state"] != "cancelled"


async def test_a_stream_goes_on_after_an_event_that_there_can_be(daemon):
    for text in ("-1", "x", "9" * 18, "9" * 19, "1, 2", "\x01", "\uff11"):
        request = head("HEAD", "/v1/jobs/orders/events", "Connection: close").decode()
        request = request.replace("\r\n\r\n", f"\r\nLast-Event-ID: {text}\r\n\r\n").encode()
        answer, _ = await said(daemon, request)
        assert status(answer) in (200, 400), text


SPECS = {
    "a name of a megabyte": spec(name="x" * 900_000),
    "a table of a megabyte": spec(source={"connection": "main", "table": "x" * 900_000}),
    "a table with quotes": spec(source={"connection": "main", "table": 'public."or""ders; drop table orders"'}),
    "ten thousand columns": spec(set={f"c{n}": "1" for n in range(10_000)}),
    "an expression of a megabyte": spec(set={"cents": "1" + "+1" * 400_000}),
    "parentheses in parentheses": spec(set={"cents": "(" * 100_000 + "1" + ")" * 100_000}),
    "two statements": spec(set={"cents": "1; drop table orders"}),
    "an expression that leaves its place": spec(set={"cents": "1) from orders; drop table orders --"}),
    "a number beyond all bounds": spec(workers=10**300),
    "a number below all bounds": spec(workers=-1),
    "a rate beyond all bounds": spec(pace={"max_rows_per_s": 1e308}),
    "a duration beyond all bounds": spec(chunk={"target": "9" * 1000 + "s"}),
    "a list where an object stands": spec(source=[[[[[[[]]]]]]]),
    "null everywhere": dict.fromkeys(spec()),
    "a connection string": spec(source={"dsn": "postgresql://evil/db", "table": "public.orders"}),
    "a variable": spec(source={"connection": "${HOME}", "table": "public.orders"}),
    "a module": spec(transform="os:system"),
    "sql as a signal": spec(pace={"signals": [{"sql": {"name": "q", "query": "select pg_sleep(9)", "target": 1}}]}),
    "an address as a signal": spec(pace={"signals": [{"http": {"name": "h", "url": "http://169.254.169.254/"}}]}),
    "another role": spec(role="postgres"),
}


async def test_a_spec_that_asks_for_what_nobody_may_have_begins_nothing(daemon, database):
    for path in ("/v1/jobs", "/v1/plans", "/v1/rehearsals"):
        for name, hostile in SPECS.items():
            answer = await daemon.client.post(path, json=hostile)
            # A plan of what may not be is an answer: it says why.
            assert answer.status_code in (400, 403, 404, 409, 422) or answer.json()["refused"], (name, answer.text)
            assert len(answer.content) < 100_000, name
            assert "evil" not in answer.text and "169.254" not in answer.text, name
    assert database.sql("select count(*) from orders") == "1000"
    assert [job["job"] for job in (await daemon.client.get("/v1/jobs")).json()["jobs"]] == ["orders"]


@pytest.mark.alone
async def test_memory_stays_flat_whatever_is_asked(daemon):
    process, seen = psutil.Process(daemon.pid), []
    chunk = b"10000\r\n" + b'[{"a": "' * 0x2000 + b"\r\n"
    deep = json.dumps(spec()).encode()[:-1] + b', "x": ' + b"[" * 400_000
    for _ in range(ROUNDS):
        await asyncio.gather(*(said(daemon, POST, [chunk], most=2**25) for _ in range(4)))
        await asyncio.gather(*(said(daemon, HEADS[name]) for name in HEADS))
        for _ in range(3):
            for body in (deep, json.dumps(SPECS["ten thousand columns"]).encode()):
                await daemon.client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
            await daemon.client.post("/v1/jobs/orders/quarantine/drop", json={"ids": list(range(1, 9000))})
        await asyncio.gather(*(daemon.client.get("/v1/jobs") for _ in range(50)))
        seen.append(process.memory_info().rss)
    assert seen[-1] - seen[1] < GROWTH_BYTES, seen
    assert process.num_fds() < 100
