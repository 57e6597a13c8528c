"""What the transport itself has to say, before the application hears of a request."""

from __future__ import annotations

import secrets

from engine.errors import BackfillError
from engine.service import problems
from engine.service.problems import BadRequest

Head = tuple[int, list[tuple[bytes, bytes]], bytes]


class Malformed(BadRequest):
    """Bytes that are no HTTP, or that two readers could read in two ways."""

    code = "malformed_request"
    http_status = 400


class HeadTooLarge(BadRequest):
    """More headers, or longer ones, than any client of ours sends."""

    code = "headers_too_large"
    http_status = 431


class NotSupported(BadRequest):
    """A transfer coding that we do not know."""

    code = "not_supported"
    http_status = 501


class Stranger(BackfillError):
    """A user of this machine that is not listed."""

    code = "stranger"
    exit_code = 5
    http_status = 403


class Crowded(BackfillError):
    """All connections are taken; the ones in reserve are for whoever asks whether we live."""

    code = "crowded"
    exit_code = 75
    http_status = 503


def answer(error: BackfillError) -> Head:
    """Status, headers and body of the last answer on a connection."""
    number = secrets.token_hex(8)
    reply = problems.reply(error, number)
    assert isinstance(reply.content, str)
    body = reply.content.encode()
    headers = [(name.encode(), value.encode()) for name, value in reply.headers.items()]
    headers += [
        (b"content-type", problems.MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-request-id", number.encode()),
        (b"connection", b"close"),
    ]
    return reply.status, headers, body
