"""Evaluates the panels of a dashboard on a Prometheus, as Grafana would."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class Span:
    """The time that a dashboard shows, and what stands for its variables."""

    start: float
    end: float
    step_s: float
    rate_interval_s: float
    variables: Mapping[str, str]

    def substituted(self, expression: str) -> str:
        """A query without variables."""
        known = {
            "__rate_interval": f"{self.rate_interval_s:.0f}s",
            "__range": f"{self.end - self.start:.0f}s",
            **self.variables,
        }
        return re.sub(r"\$\{?(\w+)\}?", lambda found: known[found[1]], expression)


@dataclass(frozen=True, slots=True)
class Series:
    """One result: its labels, what the legend calls it, which query gave it, and its points."""

    labels: Mapping[str, str]
    name: str
    query: str
    points: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.points[-1][1]


class Prometheus:
    """What is asked of it."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)

    def get(self, path: str, **parameters: Any) -> Any:
        """The ``data`` of an answer of its HTTP API.  Raises ``RuntimeError`` with its words."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        if answer["status"] != "success":
            raise RuntimeError(f"{answer.get('error')}: {parameters}")
        return answer["data"]

    def series(self, panel: Mapping[str, Any], span: Span) -> list[Series]:
        """What a panel's queries give."""
        return [series for target in panel["targets"] for series in self._answers(target, span)]

    def _answers(self, target: Mapping[str, Any], span: Span) -> Iterator[Series]:
        expression = span.substituted(target["expr"])
        if target.get("instant"):
            found = self.get("query", query=expression, time=span.end)["result"]
        else:
            limits = {"start": span.start, "end": span.end, "step": span.step_s}
            found = self.get("query_range", query=expression, **limits)["result"]
        for one in found:
            pairs = [one["value"]] if "value" in one else one["values"]
            points = tuple((float(at), float(value)) for at, value in pairs)
            labels = one["metric"]
            yield Series(labels, legend(target.get("legendFormat", ""), labels), target["refId"], points)


def legend(pattern: str, labels: Mapping[str, str]) -> str:
    """``{{job}}: {{reason}}`` with a series' labels."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), pattern) or ", ".join(labels.values())
