"""HTTP checks and Prometheus queries against a server that answers whatever a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import pytest

from engine.pace.law import SignalPolicy, Unit
from engine.watch.outside import LARGEST_ANSWER_BYTES, HttpProbe, PrometheusProbe
from engine.watch.probe import ProbeFailed

POLICY = SignalPolicy(name="outside", unit=Unit.COUNT, maximum=0.0)


class Answers:
    """Answers every request with ``status`` and ``body``, or as ``raw`` or ``silent`` say."""

    def __init__(self) -> None:
        self.status = "200 OK"
        self.headers = ""
        self.body = b""
        self.raw: bytes | None = None
        self.silent = False
        self.endless = False
        self.pause_s = 0.0
        self.asked: list[str] = []
        self.requests: list[bytes] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(request)
                self.asked.append(request.split()[1].decode())
                if self.silent:
                    await reader.read()
                head = f"HTTP/1.1 {self.status}\r\ncontent-length: {len(self.body)}\r\n{self.headers}\r\n"
                writer.write(self.raw if self.raw is not None else head.encode() + self.body)
                while self.endless:
                    writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(self.pause_s)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def answers() -> AsyncIterator[Answers]:
    made = Answers()
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await made.answer(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def vector(*values: object) -> bytes:
    samples = [{"metric": {"n": str(n)}, "value": [1.5, value]} for n, value in enumerate(values)]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": samples}}).encode()


async def check(answers: Answers, path: str = "/check/app") -> tuple[float, str]:
    probe = HttpProbe(POLICY, answers.url + path, 1.0)
    try:
        measured = await probe.read()
        return measured.value, measured.detail
    finally:
        await probe.close()


async def query(answers: Answers, text: str = "up") -> float:
    probe = PrometheusProbe(POLICY, answers.url + "/", text, 1.0)
    try:
        return (await probe.read()).value
    finally:
        await probe.close()


async def test_200_is_go_and_all_else_is_stop(answers: Answers) -> None:
    assert await check(answers) == (0.0, "HTTP 200")
    for status in ("204 No Content", "404 Not Found", "429 Too Many Requests", "500 Oh"):
        answers.status = status
        assert await check(answers) == (1.0, f"HTTP {status[:3]}")


async def test_a_redirect_is_not_followed(answers: Answers) -> None:
    answers.status, answers.headers = "302 Found", f"location: {answers.url}/elsewhere\r\n"
    assert (await check(answers))[0] == 1.0
    assert answers.asked == ["/check/app"]


async def test_a_proxy_of_the_environment_is_not_asked(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await check(answers))[0] == 0.0


async def test_silence_ends_at_the_deadline(answers: Answers) -> None:
    answers.silent = True
    with pytest.raises(ProbeFailed, match="timed out after 1s"):
        await asyncio.wait_for(check(answers), 5)


async def test_an_endless_answer_ends_at_the_limit(answers: Answers) -> None:
    answers.raw, answers.endless = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", True
    with pytest.raises(ProbeFailed, match="larger than 64 KiB"):
        await asyncio.wait_for(check(answers), 5)


async def test_an_answer_that_drips_ends_at_the_deadline(answers: Answers) -> None:
    answers.raw, answers.endless = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", True
    answers.pause_s = 0.2
    with pytest.raises(ProbeFailed, match="timed out after 1s"):
        await asyncio.wait_for(check(answers), 5)


async def test_a_large_answer_is_not_unpacked(answers: Answers) -> None:
    answers.body = b"x" * (LARGEST_ANSWER_BYTES + 1)
    with pytest.raises(ProbeFailed, match="larger than"):
        await check(answers)
    assert b"accept-encoding: identity" in answers.requests[0].lower()


async def test_nobody_there(answers: Answers) -> None:
    answers.url = "http://127.0.0.1:9"
    with pytest.raises(ProbeFailed, match="nobody can be reached"):
        await check(answers)


async def test_no_http(answers: Answers) -> None:
    answers.raw = b"SSH-2.0-hello\r\n\r\n"
    with pytest.raises(ProbeFailed, match="not HTTP"):
        await check(answers)


async def test_one_sample_or_a_scalar(answers: Answers) -> None:
    answers.body = vector("0.25")
    assert await query(answers, 'rate(x{a="b"}[1m]) + 1') == 0.25
    parts = urlsplit(answers.asked[0])
    assert parts.path == "/api/v1/query"
    assert parse_qs(parts.query) == {"query": ['rate(x{a="b"}[1m]) + 1']}
    answers.body = json.dumps({"status": "success", "data": {"resultType": "scalar", "result": [1, "3"]}}).encode()
    assert await query(answers) == 3.0


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (vector(), "no samples"),
        (vector("1", "2"), "2 samples"),
        (vector("NaN"), "not a finite number"),
        (vector("+Inf"), "not a finite number"),
        (vector("-1"), "negative"),
        (vector("one"), "not one of Prometheus"),
        (vector(None), "not one of Prometheus"),
        (b'{"status": "success", "data": {"resultType": "matrix", "result": []}}', "a range"),
        (b'{"status": "success", "data": {"resultType": "vector", "result": [{}]}}', "not one of Prometheus"),
        (b'{"status": "error"}', "not one of Prometheus"),
        (b"[1]", "not one of Prometheus"),
        (b"hello", "not one of Prometheus"),
        (b"[" * 60_000, "not one of Prometheus"),
        (b"", "not one of Prometheus"),
    ],
)
async def test_whatever_else_is_a_failure(answers: Answers, body: bytes, error: str) -> None:
    answers.body = body
    with pytest.raises(ProbeFailed, match=error):
        await query(answers)


async def test_prometheus_in_trouble(answers: Answers) -> None:
    answers.status, answers.body = "422 Unprocessable Entity", b'{"status": "error"}'
    with pytest.raises(ProbeFailed, match="HTTP 422"):
        await query(answers)


async def test_the_connection_is_kept_for_the_next_question(answers: Answers) -> None:
    probe = HttpProbe(POLICY, answers.url, 1.0)
    for _ in range(3):
        assert (await probe.read()).value == 0.0
    await probe.close()
    assert len(answers.requests) == 3
