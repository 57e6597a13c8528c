"""Waiting until something is so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_S = 40.0
"""For what comes soon, on a machine that is busy with other things."""


async def until(
    condition: Callable[[], object],
    what: str | Callable[[], object] = "it never came true",
    *,
    within_s: float = PATIENCE_S,
) -> None:
    """Wait until it holds.  ``what``: what to say when it does not, or what to ask for it then."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        await asyncio.sleep(0.01)
