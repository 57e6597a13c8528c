"""Signals, windows, deadlines and growth in a spec file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from engine.errors import SpecError
from engine.model import Side
from engine.pace.law import Unit
from engine.spec import JobSpec, SignalKind, SignalSpec, SignalUnit, TimeWindow, parse_spec
from engine.spec.signals import DEFAULT_LIMITS, DEFAULT_SIGNALS, NEEDS_NUMBER

HEAD = "source: {table: t}\nset: {a: b}\n"


def signals(text: str) -> tuple[SignalSpec, ...]:
    return parse_spec(f"{HEAD}pace:\n  signals: {text}", {}).pace.signals


def one(text: str) -> SignalSpec:
    (signal,) = signals(f"[{text}]")
    return signal


def only_problem(text: str) -> tuple[str, str]:
    """Path, and message with hint, of the one problem."""
    with pytest.raises(SpecError) as caught:
        parse_spec(HEAD + text, {})
    assert "s3cr3t-canary" not in repr([caught.value, caught.value.problems])
    (problem,) = caught.value.problems
    assert problem.line >= 3
    assert problem.hint
    return problem.path, f"{problem.message}; {problem.hint}"


def test_the_contract_s_own_example_arrives():
    spec = parse_spec(
        HEAD
        + """
pace:
  max_rows_per_s: 20000
  max_wal_bytes_per_s: 50MiB
  windows: ["22:00-06:00 Asia/Kolkata"]
  finish_by: "2026-12-01T06:00:00+05:30"
  signals:
    - read_latency:    {target: 5ms, query: "select * from t where id = $1"}
    - commit_latency:  {target: 20ms}
    - replication_lag: {target: 5s, max: 30s}
    - active_sessions: {max: 40}
    - lock_waits:      {}
    - wal_archive:     {max: 40}
    - sql:        {name: queue, query: "select count(*) from jobs", target: 100, max: 1000}
    - prometheus: {name: api_p99, url: "http://prometheus:9090", query: "up", target: 0.2}
    - http:       {name: freno, url: "http://freno/check/x"}
