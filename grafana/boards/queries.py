"""Queries, composed from the catalogue: whose a metric is decides how its processes are added up.

* Counters: ``sum by (…) (rate(…))``: restarts of a process and handovers between processes are resets, which ``rate``
  knows; a process that is gone has no rate.
* Gauges: ``max by (…)``: while the reporter or the leader changes, two processes may show one job for a moment.

A name that the catalogue does not have, or a label that the metric does not, is an error here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from engine.telemetry.catalogue import METRICS, PREFIX, Kind, Metric

KNOWN: Final = {metric.name: metric for metric in METRICS}
STEP: Final = "$__rate_interval"
TARGETS_OWN: Final = ("instance",)
"""Labels that Prometheus gives to what it scrapes."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which series a dashboard is about."""

    job: str
    side: str = ""

    def of(self, name: str, where: str = "", suffix: str = "") -> str:
        """A selector: ``backfill_name{…}``."""
        metric = KNOWN[name]
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", where))
        assert asked <= {*metric.labels}, f"{name} has no label {asked - {*metric.labels}}"
        matchers = [self.job if "job" in metric.labels else "", self.side if "side" in metric.labels else "", where]
        inside = ", ".join(matcher for matcher in matchers if matcher)
        return f"{metric.full_name}{suffix}" + (f"{{{inside}}}" if inside else "")

    def rate(self, name: str, *by: str, where: str = "", window: str = STEP) -> str:
        """A counter's increase per second."""
        metric = _known(name, by, Kind.COUNTER)
        return f"sum by ({', '.join(by)}) (rate({self.of(metric.name, where)}[{window}]))"

    def increase(self, name: str, *by: str, where: str = "", window: str = STEP) -> str:
        """A counter's increase within a window."""
        metric = _known(name, by, Kind.COUNTER)
        return f"sum by ({', '.join(by)}) (increase({self.of(metric.name, where)}[{window}]))"

    def counted(self, name: str, *by: str, where: str = "") -> str:
        """What the processes of now have counted since they began: for a counter that each of them raises only once."""
        metric = _known(name, by, Kind.COUNTER)
        return f"sum by ({', '.join(by)}) ({self.of(metric.name, where)})"

    def gauge(self, name: str, *by: str, where: str = "") -> str:
        """A gauge now."""
        metric = _known(name, by, Kind.GAUGE)
        return f"max by ({', '.join(by)}) ({self.of(metric.name, where)})"

    def seconds(self, name: str, *by: str, where: str = "") -> str:
        """A histogram's sum, per second: of durations, how much of each second went there."""
        metric = _known(name, by, Kind.HISTOGRAM)
        return f"sum by ({', '.join(by)}) (rate({self.of(metric.name, where, '_sum')}[{STEP}]))"

    def mean(self, name: str, *by: str, where: str = "") -> str:
        """A histogram's mean: exact where its buckets are too coarse."""
        count = self.seconds(name, *by, where=where).replace("_sum{", "_count{")
        return f"{self.seconds(name, *by, where=where)} / {count}"

    def quantile(self, q: float, name: str, *by: str, where: str = "") -> str:
        """A histogram's quantile."""
        metric = _known(name, by, Kind.HISTOGRAM)
        labels = ", ".join(("le", *by))
        return f"histogram_quantile({q}, sum by ({labels}) (rate({self.of(metric.name, where, '_bucket')}[{STEP}])))"

    def found(self, name: str, *by: str, where: str = "", is_: str = "== 1") -> str:
        """1 for each label set that has such a series."""
        _known(name, by, Kind.GAUGE)
        return f"group by ({', '.join(by)}) ({self.of(name, where)} {is_})"

    def found_last(self, name: str, *by: str, within: str, where: str = "", is_: str = "== 1") -> str:
        """The same of the last value that each series had lately, though nobody may show it now."""
        _known(name, by, Kind.GAUGE)
        return f"group by ({', '.join(by)}) (last_over_time({self.of(name, where)}[{within}]) {is_})"


def _known(name: str, by: tuple[str, ...], kind: Kind) -> Metric:
    metric = KNOWN[name]
    assert metric.kind is kind, f"{name} is a {metric.kind}"
    assert set(by) <= {*metric.labels, *TARGETS_OWN}, f"{name} has no label {set(by) - set(metric.labels)}"
    return metric


def metrics_in(expression: str) -> list[str]:
    """The metrics that a query reads, without prefix."""
    found = []
    for name in re.findall(rf"\b{PREFIX}(\w+)", expression):
        base = name if name in KNOWN else re.sub(r"_(?:bucket|sum|count)$", "", name)
        assert base in KNOWN, f"{PREFIX}{name} is not in the catalogue"
        found.append(base)
    return list(dict.fromkeys(found))
