"""The client on real sockets: against a daemon, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import trustme

from engine import errors
from engine.client import AnswerLost, AsyncClient, Client, DaemonError
from engine.client.address import Address, Credentials, read_token
from engine.client.following import _Following, _NoStream
from engine.client.plans import Habits
from engine.client.talk import Talk
from engine.model import JobState
from engine.service.routes.table import ROUTES
from engine.wire import shapes
from tests.client.jobs import JOB
from tests.support.daemon import config_of, running_daemon
from tests.support.databases import FreshDatabase

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(
    answer: Answer, *, tls: ssl.SSLContext | Literal["unix"] | None = "unix"
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server of our own making; gives its URL and the heads of the requests that came.

    On a Unix socket; with ``tls`` on a port, which speaks plainly where that is None.
    """
    heads: list[bytes] = []
    serving: set[asyncio.Task[Any] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        head += await reader.readexactly(int(line.split(b":")[1]))
                heads.append(head)
                await answer(head, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    with tempfile.TemporaryDirectory() as folder:
        if tls == "unix":
            listening = await asyncio.start_unix_server(serve, f"{folder}/s")
            url = f"unix://{folder}/s"
        else:
            listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
            scheme = "http" if tls is None else "https"
            url = f"{scheme}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        try:
            yield url, heads
        finally:
            listening.close()
            if serving:  # they end when their clients have: a loop that ends before them would say so
                await asyncio.wait([task for task in serving if task is not None], timeout=30)


def answer_of(body: Any, status: str = "200 OK", kind: str = "application/json", more: str = "") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(raw)}\r\n{more}\r\n".encode() + raw


def answering(body: Any) -> Answer:
    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer_of(body))

    return answer


# -- both faces ---------------------------------------------------------------------------------------------------------


def test_both_faces_have_the_same_methods_and_one_of_each_route() -> None:
    def public(of: type) -> set[str]:
        return {name for name in dir(of) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)
    assert Client.pause.__doc__ == AsyncClient.pause.__doc__


def test_the_client_has_a_method_for_every_route() -> None:
    said: set[tuple[str, str]] = set()

    class Listening(Talk):
        def _ask(self, method: str, path: str, *_: Any, **__: Any) -> Any:
            said.add(
                (method, path.replace("/v1/jobs/X", "/v1/jobs/{job}").replace("connections/X", "connections/{name}"))
            )
            return None

    talk = Listening(Habits("d", 1))
    name, spec = "X", {"name": "X"}
    for say in (talk.job, talk.pause, talk.resume, talk.cancel, talk.verify, talk.restart, talk.remove, talk.history, talk.recent,
                talk.quarantine, talk.retry_quarantine, talk.drop_quarantine, talk.gate, talk.grants, talk.dual_write,
                talk.doctor):  # fmt: skip
        say(name)  # type: ignore[operator]
    talk.pace(name, {})
    talk.change_dual_write(name, "install")
    for say in (talk.submit, talk.plan, talk.rehearse):
        say(spec)  # type: ignore[operator]
    for say in (talk.jobs, talk.connections, talk.me, talk.live, talk.ready, talk.metrics, talk.openapi):
        say()  # type: ignore[operator]
    said.add(("GET", "/v1/jobs/{job}/events"))  # follow
    pages = {("GET", route.path) for route in ROUTES if route.path == "/" or route.path.startswith("/page/")}
    assert said == {(route.method, route.path) for route in ROUTES} - pages


# -- a daemon -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(database: FreshDatabase) -> FreshDatabase:
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, amount int, cents int);"
        "INSERT INTO orders SELECT n, n FROM generate_series(1, 3000) n; ANALYZE orders"
    )
    return database


SPEC: dict[str, Any] = {
    "name": "cents",
    "source": {"connection": "main", "table": "public.orders"},
    "set": {"cents": "amount * 100"},
}
SLOW = SPEC | {"pace": {"max_rows_per_s": 500, "signals": "off"}, "chunk": {"max_rows": 50}}


async def test_a_job_from_its_submission_to_its_gate(shop: FreshDatabase) -> None:
    async with running_daemon(config_of(shop)) as daemon, AsyncClient(daemon.url) as client:
        me = await client.me()
        assert (me.kind, sorted(me.scopes)) == ("peer", ["control", "read", "submit"])
        assert (await client.plan(SPEC)).rows_estimated == 3000
        job = await client.submit(SPEC)
        assert (job.job, job.connection) == ("cents", "main")
        told = [item async for item in client.follow("cents", after=0)]
        entries = [item for item in told if isinstance(item, shapes.HistoryEntry)]
        assert entries[0].what == "created"
        assert [entry.id for entry in entries] == sorted({entry.id for entry in entries})
        jobs = [item for item in told if isinstance(item, shapes.Job)]
        assert jobs[-1].state is JobState.DONE
        assert (await client.wait("cents")).rows_done == 3000
        assert [found.job for found in await client.all_jobs()] == ["cents"]
        gate = await client.gate("cents")
        assert {check.name: check.ok for check in gate.checks}["done"] is True
        assert (await client.submit(SPEC)).state is JobState.DONE, "the same spec is the same job"
        with pytest.raises(errors.SpecChanged):
            await client.submit(SPEC | {"where": "id > 3"})
        with pytest.raises(errors.UnknownJob):
            await client.job("nobody")
        assert "backfill_" in await client.metrics()
        assert (await client.ready()).status == "ok"