bloat: {max_growth: 20%}
""",
        {},
    )
    assert spec.pace.max_wal_bytes_per_s == 50 * 2**20
    assert spec.pace.windows == (TimeWindow(22 * 60, 6 * 60, "Asia/Kolkata"),)
    assert spec.pace.finish_by == datetime(2026, 12, 1, 0, 30, tzinfo=UTC)
    assert spec.bloat.max_growth == 0.2
    assert [(s.name, s.target, s.maximum) for s in spec.pace.signals] == [
        ("read_latency", 0.005, None),
        ("commit_latency", 0.02, None),
        ("replication_lag", 5.0, 30.0),
        ("active_sessions", None, 40.0),
        ("lock_waits", None, 1.0),
        ("wal_archive", None, 40.0),
        ("queue", 100.0, 1000.0),
        ("api_p99", 0.2, None),
        ("freno", None, 0.0),
    ]
    assert spec.pace.signals == spec.pace.effective_signals()[:2] + tuple(
        s for s in spec.pace.signals if s.name not in ("read_latency", "commit_latency")
    )


def test_without_a_word_the_latencies_and_lock_waits_are_on():
    assert parse_spec(HEAD, {}).pace.effective_signals() == DEFAULT_SIGNALS
    assert [(s.kind, s.target, s.maximum) for s in DEFAULT_SIGNALS] == [
        (SignalKind.READ_LATENCY, None, None),
        (SignalKind.COMMIT_LATENCY, None, None),
        (SignalKind.LOCK_WAITS, None, 1.0),
    ]


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("off", []),
        ("[]", ["read_latency", "commit_latency", "lock_waits"]),
        ("[{read_latency: off}]", ["commit_latency", "lock_waits"]),
        ("[{lock_waits: off}, {wal_archive: off}]", ["read_latency", "commit_latency"]),
        ("[{wal_archive: {}}, {commit_latency: off}]", ["read_latency", "lock_waits", "wal_archive"]),
    ],
)
def test_what_is_on_is_the_defaults_as_the_spec_changes_them(text, on):
    spec = parse_spec(f"{HEAD}pace: {{signals: {text}}}", {})
    assert [s.name for s in spec.pace.effective_signals()] == on
    again = JobSpec.from_ledger(spec.for_ledger(), source_dsn=spec.source.dsn)
    assert again.pace.effective_signals() == spec.pace.effective_signals()


@pytest.mark.parametrize("kind", sorted(DEFAULT_LIMITS.keys() - {SignalKind.HTTP}))
def test_an_empty_entry_means_the_defaults_of_its_kind(kind):
    signal = one(f"{kind}: {{}}")
    assert (signal.target, signal.maximum) == DEFAULT_LIMITS[kind]


@pytest.mark.parametrize(
    ("text", "unit", "target", "maximum"),
    [
        ("read_latency: {target: 5ms}", SignalUnit.SECONDS, 0.005, None),
        ("replication_lag: {target: 16MiB, max: 100MiB}", SignalUnit.BYTES, 16.0 * 2**20, 100.0 * 2**20),
        ("replication_lag: {max: 1.5m}", SignalUnit.SECONDS, None, 90.0),
        ("slot_retention: {max: 10GiB}", SignalUnit.BYTES, None, 10.0 * 2**30),
        ("wal_rate: {max: 80MiB}", SignalUnit.BYTES_PER_S, None, 80.0 * 2**20),
        ("vacuum_debt: {target: 5%, max: 12.5%}", SignalUnit.RATIO, 0.05, 0.125),
        ("xid_age: {max: 1000000000}", SignalUnit.COUNT, None, 1e9),
        ("sql: {name: x, query: select 1, max: 0.5, unit: ratio}", SignalUnit.RATIO, None, 0.5),
    ],
)
def test_numbers_arrive_in_the_unit_of_their_kind(text, unit, target, maximum):
    signal = one(text)
    assert (signal.unit, signal.target, signal.maximum) == (unit, target, maximum)


def test_units_are_those_of_the_law():
    assert [unit.value for unit in SignalUnit] == [unit.value for unit in Unit]


def test_a_signal_of_one_s_own_says_how_it_is_asked():
    signal = one("sql: {name: q, query: ' select 1; ', max: 1, every: 5s, on_failure: ignore, side: target, unit: s}")
    assert (signal.query, signal.every_s, signal.ignore_failure) == ("select 1", 5.0, True)
    assert (signal.side, signal.unit) == (Side.TARGET, SignalUnit.SECONDS)


@pytest.mark.parametrize("kind", sorted(NEEDS_NUMBER - {SignalKind.SQL, SignalKind.PROMETHEUS}))
def test_a_kind_that_only_its_user_can_judge_asks_for_a_number(kind):
    path, words = only_problem(f"pace: {{signals: [{{{kind}: {{}}}}]}}")
    assert path.startswith(f"pace.signals[0].{kind}")
    assert "max" in words or "is missing" in words


@pytest.mark.parametrize(
    ("entry", "path", "words"),
    [
        ("red_latency: {}", "[0].red_latency", "did you mean read_latency?"),
        ("zzz: {}", "[0].zzz", "known here: read_latency"),
        ("read_latency: {taget: 5ms}", "[0].read_latency.taget", "did you mean target?"),
        ("commit_latency: {max: 5ms}", "[0].commit_latency.max", "known here: target"),
        ("autovacuum: {every: 5s}", "[0].autovacuum.every", "write {}"),
        ("read_latency: on", "[0].read_latency", "off to turn it off"),
        ("read_latency: false", "[0].read_latency", "must be a mapping"),
        ("read_latency:", "[0].read_latency", "is empty"),
        ("read_latency: {target: 5}", "[0].read_latency.target", "needs a unit"),
        ("read_latency: {target: 0.01ms}", "[0].read_latency.target", "at least 0.0001"),
        ("read_latency: {query: ''}", "[0].read_latency.query", "is empty"),
        ("read_latency: {query: ';'}", "[0].read_latency.query", "is empty"),
        ("read_latency: {query: 'select 1; select 2'}", "[0].read_latency.query", "more than one statement"),
        ("replication_lag: {max: 5}", "[0].replication_lag.max", "neither a duration nor a size"),
        ("replication_lag: {max: 1ms}", "[0].replication_lag.max", "out of range"),
        ("replication_lag: {target: 5s, max: 1MiB}", "[0].replication_lag", "mixes a duration and a size"),
        ("replication_lag: {target: 30s, max: 5s}", "[0].replication_lag", "target is not below max"),
        ("active_sessions: {target: 0}", "[0].active_sessions.target", "more than 0"),
        ("active_sessions: {max: .nan}", "[0].active_sessions.max", "must be a number"),
        ("vacuum_debt: {max: 120%}", "[0].vacuum_debt.max", "at most 1"),
        ("vacuum_debt: {max: 0.2}", "[0].vacuum_debt.max", "percent sign"),
        ("sql: off", "[0].sql", "must be a mapping"),
        ("sql: {name: q, query: select 1}", "[0].sql", "neither target nor max"),
        ("sql: {name: q, query: select 1, target: 5, max: 5}", "[0].sql", "not below"),
        ("sql: {name: Q, query: select 1, max: 1}", "[0].sql.name", "lower-case"),
        ("sql: {name: wal_rate, query: select 1, max: 1}", "[0].sql.name", "built-in"),
        ("sql: {name: q, query: 'select ${X}', max: 1}", "[0].sql.query", "works only in `dsn`"),
        ("sql: {name: q, query: select 1, max: 1, every: 1ms}", "[0].sql.every", "at least 0.2"),
        ("sql: {name: q, query: select 1, max: 1, unit: sec}", "[0].sql.unit", "must be one of: s, bytes"),
        ("sql: {name: q, query: select 1, max: 1, on_failure: freeze}", "[0].sql.on_failure", "hold, ignore"),
        ("http: {name: q, url: 'http://u:s3cr3t-canary@h/'}", "[0].http.url", "a user name or a password"),
        ("http: {name: q, url: 's3cr3t-canary'}", "[0].http.url", "is not a URL"),
        ("http: {name: q, url: 'file:///s3cr3t-canary'}", "[0].http.url", "is not a URL"),
        ("http: {name: q, url: 'http://'}", "[0].http.url", "is not a URL"),
        ("http: {name: q, url: 'http://h:99999/'}", "[0].http.url", "is not a URL"),
        ("http: {name: q, url: 'http://[::1'}", "[0].http.url", "is not a URL"),
        ("http: {name: q, url: 'http://h/a b'}", "[0].http.url", "is not a URL"),
        ("http: {name: q}", "[0].http.url", "is missing"),
        ("lock_waits: {}, wal_archive: {}", "[0]", "exactly one key"),
        ("", "[0]", "exactly one key"),
    ],
)
def test_one_mistake_in_a_signal_is_one_problem_with_its_place(entry, path, words):
    where, text = only_problem(f"pace: {{signals: [{{{entry}}}]}}")
    assert where == f"pace.signals{path}"
    assert words in text


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("signals: on", "pace.signals", "list of signals, or off"),
        ("signals: {lock_waits: {}}", "pace.signals", "list of signals, or off"),
        ("signals:", "pace.signals", "is empty"),
        ("signals: [lock_waits]", "pace.signals[0]", "must be a mapping"),
        ("signals: [{lock_waits: {}}, ]\n  signals: []", "pace.signals", "given twice"),
        ("signals: [{lock_waits: {}}, {lock_waits: off}]", "pace.signals[1].lock_waits", "given twice"),
        (
            "signals: [{http: {name: a, url: 'http://h'}}, {sql: {name: a, query: select 1, max: 1}}]",
            "pace.signals[1].sql.name",
            "given twice",
        ),
        ("windows: [22:00-06:00]", "pace.windows[0]", "names no time zone"),
        ("windows: [22:00-06:00 Asia/Kolkatta]", "pace.windows[0]", "did you mean Asia/Kolkata?"),
        ("windows: [22:00-06:00 asia/kolkata]", "pace.windows[0]", "did you mean Asia/Kolkata?"),
        ("windows: [22:00-06:00 Asia]", "pace.windows[0]", "does not exist"),
        ("windows: [22:00-06:00 localtime]", "pace.windows[0]", "does not exist"),
        ("windows: [22:00-06:00 ../../etc/passwd]", "pace.windows[0]", "is not a time window"),
        ("windows: [22-06 UTC]", "pace.windows[0]", "is not a time window"),
        ("windows: [24:00-06:00 UTC]", "pace.windows[0]", "24:00 is the end"),
        ("windows: [06:00-24:01 UTC]", "pace.windows[0]", "24:00 is the end"),
        ("windows: [06:00-06:00 UTC]", "pace.windows[0]", "00:00-24:00"),
        ("windows: [Mom 06:00-07:00 UTC]", "pace.windows[0]", "Mon, Tue"),
        ("windows: [6]", "pace.windows[0]", "must be text"),
        ("windows: 22:00-06:00 UTC", "pace.windows", "must be a list"),
        ("windows: [06:00-07:00 UTC, '06:00-07:00  UTC']", "pace.windows", "twice"),
        ("finish_by: 2026-12-01", "pace.finish_by", "is not a date and time"),
        ("finish_by: 2026-12-01T06:00:00", "pace.finish_by", "names no time zone"),
        ("finish_by: 2026-02-30T06:00:00Z", "pace.finish_by", "that exist"),
        ("finish_by: 2026-12-01 06:00 Asia/Kolkatta", "pace.finish_by", "did you mean Asia/Kolkata?"),
        ("finish_by: 2026-03-29 02:30 Europe/Berlin", "pace.finish_by", "with its offset"),
        ("finish_by: 2026-10-25 02:30 Europe/Berlin", "pace.finish_by", "with its offset"),
        ("finish_by: 20261201", "pace.finish_by", "is not a date and time"),
        ("max_wal_bytes_per_s: 50", "pace.max_wal_bytes_per_s", "needs a unit"),
        ("max_wal_bytes_per_s: 1kB", "pace.max_wal_bytes_per_s", "at least"),
        ("lock_waits: {}", "pace.lock_waits", "it belongs under pace.signals"),
    ],
)
def test_one_mistake_in_pace_is_one_problem_with_its_place(text, path, words):
    where, found = only_problem("pace:\n  " + text)
    assert where.startswith(path)
    assert words in found


@pytest.mark.parametrize("growth", ["20", "0%", "0.2", "1001%", "-1%", "'20'"])
def test_growth_is_a_share_in_percent(growth):
    assert only_problem(f"bloat: {{max_growth: {growth}}}")[0] == "bloat.max_growth"


@pytest.mark.parametrize(
    ("text", "offset_hours"),
    [
        ("2026-12-01T06:00:00+05:30", 5.5),
        ("2026-12-01 06:00 Asia/Kolkata", 5.5),
        ("2026-07-01 06:00 Europe/Berlin", 2),
        ("2026-12-01T06:00Z", 0),
        ("2026-12-01 06:00:00.5-03:00", -3),
    ],
)
def test_a_deadline_keeps_its_offset_and_loses_its_zone(text, offset_hours):
    spec = parse_spec(f"{HEAD}pace: {{finish_by: {text}}}", {})
    moment = spec.pace.finish_by
    assert moment is not None
    assert (moment.hour, moment.utcoffset()) == (6, timedelta(hours=offset_hours))
    assert JobSpec.from_ledger(spec.for_ledger()).pace.finish_by == moment


def test_an_address_is_in_no_representation():
    assert "s3cr3t-canary" not in repr(one("http: {name: q, url: 'http://h/?token=s3cr3t-canary'}"))
