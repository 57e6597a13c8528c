"""The two faces of the client, ``Client`` and ``AsyncClient``: they carry plans out.  What plans say is in ``talk``."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import update_wrapper
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

import httpx

from engine._version import __version__
from engine.client.address import Address, Credentials
from engine.client.plans import Broken, Give, Habits, NotSent, Open, Outgoing, Plan, Read, Received, Send, Sleep, Step
from engine.client.talk import Followed, Talk

P = ParamSpec("P")
A = TypeVar("A")

PATIENCE_S: Final = 30.0
"""How long one request is tried for: as long as a daemon may take to be restarted."""

CONNECT_S: Final = 5.0
_SESSIONS: Final = 20

_ERRNO: Final = re.compile(r"^\[Errno -?\d+\] ")


class _Base:
    """What both faces are made of."""

    def __init__(
        self,
        daemon: str,
        *,
        token: str | None = None,
        token_file: str | None = None,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """``daemon``: ``unix:///run/backfill/backfill.sock`` or ``https://host:8471``.

        The token is the one given, that of ``token_file`` (which only its owner and its group may read), or that of
        BACKFILL_TOKEN.  ``ca``: who vouches for the daemon; ``certificate`` and ``key``: what the client shows.
        ``patience_s``: how long a request is tried for while the daemon is away.  Raises ``UsageError``.
        """
        self.address = Address.parse(daemon)
        credentials = Credentials.found(token=token, token_file=token_file, ca=ca, certificate=certificate, key=key)
        self._headers = {"user-agent": f"backfill/{__version__}"} | credentials.headers(self.address)
        self._verify = credentials.context() if self.address.base.startswith("https:") else True
        self._talk = Talk(Habits(str(self.address), patience_s))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.address)!r})"

    def _arguments(self) -> dict[str, Any]:
        # Nothing of the environment decides where a token goes: no proxy, no .netrc.
        return {
            "base_url": self.address.base,
            "headers": self._headers,
            "follow_redirects": False,
            "trust_env": False,
        }

    def _transport(self) -> dict[str, Any]:
        limits = httpx.Limits(max_connections=_SESSIONS, keepalive_expiry=CONNECT_S)
        return {"uds": self.address.socket, "verify": self._verify, "trust_env": False, "limits": limits}


def _timeout(asked: Outgoing) -> httpx.Timeout:
    return httpx.Timeout(asked.timeout_s, connect=CONNECT_S)


def _lost(error: httpx.TransportError) -> NotSent | Broken:
    """Why there is no answer, in words of ours."""
    if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
        return NotSent("no connection came about in time")
    if isinstance(error, httpx.ConnectError):
        causes = list(_causes(error))
        refused = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None)
        if refused is not None:
            return NotSent(f"TLS failed: {getattr(refused, 'verify_message', '') or refused.reason}", is_lasting=True)
        denied = any(isinstance(cause, PermissionError) for cause in causes)
        reason = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), str(error))
        return NotSent(_ERRNO.sub("", reason).lower(), is_lasting=denied)
    if isinstance(error, httpx.TimeoutException):
        return Broken("no answer came in time")
    return Broken("the connection broke")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _received(answer: httpx.Response, body: bytes) -> Received:
    return Received(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, body)


# -- without an event loop --------------------------------------------------------------------------------------------


class _Said(Generic[P, A]):
    """A plan of ``Talk`` as a method of ``Client``."""

    def __init__(self, plan: Callable[Concatenate[Talk, P], Plan[A]]) -> None:
        self._plan = plan
        self.__doc__ = plan.__doc__

    def __get__(self, client: Client | None, _owner: type[Client]) -> Callable[P, A]:
        def say(*args: P.args, **options: P.kwargs) -> A:
            assert client is not None, "it is a method: call it on a Client"
            return client._said(self._plan(client._talk, *args, **options))  # noqa: SLF001 - its own descriptor

        return update_wrapper(say, self._plan)


class Client(_Base):
    """Speaks to a daemon.  May be shared by threads.  Its methods are those of ``engine.client.talk.Talk``."""

    def __init__(self, daemon: str, **options: Any) -> None:
        super().__init__(daemon, **options)
        self._http = httpx.Client(transport=httpx.HTTPTransport(**self._transport()), **self._arguments())

    submit = _Said(Talk.submit)
    jobs = _Said(Talk.jobs)
    all_jobs = _Said(Talk.all_jobs)
    job = _Said(Talk.job)
    changed = _Said(Talk.changed)
    pause = _Said(Talk.pause)
    resume = _Said(Talk.resume)
    cancel = _Said(Talk.cancel)
    pace = _Said(Talk.pace)
    verify = _Said(Talk.verify)
    restart = _Said(Talk.restart)
    remove = _Said(Talk.remove)
    history = _Said(Talk.history)
    recent = _Said(Talk.recent)
    whole_history = _Said(Talk.whole_history)
    quarantine = _Said(Talk.quarantine)
    retry_quarantine = _Said(Talk.retry_quarantine)
    drop_quarantine = _Said(Talk.drop_quarantine)
    gate = _Said(Talk.gate)
    grants = _Said(Talk.grants)
    dual_write = _Said(Talk.dual_write)
    change_dual_write = _Said(Talk.change_dual_write)
    plan = _Said(Talk.plan)
    rehearse = _Said(Talk.rehearse)
    connections = _Said(Talk.connections)
    doctor = _Said(Talk.doctor)
    me = _Said(Talk.me)
    live = _Said(Talk.live)
    ready = _Said(Talk.ready)
    metrics = _Said(Talk.metrics)
    openapi = _Said(Talk.openapi)
    wait = _Said(Talk.wait)

    def follow(self, job: str, *, after: str | int | None = None, connection: str | None = None) -> Iterator[Followed]:
        """``Talk.follow``, as an iterator that ends when the job does."""
        hands = _Hands(self._http)
        plan = self._talk.follow(job, after=after, connection=connection)
        outcome: Any = None
        try:
            while True:
                try:
                    step = plan.send(outcome)
                except StopIteration:
                    return
                if isinstance(step, Give):
                    yield step.item
                    outcome = None
                else:
                    outcome = hands.do(step)
        finally:
            hands.close()

    def close(self) -> None:
        """Let go of all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _said(self, plan: Plan[A]) -> A:
        hands = _Hands(self._http)
        outcome: Any = None
        try:
            while True:
                try:
                    step = plan.send(outcome)
                except StopIteration as end:
                    value: A = end.value
                    return value
                outcome = hands.do(step)
        finally:
            hands.close()


