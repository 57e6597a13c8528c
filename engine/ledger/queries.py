"""Loads ``queries.sql``: statements by name, so that Python holds no SQL text of the ledger."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files


@cache
def queries() -> dict[str, str]:
    """Name -> statement, comments of the file left out so that the server's logs show what runs."""
    text = (files(__package__) / "queries.sql").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for part in re.split(r"^-- name: ", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if not line.startswith("--")]
        found[name.strip()] = "\n".join(lines).strip().rstrip(";")
    return found


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """(version, script) of every migration, in order; a version is never changed once released."""
    scripts = []
    for entry in (files(__package__) / "migrations").iterdir():
        match = re.fullmatch(r"(\d+)_\w+\.sql", entry.name)
        if match:
            scripts.append((int(match[1]), entry.read_text(encoding="utf-8")))
    return tuple(sorted(scripts))
