"""The foreground: an application that does not wait for us, ``pgbench --rate``, and what its users felt.

Transactions arrive by a schedule (Poisson), whether earlier ones have been answered or not, and latency counts from the
moment a transaction was due.  A closed loop would ask less of a server that stalls, and so leave the stall out of its
own figures.  The program is the one beside the server's own programs: the same version on every machine.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from bench.stage import Stage

Floats = npt.NDArray[np.float64]

CLIENTS: Final = 8
ACCOUNTS: Final = 100_000
"""Rows of the foreground's own table: like pgbench's, one row per account."""

END_S: Final = 30.0
"""What pgbench may take beyond its time to answer what is due, connected to a server that is falling behind."""

MARGIN_S: Final = 0.5
"""pgbench knows whole seconds, and is a moment late: it goes on for at least so long after what is asked of it.  What
is due when its time is over and has not begun is dropped, so the end of a run must not be judged.
"""

SEED: Final = 20_250_101
MICROSECONDS: Final = 1e-6

_TABLE = f"""
CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL, note text NOT NULL) WITH (fillfactor = 70);
INSERT INTO accounts SELECT g, 0, repeat('n', 60) FROM generate_series(1, {ACCOUNTS}) AS g;
VACUUM (FREEZE, ANALYZE) accounts;
"""

SCRIPT: Final = r"""
\set account random(1, :accounts)
\set id random(1, :orders)
BEGIN;
SELECT balance FROM accounts WHERE id = :account;
SELECT amount FROM orders WHERE id = :id;
UPDATE accounts SET balance = balance + 1 WHERE id = :account;
UPDATE orders SET flag = NOT flag WHERE id = :id;
COMMIT;
"""
"""Reads and writes a table of its own and the one that the backfill reads or fills, all over both."""


class ForegroundFailed(RuntimeError):
    """pgbench ended with an error, or transactions of it failed: what it measured means nothing."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Every transaction of the foreground: when it was due (wall clock, seconds) and how long it took from then on."""

    due_at: Floats
    latency_s: Floats

    @classmethod
    def none(cls) -> Self:
        """No transaction."""
        return cls(np.empty(0), np.empty(0))

    def __len__(self) -> int:
        return len(self.due_at)

    def between(self, start: float, end: float) -> Answers:
        """Those that were due in ``[start, end)``."""
        inside = (self.due_at >= start) & (self.due_at < end)
        return Answers(self.due_at[inside], self.latency_s[inside])

    def quantile_s(self, share: float) -> float:
        """The latency that this share (0..1) of the transactions did not exceed; NaN of none."""
        # Never between two: a percentile of latencies is a latency that somebody saw.
        return float(np.quantile(self.latency_s, share, method="higher")) if len(self) else float("nan")


def together(parts: Iterable[Answers]) -> Answers:
    """Several as one, in the order in which they were due."""
    all_of_them = tuple(parts)
    if not all_of_them:
        return Answers.none()
    due_at = np.concatenate([part.due_at for part in all_of_them])
    order = np.argsort(due_at, kind="stable")
    return Answers(due_at[order], np.concatenate([part.latency_s for part in all_of_them])[order])


def read_log(lines: Iterable[str]) -> Answers:
    """What ``pgbench --rate --log`` wrote, one line per transaction::

        client  transaction  latency_us  script  epoch_s  epoch_us  schedule_lag_us

    With a rate, the latency counts from the moment when the transaction was due, and the time is that of its end.
    Raises ``ForegroundFailed`` for a transaction that failed.
    """
    ended_at: list[float] = []
    latency_s: list[float] = []
    for line in lines:
        fields = line.split()
        if not fields[2].isdigit():
            raise ForegroundFailed(f"a transaction of the foreground ended as {fields[2]!r}")
        latency_s.append(int(fields[2]) * MICROSECONDS)
        ended_at.append(int(fields[4]) + int(fields[5]) * MICROSECONDS)
    latencies = np.array(latency_s, dtype=np.float64)
    return together([Answers(np.array(ended_at, dtype=np.float64) - latencies, latencies)])


def make_accounts(stage: Stage, database: str) -> None:
    """The foreground's own table."""
    stage.sql(database, _TABLE)


class Foreground:
    """One running pgbench: a context manager that ends it if nobody waited for it."""

    def __init__(self, stage: Stage, database: str, *, orders: int, rate_per_s: float, seconds: float) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="backfill-bench-")
        self._seconds = seconds
        script = Path(self._folder.name, "script.sql")
        script.write_text(SCRIPT)
        self._command = [
            *(stage.server.bin("pgbench"), "--no-vacuum", "--protocol=prepared", f"--random-seed={SEED}"),
            *(f"--client={CLIENTS}", "--jobs=1", f"--rate={rate_per_s:g}", f"--time={math.ceil(seconds)}"),
            *(f"--define=accounts={ACCOUNTS}", f"--define=orders={orders}", f"--file={script}"),
            *("--log", f"--log-prefix={Path(self._folder.name, 'log')}", stage.dsn(database)),
        ]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        assert process is not None
        if process.poll() is None:
            process.kill()
        process.communicate()
        self._folder.cleanup()

    def answers(self) -> Answers:
        """Wait for its end; every transaction.  Raises ``ForegroundFailed``."""
        assert self._process is not None
        try:
            _, errors = self._process.communicate(timeout=self._seconds + END_S)
        except subprocess.TimeoutExpired as late:
            raise ForegroundFailed(f"pgbench is {END_S:.0f} s late: the server does not keep up with it") from late
        if self._process.returncode != 0:
            raise ForegroundFailed(f"pgbench ended with {self._process.returncode}: {errors.strip()[-500:]}")
        lines = (line for log in Path(self._folder.name).glob("log.*") for line in log.read_text().splitlines())
        return read_log(lines)
