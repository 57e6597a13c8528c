"""Which URLs a worker for a whole ledger may ask: those below the allowed ones, however they are spelt."""

from __future__ import annotations

import pytest

from engine.fleet.lent import _is_below

ALLOWED = "http://metrics:9090/api/own"


@pytest.mark.parametrize(
    "url",
    [ALLOWED, f"{ALLOWED}/", f"{ALLOWED}/query", f"{ALLOWED}/my%20query", "http://metrics:9090/api/%6Fwn?x=../.."],
)
def test_below(url: str) -> None:
    assert _is_below(url, ALLOWED)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/api",
        "/api/owner",
        "/api/own/../other",
        "/api/own/..",
        "/api/own/%2e%2e/other",
        "/api/own/.%2E/other",
        "/api/own/%252e%252e/other",
        "/api/own/%25252e./other",
        "/api/own/..;/other",
        "/api/own/..%2fother",
        "/api/own%2fother",
        "/api%2fown",
        "/api/own/..\\other",
        "/api/own\\other",
        "/api/own/%5cother",
        "/api/own/%255cother",
        "/api/own/%c0%ae%c0%ae/other",
    ],
)
def test_not_below(path: str) -> None:
    assert not _is_below(f"http://metrics:9090{path}", ALLOWED)


@pytest.mark.parametrize("origin", ["https://metrics:9090", "http://metrics:9091", "http://metrics:9090@evil"])
def test_another_origin(origin: str) -> None:
    assert not _is_below(f"{origin}/api/own/query", ALLOWED)


@pytest.mark.parametrize("allowed", ["http://metrics:9090", "http://metrics:9090/"])
def test_a_whole_host(allowed: str) -> None:
    assert _is_below("http://metrics:9090/any/thing", allowed)
    assert not _is_below("http://metrics:9090/any/%2e%2e/thing", allowed)
