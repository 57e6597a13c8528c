"""The status page: static files without a build step, which hold no data and ask for it as anybody else does."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files
from typing import Final

from engine.service.problems import NotFound
from engine.service.routing import Call, Reply, Route

_TYPES: Final = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8"}
_SCRIPT: Final = "text/javascript; charset=utf-8"

# What a job is called, and why somebody paused it, are strangers' words: with the last two, no text is ever HTML.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The page runs its own files and speaks to its own daemon, and nothing else, whatever a text in it says."""

_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "vary": "accept-encoding",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


@cache
def page_files() -> dict[str, tuple[bytes, bytes]]:
    """Name -> content of every file of the page, as it is and compressed."""
    folder = files("engine.service") / "page"
    found = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith((*_TYPES, ".js"))}
    return {name: (content, gzip.compress(content, mtime=0)) for name, content in found.items()}


async def page(call: Call) -> Reply:
    """The page itself."""
    return _file(call, "index.html")


async def page_file(call: Call) -> Reply:
    """What the page consists of.  Names are looked up in a table: no path is ever made from one."""
    return _file(call, call.path["file"])


def _file(call: Call, name: str) -> Reply:
    if name not in page_files():
        raise NotFound("the page has no such file", hint="GET / is the page")
    content, compressed = page_files()[name]
    media_type = next((kind for ending, kind in _TYPES.items() if name.endswith(ending)), _SCRIPT)
    if "gzip" in call.headers.get("accept-encoding", ""):
        return Reply(compressed, headers=_HEADERS | {"content-encoding": "gzip"}, media_type=media_type)
    return Reply(content, headers=_HEADERS, media_type=media_type)


ROUTES = (
    Route("GET", "/", "page", "The status page", None, page, media_type="text/html"),
    Route("GET", "/page/{file}", "page_file", "A file of the status page", None, page_file, media_type="*/*"),
)
