"""The demonstration and the examples: what they say is true, and nothing is left of the first however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.cli import demo as demo_module
from engine.cli import demo_shop
from engine.cli.demo import demo
from engine.errors import VerificationMismatch
from engine.spec import load_spec
from tests.support.databases import FreshDatabase

ROWS = 5_000
PATIENCE_S = 60.0

COMMAND = [sys.executable, "-c", "import sys; from engine.cli.main import main; sys.exit(main())", "demo"]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Customers are watched for a moment only."""
    monkeypatch.setattr(demo_module, "BEFORE_S", 0.5)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(demo, [*arguments, "--rows", str(ROWS)], standalone_mode=False)


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("major", ["16", "18"])
def test_moves_a_live_table_and_proves_it(hurried: None, major: str) -> None:
    result = invoke("--json", "--major", major)
    assert result.exception is None, result.stderr
    assert result.return_value == 0
    last = events_of(result.stdout)[-1]
    assert last["event"] == "demo.finished"
    assert last["verified"] is True
    comparison, customers = last["comparison"], last["customers"]
    assert (comparison["missing"], comparison["extra"], comparison["different"]) == (0, 0, 0)
    # Some deletes met an order that was gone already.
    assert 0 < ROWS + customers["insert"] - comparison["rows"] <= customers["delete"]
    assert customers["before"]["transactions"] > 50
    assert customers["before"]["p50_ms"] > 0


def test_tells_a_newcomer_what_happens(hurried: None) -> None:
    result = invoke()
    assert result.return_value == 0, result.stderr
    for words in (
        "A private PostgreSQL 16 starts",
        "Expand",
        "Dual-write",
        "Customers come",
        "Backfill",
        "gate",
        "Compare",
    ):
        assert words in result.stderr
    assert "0 missing, 0 extra, 0 different: equal, row by row" in result.stdout
    assert "p99" in result.stdout


def test_fails_when_the_tables_differ(hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    astray = "UPDATE orders_v2 SET amount_cents = -1 WHERE id = $2 + 0 * $1::int"
    monkeypatch.setattr(demo_shop, "ORDERS", {**demo_shop.ORDERS, "update": astray})
    result = invoke("--json")
    assert isinstance(result.exception, VerificationMismatch)
    assert result.exception.exit_code == 6
    finished = [event for event in events_of(result.stdout) if event["event"] == "job.finished"]
    assert [event["verified"] for event in finished] == [False]


def wait_for(line: str, output: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while line not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary folder that servers' own account can use, empty at the end."""
    folder = Path(tempfile.mkdtemp(prefix="demo-"))
    folder.chmod(0o1777)
    yield folder
    folder.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "A private PostgreSQL"),  # while initdb runs
        (signal.SIGTERM, "A shop opens"),
        (signal.SIGINT, "Expand"),
        (signal.SIGINT, "Backfill"),
    ],
)
def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, place: Path, number: signal.Signals, moment: str
) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file:
        environment = {**os.environ, "TMPDIR": str(place)}
        arguments = [*COMMAND, "--rows", "200000"]
        process = subprocess.Popen(arguments, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        wait_for(moment, output, process)
        while not list(place.iterdir()):
            time.sleep(0.01)
        os.killpg(process.pid, number)  # as a terminal does: everybody in the foreground gets it
        assert process.wait(PATIENCE_S) == 128 + number, output.read_text()
    finally:
        process.kill()
        process.wait()
    assert list(place.iterdir()) == []


@pytest.mark.slow
def test_kept_until_interrupted(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen([*COMMAND, "--rows", "1000", "--keep", "--json"], stdout=file, stderr=file)
    try:
        wait_for("demo.kept", output, process)
        last = events_of(output.read_text())[-1]
        status = [sys.executable, "-c", "import sys; from engine.cli.main import main; sys.exit(main())", "status"]
        seen = subprocess.run(
            [*status, "--dsn", last["dsn"], "orders-to-orders-v2", "--json"], capture_output=True, check=True
        )
        assert json.loads(seen.stdout)["state"] == "done"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    finally:
        process.kill()
        process.wait()


EXAMPLES = Path(__file__).parents[2] / "examples"
CONNECTIONS = {"SOURCE_DSN": "postgresql://db.example/shop", "TARGET_DSN": "postgresql://new.example/shop"}


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_a_valid_spec(file: Path) -> None:
    assert load_spec(file, CONNECTIONS).name
    assert file.name in (EXAMPLES / "README.md").read_text()


def test_the_example_of_dual_write_writes_to_both_tables(database: FreshDatabase) -> None:
    database.sql(
        "CREATE TABLE orders (id bigint PRIMARY KEY, customer_id int NOT NULL, status text NOT NULL, "
        "amount numeric(12,2) NOT NULL, note text, created_at timestamptz NOT NULL);"
        "INSERT INTO orders VALUES (1, 1, 'old', 1.00, NULL, now()), (2, 1, 'old', 2.00, NULL, now())"
    )
    database.sql((EXAMPLES / "new-table.sql").read_text())
    database.sql(
        "INSERT INTO orders VALUES (3, 1, 'new', 3.00, NULL, now()), (4, 1, 'new', 4.00, NULL, now());"
        "UPDATE orders SET amount = 1.25 WHERE id = 1; UPDATE orders SET id = 30 WHERE id = 3;"
        "DELETE FROM orders WHERE id IN (2, 4)"
    )
    assert database.sql("SELECT id, amount_cents FROM orders_v2 ORDER BY id") == "1|125\n30|300"
