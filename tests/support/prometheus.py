"""A real Prometheus that scrapes what a test tells it to: Debian's programs, in a private folder, gone afterwards."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import pytest

READY_S: Final = 30.0
ANSWER_S: Final = 20.0
STOP_S: Final = 10.0
POLL_S: Final = 0.05
ATTEMPTS: Final = 5
LOG_LINES: Final = 20

WATCH: Final = r"""
log=$1
shift
"$@" </dev/null >>"$log" 2>&1 &
program=$!
read -r _
kill "$program"
wait "$program"
"""
"""Ends the program when standard input closes, which the kernel does for us however we die."""


def program(name: str) -> str:
    """The path of one of the programs of Debian's package; skips the test where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: Debian's package prometheus brings it")
    return found


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer: its labels, without the metric's name, and its last value."""

    name: str
    labels: Mapping[str, str]
    values: tuple[tuple[float, float], ...]  # (moment, value), the oldest first

    @property
    def value(self) -> float:
        """The newest value."""
        return self.values[-1][1]

    def __getitem__(self, label: str) -> str:
        return self.labels[label]


class Prometheus:
    """A server on a free port of this host; a context manager that starts it and leaves nothing behind.

    ``rules``: the text of a file of rules.  What it scrapes is told by ``watch``, now or later; all labels of what is
    scraped are honoured, as the documents ask of users.
    """

    def __init__(self, *, scrape_every_s: float = 1.0, rules: str = "") -> None:
        self._program = program("prometheus")
        self._every_s = scrape_every_s
        self._rules = rules
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(timeout=ANSWER_S, trust_env=False)
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()

    # --- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it; returns when it answers."""
        self._folder = Path(tempfile.mkdtemp(prefix="prometheus-"))
        self._write("prometheus.json", self._configuration())  # JSON is YAML
        self._write("rules.yaml", self._rules)
        self.watch()
        for attempt in range(ATTEMPTS):
            if self._try():
                return
            assert attempt < ATTEMPTS - 1, f"Prometheus does not start:\n{self.log()}"

    def _try(self) -> bool:
        assert self._folder is not None
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [
                *("/bin/sh", "-c", WATCH, "watch", str(self._folder / "log"), self._program),
                f"--config.file={self._folder / 'prometheus.json'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stdin=subprocess.PIPE,
            cwd=self._folder,
        )
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and "address already in use" not in self.log():
            try:
                if self._client.get(f"{self.url}/-/ready").status_code == httpx.codes.OK:
                    return True
            except httpx.TransportError:
                pass
            time.sleep(POLL_S)
        self._stop()
        return False

    def discard(self) -> None:
        """Stop it and remove its folder."""
        self._client.close()
        self._stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(STOP_S)

    def log(self) -> str:
        """The last lines of what it complained about."""
        assert self._folder is not None
        path = self._folder / "log"
        return "\n".join(path.read_text().splitlines()[-LOG_LINES:]) if path.exists() else ""

    # --- what it scrapes ---------------------------------------------------------------------------------------------

    def watch(self, *addresses: str) -> None:
        """Scrape these ``HOST:PORT`` from now on, and no others.  It notices at once."""
        self._write("targets.new", json.dumps([{"targets": sorted(addresses)}]))
        assert self._folder is not None
        (self._folder / "targets.new").rename(self._folder / "targets.json")

    def targets(self) -> dict[str, str]:
        """What it scrapes, and how that went: ``HOST:PORT`` -> up, down or unknown."""
        return {one["labels"]["instance"]: one["health"] for one in self._get("targets")["activeTargets"]}

    # --- what it knows -----------------------------------------------------------------------------------------------

    def query(self, expression: str, at: float | None = None) -> list[Series]:
        """The value of an expression now, or at that time.  Values that are NaN are left out."""
        answer = self._get("query", query=expression, **({} if at is None else {"time": at}))
        if answer["resultType"] == "scalar":
            return _series([{"metric": {}, "value": answer["result"]}])
        return _series(answer["result"])

    def query_range(self, expression: str, start: float, end: float, step_s: float = 1.0) -> list[Series]:
        """The values of an expression over a time."""
        return _series(self._get("query_range", query=expression, start=start, end=end, step=step_s)["result"])

    def value(self, expression: str) -> float | None:
        """The one value of an expression; None when it has none."""
        found = self.query(expression)
        assert len(found) <= 1, f"{expression} has {len(found)} values"
        return found[0].value if found else None

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are pending or firing."""
        return list(self._get("alerts")["alerts"])

    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {alert["labels"]["alertname"] for alert in self.alerts() if alert["state"] == "firing"}

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with their health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def until(self, condition: Callable[[], bool], what: str, patience_s: float = READY_S) -> None:
        """Wait until the condition holds: it is a look at a server that nobody can be told to signal."""
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(4 * POLL_S)

    def _get(self, what: str, **parameters: Any) -> Any:
        answer = self._client.get(f"{self.url}/api/v1/{what}", params=parameters).json()
        assert answer["status"] == "success", f"{what} {parameters}: {answer.get('error')}"
        return answer["data"]

    def _configuration(self) -> str:
        every = f"{round(self._every_s * 1000)}ms"
        return json.dumps(
            {
                "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
                "rule_files": ["rules.yaml"],
                "scrape_configs": [
                    {
                        "job_name": "backfill",
                        "honor_labels": True,
                        "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}],
                    }
                ],
            }
        )

    def _write(self, name: str, text: str) -> None:
        assert self._folder is not None
        (self._folder / name).write_text(text)


def promtool(*arguments: str, stdin: str = "", folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; skips the test where it is missing."""
    return subprocess.run(
        [program("promtool"), *arguments], input=stdin, capture_output=True, text=True, cwd=folder, check=False
    )


def _series(found: Sequence[Mapping[str, Any]]) -> list[Series]:
    result = []
    for one in found:
        labels = dict(one["metric"])
        pairs = one["values"] if "values" in one else [one["value"]]
        values = tuple((float(at), float(value)) for at, value in pairs if not math.isnan(float(value)))
        if values:
            result.append(Series(labels.pop("__name__", ""), labels, values))
    return result


def _free_port() -> int:
    """Free a moment ago; who takes it meanwhile is noticed by the log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
