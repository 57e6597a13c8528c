"""Processes for fault tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.support.runner import Nursery


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nursery() -> AsyncIterator[Nursery]:
    """Forks runners; one for all tests of a module, which run in the module's event loop."""
    async with Nursery() as opened:
        yield opened
