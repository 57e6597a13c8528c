"""A gate in the wire between a client and PostgreSQL: it understands messages, so that faults hit exact points.

::

    async with Gate(server.host, server.port) as gate:
        lost = gate.on(backend="C", containing=b"COMMIT").reset()     # the reply to COMMIT never arrives
        connection = await asyncpg.connect(gate.dsn(database.dsn))
        ...
        await lost.happened()

``on`` names a message by who sends it and its type (the letters of the protocol's chapter "Message Formats":
frontend ``Q P B E S d c X``, backend ``C Z D d T K E`` …; ``startup`` for the first one), by bytes inside it, by the
statement it belongs to and by the connection's application_name.  What then happens to it: ``hold``, ``drop``,
``delay``, ``reset`` (after any number of its bytes), ``silence``.

Conditions of the whole wire are attributes: ``latency_s``, ``bytes_per_s``, ``slice_bytes``, ``refusing``; and calls:
``silence(to="server")`` for a network that swallows one way, ``reset_all()``, ``heal()``.

There is no TLS through the gate: a client that asks for it is told no.  One side that vanishes takes the other along,
except while a message is held: then the server waits, as behind a proxy that has not noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

Sender = Literal["frontend", "backend"]
Action = Literal["hold", "drop", "delay", "reset", "silence"]
Receiver = Literal["server", "client", "both"]

CANCEL, SSL, GSS = 80877102, 80877103, 80877104
"""The numbers in messages that have no type letter."""

WAIT_S = 30.0
SLICES_PER_S = 20
"""Into how many pieces a slow wire cuts a second's bytes."""

RECEIVE_S = 0.02
"""A reset overtakes bytes that the receiver has not read yet: they get this much ahead."""


class Severed(Exception):
    """The gate has cut this connection."""


@dataclass(slots=True)
class Message:
    """One whole message as it stood on the wire."""

    sender: Sender
    kind: str
    raw: bytes