class _Hands:
    """Carries out the steps of one plan."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._stream: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def do(self, step: Step) -> Any:
        """The outcome of ``step``."""
        try:
            match step:
                case Send(asked):
                    answer = self._http.send(self._request(asked))
                    return _received(answer, answer.content)
                case Open(asked):
                    return self._open(asked)
                case Read():
                    return next(self._pieces, None)
                case Sleep(seconds):
                    time.sleep(seconds)
        except httpx.TransportError as error:
            return _lost(error)
        return None

    def _open(self, asked: Outgoing) -> Received:
        self.close()
        answer = self._http.send(self._request(asked), stream=True)
        if answer.status_code != httpx.codes.OK:
            try:
                return _received(answer, answer.read())
            finally:
                answer.close()
        self._stream, self._pieces = answer, answer.iter_bytes()
        return _received(answer, b"")

    def _request(self, asked: Outgoing) -> httpx.Request:
        return self._http.build_request(
            asked.method,
            asked.path,
            params=dict(asked.parameters),
            headers=dict(asked.headers),
            content=asked.body,
            timeout=_timeout(asked),
        )

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


# -- in an event loop -------------------------------------------------------------------------------------------------


class _SaidAsync(Generic[P, A]):
    """A plan of ``Talk`` as a method of ``AsyncClient``."""

    def __init__(self, plan: Callable[Concatenate[Talk, P], Plan[A]]) -> None:
        self._plan = plan
        self.__doc__ = plan.__doc__

    def __get__(self, client: AsyncClient | None, _owner: type[AsyncClient]) -> Callable[P, Coroutine[Any, Any, A]]:
        async def say(*args: P.args, **options: P.kwargs) -> A:
            assert client is not None, "it is a method: call it on an AsyncClient"
            return await client._said(self._plan(client._talk, *args, **options))  # noqa: SLF001 - its own descriptor

        return update_wrapper(say, self._plan)


class AsyncClient(_Base):
    """``Client`` for those who run in an event loop, with the same methods, awaited."""

    def __init__(self, daemon: str, **options: Any) -> None:
        super().__init__(daemon, **options)
        self._http = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(**self._transport()), **self._arguments())

    submit = _SaidAsync(Talk.submit)
    jobs = _SaidAsync(Talk.jobs)
    all_jobs = _SaidAsync(Talk.all_jobs)
    job = _SaidAsync(Talk.job)
    changed = _SaidAsync(Talk.changed)
    pause = _SaidAsync(Talk.pause)
    resume = _SaidAsync(Talk.resume)
    cancel = _SaidAsync(Talk.cancel)
    pace = _SaidAsync(Talk.pace)
    verify = _SaidAsync(Talk.verify)
    restart = _SaidAsync(Talk.restart)
    remove = _SaidAsync(Talk.remove)
    history = _SaidAsync(Talk.history)
    recent = _SaidAsync(Talk.recent)
    whole_history = _SaidAsync(Talk.whole_history)
    quarantine = _SaidAsync(Talk.quarantine)
    retry_quarantine = _SaidAsync(Talk.retry_quarantine)
    drop_quarantine = _SaidAsync(Talk.drop_quarantine)
    gate = _SaidAsync(Talk.gate)
    grants = _SaidAsync(Talk.grants)
    dual_write = _SaidAsync(Talk.dual_write)
    change_dual_write = _SaidAsync(Talk.change_dual_write)
    plan = _SaidAsync(Talk.plan)
    rehearse = _SaidAsync(Talk.rehearse)
    connections = _SaidAsync(Talk.connections)
    doctor = _SaidAsync(Talk.doctor)
    me = _SaidAsync(Talk.me)
    live = _SaidAsync(Talk.live)
    ready = _SaidAsync(Talk.ready)
    metrics = _SaidAsync(Talk.metrics)
    openapi = _SaidAsync(Talk.openapi)
    wait = _SaidAsync(Talk.wait)

    async def follow(
        self, job: str, *, after: str | int | None = None, connection: str | None = None
    ) -> AsyncIterator[Followed]:
        """``Talk.follow``, as an asynchronous iterator that ends when the job does."""
        hands = _AsyncHands(self._http)
        plan = self._talk.follow(job, after=after, connection=connection)
        outcome: Any = None
        try:
            while True:
                try:
                    step = plan.send(outcome)
                except StopIteration:
                    return
                if isinstance(step, Give):
                    yield step.item
                    outcome = None
                else:
                    outcome = await hands.do(step)
        finally:
            await hands.close()

    async def close(self) -> None:
        """Let go of all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _said(self, plan: Plan[A]) -> A:
        hands = _AsyncHands(self._http)
        outcome: Any = None
        try:
            while True:
                try:
                    step = plan.send(outcome)
                except StopIteration as end:
                    value: A = end.value
                    return value
                outcome = await hands.do(step)
        finally:
            await hands.close()


class _AsyncHands:
    """Carries out the steps of one plan."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._stream: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def do(self, step: Step) -> Any:
        """The outcome of ``step``."""
        try:
            match step:
                case Send(asked):
                    answer = await self._http.send(self._request(asked))
                    return _received(answer, answer.content)
                case Open(asked):
                    return await self._open(asked)
                case Read() if self._pieces is not None:
                    return await anext(self._pieces, None)
                case Sleep(seconds):
                    await asyncio.sleep(seconds)
        except httpx.TransportError as error:
            return _lost(error)
        return None

    async def _open(self, asked: Outgoing) -> Received:
        await self.close()
        answer = await self._http.send(self._request(asked), stream=True)
        if answer.status_code != httpx.codes.OK:
            try:
                return _received(answer, await answer.aread())
            finally:
                await answer.aclose()
        self._stream, self._pieces = answer, answer.aiter_bytes()
        return _received(answer, b"")

    def _request(self, asked: Outgoing) -> httpx.Request:
        return self._http.build_request(
            asked.method,
            asked.path,
            params=dict(asked.parameters),
            headers=dict(asked.headers),
            content=asked.body,
            timeout=_timeout(asked),
        )

    async def close(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = self._pieces = None