async def test_the_sync_client_says_the_same_from_a_thread(shop: FreshDatabase) -> None:
    def work(url: str) -> list[str]:
        with Client(url) as client:
            client.submit(SLOW)
            assert client.pause("cents", reason="lunch").state is JobState.PAUSED
            with pytest.raises(DaemonError) as stale:
                client.resume("cents", if_match="1")
            assert stale.value.code == "changed_meanwhile"
            client.resume("cents", if_match=client.job("cents").revision)
            client.pace("cents", {"max_rows_per_s": 1_000_000})
            return [type(item).__name__ for item in client.follow("cents")]

    async with running_daemon(config_of(shop)) as daemon:
        assert (await asyncio.to_thread(work, daemon.url))[-1] == "Job"


async def test_following_outlives_the_daemon_and_loses_nothing(shop: FreshDatabase, tmp_path: Path) -> None:
    """The socket stays where it is; another daemon listens there then."""
    settings = config_of(shop)
    told: list[Any] = []

    async def follow(url: str) -> None:
        async with AsyncClient(url) as client:
            async for item in client.follow("cents", after=0):
                told.append(item)

    async with running_daemon(settings, folder=tmp_path) as daemon, AsyncClient(daemon.url) as client:
        await client.submit(SLOW)
        task = asyncio.create_task(follow(daemon.url))
        while not any(isinstance(item, shapes.Job) for item in told):
            await asyncio.sleep(0.01)
        await client.pause("cents", reason="one")
    # Nobody listens now, and the history goes on.
    shop.sql("SELECT backfill.resume('cents', 'two'); SELECT backfill.pace('cents', 100000)")
    async with running_daemon(settings, folder=tmp_path):
        await asyncio.wait_for(task, 30)
    async with running_daemon(settings, folder=tmp_path) as daemon, AsyncClient(daemon.url) as client:
        whole = [entry.id for entry in await client.whole_history("cents")]
    seen = [item.id for item in told if isinstance(item, shapes.HistoryEntry)]
    assert seen == [number for number in whole if number <= seen[-1]]
    assert len(seen) > 4
    assert told[-1].state is JobState.DONE


