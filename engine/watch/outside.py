"""Signals from elsewhere by HTTP: a query to Prometheus, and a check that says go or stop.

Redirects are not followed, proxies of the environment not used, answers read up to a limit and a deadline: whoever
answers at that address can make a signal fail, and nothing else.  The library is loaded by the first such probe.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from engine.pace.law import SignalPolicy
from engine.watch.custom import as_number, deadline_for
from engine.watch.probe import Measured, ProbeFailed

if TYPE_CHECKING:
    import httpx

LARGEST_ANSWER_BYTES: Final = 64 * 1024
OK: Final = 200
GO: Final = 0.0
STOP: Final = 1.0
"""What an HTTP check counts: with a maximum of 0 the signal is a gate."""


class _Fetcher:
    """GET with every limit there is."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._client: httpx.AsyncClient | None = None

    async def get(self, url: str, parameters: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body.  Raises ``ProbeFailed``."""
        import httpx  # only jobs with such signals pay for loading it

        if self._client is None:
            self._client = httpx.AsyncClient(
                follow_redirects=False,
                trust_env=False,
                timeout=self._deadline_s,
                headers={"accept-encoding": "identity"},
            )
        try:
            async with asyncio.timeout(self._deadline_s), self._client.stream("GET", url, params=parameters) as answer:
                body = b""
                async for piece in answer.aiter_raw():
                    body += piece
                    if len(body) > LARGEST_ANSWER_BYTES:
                        raise ProbeFailed(f"the answer is larger than {LARGEST_ANSWER_BYTES // 1024} KiB")
                return answer.status_code, body
        except (TimeoutError, httpx.TimeoutException):
            raise ProbeFailed(f"timed out after {self._deadline_s:g}s") from None
        except httpx.ConnectError:
            raise ProbeFailed("nobody can be reached at its URL") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
            raise ProbeFailed("the answer is not HTTP, or ended early") from None

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


class HttpProbe:
    """A check: 200 means go, whatever else is answered means stop, no answer is a failure."""

    def __init__(self, policy: SignalPolicy, url: str, every_s: float) -> None:
        self.policy = policy
        self.every_s = self.quiet_every_s = every_s
        self.asked_at: float | None = None
        self._url = url
        self._fetcher = _Fetcher(deadline_for(self.every_s))

    async def read(self) -> Measured:
        """0 for go, 1 for stop."""
        status, _ = await self._fetcher.get(self._url)
        return Measured(GO if status == OK else STOP, detail=f"HTTP {status}")

    async def close(self) -> None:
        """End the connections."""
        await self._fetcher.close()


class PrometheusProbe:
    """An instant query that must give exactly one sample."""

    def __init__(self, policy: SignalPolicy, url: str, query: str, every_s: float) -> None:
        self.policy = policy
        self.every_s = self.quiet_every_s = every_s
        self.asked_at: float | None = None
        self._url = f"{url.rstrip('/')}/api/v1/query"
        self._query = query
        self._fetcher = _Fetcher(deadline_for(self.every_s))

    async def read(self) -> Measured:
        """In whatever unit the expression counts."""
        status, body = await self._fetcher.get(self._url, {"query": self._query})
        if status != OK:
            raise ProbeFailed(f"the server answers HTTP {status}")
        try:
            data = json.loads(body)["data"]  # errors have none
            return Measured(_sample(data["resultType"], data["result"]))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            raise ProbeFailed("the answer is not one of Prometheus") from None

    async def close(self) -> None:
        """End the connections."""
        await self._fetcher.close()


def _sample(kind: str, result: Any) -> float:
    if kind == "vector":
        if len(result) != 1:
            raise ProbeFailed(f"the query gives {len(result) or 'no'} samples, not one")
        return as_number(float(result[0]["value"][1]))
    if kind == "scalar":
        return as_number(float(result[1]))
    raise ProbeFailed("the query gives a range, not one sample")
