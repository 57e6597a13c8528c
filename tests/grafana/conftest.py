"""One story that a real Prometheus has seen, for all tests of what people look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.recorded import Story, recorded

RULES = Path(__file__).parents[2] / "grafana" / "alerts" / "backfill.rules.yaml"


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    """Told once; skips where there is no Prometheus."""
    with recorded(RULES.read_text()) as told:
        yield told