async def test_following_begins_at_the_same_place_by_stream_and_by_polling(
    shop: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held_back(self: _Following) -> Iterator[Any]:
        raise _NoStream
        yield

    async with running_daemon(config_of(shop)) as daemon, AsyncClient(daemon.url) as client:
        await client.submit(SPEC)
        await client.wait("cents")
        revision = (await client.job("cents")).revision
        tales = []
        for after in (None, int(revision) - 1, 0):
            tales.append([kind_of(item) async for item in client.follow("cents", after=after)])
        monkeypatch.setattr(_Following, "by_stream", held_back)
        for after, tale in zip((None, int(revision) - 1, 0), tales, strict=True):
            assert [kind_of(item) async for item in client.follow("cents", after=after)] == tale
        assert [len(tale) for tale in tales[:2]] == [1, 2]
        assert len(tales[2]) > 3


def kind_of(item: Any) -> str:
    return str(item.id) if isinstance(item, shapes.HistoryEntry) else type(item).__name__


# -- servers that misbehave ---------------------------------------------------------------------------------------------


async def test_a_server_that_hangs_up_in_mid_answer_is_asked_again_only_where_that_is_safe() -> None:
    async def hang_up(head: bytes, writer: asyncio.StreamWriter) -> None:
        if len(heads) % 2:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{")
            writer.close()
        else:
            writer.write(answer_of(JOB))

    async with server(hang_up) as (url, heads), AsyncClient(url) as client:
        assert (await client.job("cents")).job == "cents"
        assert len(heads) == 2
        with pytest.raises(AnswerLost):
            await client.pause("cents")
        assert len(heads) == 3


async def test_a_redirect_is_not_followed() -> None:
    async with server(answering(JOB), tls=None) as (elsewhere, asked_there):

        async def redirect(head: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(answer_of(b"", "302 Found", more=f"location: {elsewhere}/\r\n"))

        async with server(redirect, tls=None) as (url, heads), AsyncClient(url, token="t0ken") as client:
            with pytest.raises(DaemonError):
                await client.job("cents")
            assert (len(heads), asked_there) == (1, [])


@pytest.mark.parametrize("face", [Client, AsyncClient])
async def test_neither_a_proxy_nor_a_password_of_the_environment_is_used(
    face: type[Client | AsyncClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(answering(JOB), tls=None) as (proxy, heard), server(answering(JOB), tls=None) as (url, heads):
        netrc = tmp_path / "netrc"
        netrc.write_text("default login ana password s3cret\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            for variable in (name, name.upper()):
                monkeypatch.setenv(variable, "" if name == "no_proxy" else proxy)
        async with httpx.AsyncClient() as anyone:
            await anyone.get(f"{url}/v1/jobs/cents")
        assert (len(heard), len(heads)) == (1, 0), "whoever listens to the environment asks the proxy"
        asked = face(url)
        if isinstance(asked, Client):
            with asked:
                await asyncio.to_thread(asked.job, "cents")
        else:
            async with asked:
                await asked.job("cents")
        assert (len(heard), len(heads)) == (1, 1)
        assert b"authorization" not in heads[0].lower()


async def test_a_stream_that_trickles_in_bytes_is_read_and_let_go_of(shop: FreshDatabase) -> None:
    async def trickle(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        done = json.dumps(JOB | {"state": "done"})
        for byte in f"event: status\ndata: {json.dumps(JOB)}\n\nevent: status\ndata: {done}\n\nevent: end\ndata: {{}}\n\n".encode():
            writer.write(bytes([byte]))
            await writer.drain()

    async with server(trickle) as (url, _), AsyncClient(url) as client:
        assert [item.state.value async for item in client.follow("cents") if isinstance(item, shapes.Job)] == [
            "running",
            "done",
        ]
        async for _item in client.follow("cents"):
            break  # leaving early closes the stream: a warning of the garbage collector would be an error here


# -- who we are ---------------------------------------------------------------------------------------------------------


async def test_a_daemon_is_known_by_its_certificate_and_knows_us_by_ours() -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    mine = authority.issue_cert(common_name="argo")
    with (
        authority.cert_pem.tempfile() as ca,
        stranger.cert_pem.tempfile() as other,
        mine.private_key_and_cert_chain_pem.tempfile() as pair,
    ):
        async with server(answering(JOB), tls=context) as (url, heads):
            async with AsyncClient(url, ca=ca, certificate=pair, token="t0ken") as client:
                assert (await client.job("cents")).job == "cents"
            assert b"authorization: Bearer t0ken" in heads[0]
            async with AsyncClient(url, ca=other, certificate=pair, token="t0ken") as client:
                with pytest.raises(errors.CannotConnect, match="TLS failed"):
                    await client.job("cents")
            assert len(heads) == 1, "a daemon that cannot prove who it is gets no token"


def test_a_token_is_in_no_repr_no_error_and_no_url(tmp_path: Path) -> None:
    with Client("unix:///nonexistent.sock", token="t0ken", patience_s=0) as client:
        with pytest.raises(errors.CannotConnect) as away:
            client.jobs()
        assert "t0ken" not in repr(client) + repr(client.address) + repr(away.value) + str(away.value)
        assert "t0ken" not in repr(Credentials.found(token="t0ken"))
    for token in ("two words", "line\nbreak", "ä", "x" * 2000):
        with pytest.raises(errors.UsageError) as refused:
            Client("unix:///x", token=token)
        assert token not in str(refused.value)


def test_a_token_is_not_sent_in_the_clear_to_another_host() -> None:
    with pytest.raises(errors.UsageError, match="not sent over http"):
        Client("http://backfill.example:8471", token="t0ken")
    Client("http://backfill.example:8471").close()
    for url in ("http://127.0.0.1:8471", "http://localhost:8471", "http://[::1]:8471", "https://x.example"):
        Client(url, token="t0ken").close()


def test_a_token_file_is_refused_where_strangers_may_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("t0ken\n")
    for mode, allowed in ((0o600, True), (0o400, True), (0o640, True), (0o644, False), (0o602, False)):
        file.chmod(mode)
        if allowed:
            assert read_token(str(file)) == "t0ken"
        else:
            with pytest.raises(errors.UsageError, match="others may read or write"):
                read_token(str(file))
    file.chmod(0o600)
    monkeypatch.setenv("BACKFILL_TOKEN", "of-the-environment")
    assert Credentials.found(token_file=str(file)).token == "t0ken"
    assert Credentials.found().token == "of-the-environment"
    with pytest.raises(errors.UsageError, match="cannot be read"):
        read_token(str(tmp_path / "none"))
    assert os.environ["BACKFILL_TOKEN"] == "of-the-environment"


@pytest.mark.parametrize(
    "text", ["", "x", "unix://", "unix://host/x", "unix:relative", "http://", "https://u@h", "https://h/path", "ftp://h",
             "https://h:99999", "https://h?token=x", "https://[::1"]
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(errors.UsageError):
        Address.parse(text)