@dataclass(slots=True)
class Fault:
    """What shall happen to matching messages, and whether it has."""

    sender: Sender
    kind: str
    containing: bytes
    during: bytes
    application: str
    nth: int
    times: int | None
    action: Action
    amount: float = 0.0
    hits: int = 0
    _seen: int = 0
    _happened: asyncio.Event = field(default_factory=asyncio.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def matches(self, message: Message, wire: Wire) -> bool:
        """True when this message is one that the fault is about, and its turn has come."""
        if (
            message.sender != self.sender
            or (self.kind and message.kind != self.kind)
            or self.containing not in message.raw
            or self.during not in wire.statement
            or self.application not in wire.application
            or (self.times is not None and self.hits >= self.times)
        ):
            return False
        self._seen += 1
        return self._seen >= self.nth

    def strike(self) -> None:
        """Note that it happens now."""
        self.hits += 1
        self._happened.set()

    async def happened(self, timeout_s: float = WAIT_S) -> None:
        """Wait for the first hit."""
        try:
            await asyncio.wait_for(self._happened.wait(), timeout_s)
        except TimeoutError:
            raise AssertionError(
                f"{self.action} of {self.sender} {self.kind or 'any'} {self.containing!r} did not happen"
            ) from None

    def release(self) -> None:
        """Let held messages go on, now and in future."""
        self._released.set()

    async def released(self) -> None:
        """Wait for ``release``."""
        await self._released.wait()


@dataclass(frozen=True, slots=True)
class When:
    """A description of messages that waits for its verb."""

    gate: Gate
    sender: Sender
    kind: str
    containing: bytes
    during: bytes
    application: str
    nth: int
    times: int | None

    def hold(self) -> Fault:
        """Keep it, and all that follows in its direction, until ``release``."""
        return self._add("hold")

    def drop(self) -> Fault:
        """Swallow this one message."""
        return self._add("drop")

    def delay(self, seconds: float) -> Fault:
        """Pass it on later."""
        return self._add("delay", seconds)

    def reset(self, after_bytes: int = 0) -> Fault:
        """Pass on so many of its bytes, then reset the connection (RST) on both sides."""
        return self._add("reset", after_bytes)

    def silence(self) -> Fault:
        """From this message on nothing passes in its direction on this connection; it stays open."""
        return self._add("silence")

    def _add(self, action: Action, amount: float = 0.0) -> Fault:
        fault = Fault(
            self.sender, self.kind, self.containing, self.during, self.application, self.nth, self.times, action, amount
        )
        self.gate.faults.append(fault)
        return fault


class Gate:
    """Listens on 127.0.0.1 at a port of its own and passes everything on to ``host:port``, or not."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.host = "127.0.0.1"
        self.port = 0
        self.faults: list[Fault] = []
        self.wires: list[Wire] = []
        self.seen: Counter[tuple[Sender, str]] = Counter()
        self.latency_s = 0.0
        self.bytes_per_s = 0.0
        self.slice_bytes = 0
        self.refusing = False
        self._silent: set[Receiver] = set()
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, self.host, 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        for fault in self.faults:
            fault.release()
        self.reset_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def dsn(self, direct: str) -> str:
        """The connection URI ``direct`` with the gate in the server's place, and without TLS unless it says which."""
        parts = urlsplit(direct)
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        query = parts.query
        if "sslmode=" not in query:
            query = f"{query}&sslmode=disable".lstrip("&")
        return urlunsplit(parts._replace(netloc=f"{user}{self.host}:{self.port}", query=query))

    def on(
        self,
        *,
        frontend: str | None = None,
        backend: str | None = None,
        containing: bytes = b"",
        during: bytes = b"",
        application: str = "",
        nth: int = 1,
        times: int | None = 1,
    ) -> When:
        """Describe messages: exactly one of ``frontend`` and ``backend`` names the type ("" is any).

        ``during``: bytes of the statement that the connection last asked for.  ``nth``: from which match on.
        ``times``: how often the fault strikes, None for always.
        """
        assert (frontend is None) != (backend is None), "say who sends it: frontend= or backend="
        sender: Sender = "frontend" if frontend is not None else "backend"
        return When(self, sender, frontend or backend or "", containing, during, application, nth, times)

    def silence(self, *, to: Receiver = "both") -> None:
        """Swallow whatever is sent to the server, to the client, or both, until ``heal``."""
        self._silent.update(("server", "client") if to == "both" else (to,))

    def is_silent(self, receiver: Receiver) -> bool:
        """True while what is sent to that side is swallowed."""
        return receiver in self._silent

    def heal(self) -> None:
        """Forget every fault and condition.  What was swallowed stays lost."""
        for fault in self.faults:
            fault.release()
        self.faults.clear()
        self._silent.clear()
        self.latency_s = self.bytes_per_s = 0.0
        self.slice_bytes = 0
        self.refusing = False

    def reset_all(self) -> None:
        """Reset every connection on both sides."""
        for wire in list(self.wires):
            wire.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        wire: Wire | None = None
        try:
            if self.refusing:
                _abort(writer)
                return
            try:
                server_reader, server_writer = await asyncio.open_connection(*self.target)
            except OSError:
                _abort(writer)
                return
            wire = Wire(self, reader, writer, server_reader, server_writer)
            self.wires.append(wire)
            await wire.run()
        except asyncio.CancelledError:
            pass  # only the gate's own end cancels; raising it would make asyncio's stream callback log an error
        finally:
            writer.close()
            if wire in self.wires:
                self.wires.remove(wire)
            self._tasks.discard(task)


class Wire:
    """One client's connection through the gate, and what is known of its state."""

    def __init__(
        self,
        gate: Gate,
        client_reader: asyncio.StreamReader,
        client: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> None:
        self.application = ""
        self.backend_pid = 0
        self.statement = b""
        self._gate = gate
        self._client_reader, self._client = client_reader, client
        self._server_reader, self._server = server_reader, server
        self._statements: dict[bytes, bytes] = {}
        self._is_silent: dict[Sender, bool] = {"frontend": False, "backend": False}

    async def run(self) -> None:
        """Pass messages both ways until both directions have ended."""
        await asyncio.gather(
            self._pass(self._frontend_messages(), self._server, "server"),
            self._pass(self._backend_messages(), self._client, "client"),
        )
        for writer in (self._client, self._server):
            writer.close()

    def reset(self) -> None:
        """RST on both sides."""
        _abort(self._client)
        _abort(self._server)

    async def _pass(self, messages: AsyncIterator[Message], writer: asyncio.StreamWriter, to: Receiver) -> None:
        try:
            async for message in messages:
                self._gate.seen[message.sender, message.kind] += 1
                self._learn(message)
                if await self._admit(message, writer):
                    await self._write(writer, message.raw, to)
        except (Severed, OSError, asyncio.IncompleteReadError):
            pass
        # The other direction learns of the end as it would without a gate: its peer is gone.
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    async def _admit(self, message: Message, writer: asyncio.StreamWriter) -> bool:
        """Let every fault that matches have its way; True when the message goes on."""
        if self._is_silent[message.sender]:
            return False
        for fault in list(self._gate.faults):
            if not fault.matches(message, self):
                continue
            fault.strike()
            match fault.action:
                case "hold":
                    await fault.released()
                case "delay":
                    await asyncio.sleep(fault.amount)
                case "drop":
                    return False
                case "silence":
                    self._is_silent[message.sender] = True
                    return False
                case "reset":
                    if fault.amount:
                        writer.write(message.raw[: int(fault.amount)])
                        await writer.drain()
                        await asyncio.sleep(RECEIVE_S)
                    self.reset()
                    raise Severed
        return True

    async def _write(self, writer: asyncio.StreamWriter, data: bytes, to: Receiver) -> None:
        gate = self._gate
        if gate.latency_s:
            await asyncio.sleep(gate.latency_s)
        step = gate.slice_bytes or (max(1, int(gate.bytes_per_s / SLICES_PER_S)) if gate.bytes_per_s else len(data))
        for start in range(0, len(data), step):
            if gate.is_silent(to):
                return
            piece = data[start : start + step]
            writer.write(piece)
            await writer.drain()
            if gate.bytes_per_s:
                await asyncio.sleep(len(piece) / gate.bytes_per_s)
            elif gate.slice_bytes:
                await asyncio.sleep(0)

    def _learn(self, message: Message) -> None:
        """Keep what ``during`` and ``application`` ask for, and whom the backend said it is."""
        body = message.raw[5:]
        match message.sender, message.kind:
            case "frontend", "startup":
                fields = message.raw[8:].split(b"\0")
                pairs = dict(zip(fields[::2], fields[1::2], strict=False))
                self.application = pairs.get(b"application_name", b"").decode()
            case "frontend", "Q":
                self.statement = body.rstrip(b"\0")
            case "frontend", "P":
                name, text, *_ = body.split(b"\0")
                self._statements[name] = self.statement = text
            case "frontend", "B":
                name = body.split(b"\0")[1]
                self.statement = self._statements.get(name, self.statement)
            case "backend", "K":
                self.backend_pid = struct.unpack_from("!I", body)[0]

    async def _frontend_messages(self) -> AsyncIterator[Message]:
        while True:
            head = await self._client_reader.readexactly(8)
            length, number = struct.unpack("!II", head)
            if number not in (SSL, GSS):
                break
            if not self._gate.is_silent("client"):
                self._client.write(b"N")
        rest = await self._client_reader.readexactly(length - 8)
        yield Message("frontend", "cancel" if number == CANCEL else "startup", head + rest)
        async for message in _typed("frontend", self._client_reader):
            yield message

    async def _backend_messages(self) -> AsyncIterator[Message]:
        async for message in _typed("backend", self._server_reader):
            yield message


async def _typed(sender: Sender, reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    while True:
        head = await reader.readexactly(5)
        (length,) = struct.unpack_from("!I", head, 1)
        yield Message(sender, chr(head[0]), head + await reader.readexactly(length - 4))


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN, dropping what is not sent yet."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
