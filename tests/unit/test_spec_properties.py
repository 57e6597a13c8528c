"""What holds for every spec, and for every text that is none."""

from __future__ import annotations

import json
from datetime import datetime

import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SpecError
from engine.model import ConflictPolicy, Deletes
from engine.spec import (
    Bloat,
    ChunkLimits,
    Dsn,
    Endpoint,
    JobSpec,
    OnConflict,
    Pace,
    SignalKind,
    SignalSpec,
    SignalUnit,
    TableRef,
    TimeWindow,
    differences,
    parse_spec,
)
from engine.spec.keys import all_keys
from engine.spec.rules import NOT_AVAILABLE

CANARY = "s3cr3t-canary"

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda text: text.strip()
)
NAMES = TEXT.filter(lambda name: len(name.encode()) <= 63)
COLUMNS = st.dictionaries(NAMES, TEXT, min_size=1, max_size=4)
REFERENCES = st.none() | st.from_regex(r"\$\{[A-Z_]{1,8}\}", fullmatch=True)


@st.composite
def endpoints(draw):
    dsn = Dsn(f"host=x password={CANARY}", reference=draw(REFERENCES))
    return Endpoint(dsn=dsn, table=TableRef(draw(st.none() | NAMES), draw(NAMES)))


SECONDS = st.integers(1, 600_000).map(lambda tenths_ms: tenths_ms / 10_000)
SIZES = st.integers(1024, 2**49).map(float)
SHARES = st.integers(1, 1_000_000).map(lambda millionths: millionths / 1_000_000)
COUNTS = st.floats(0.001, 1e14)
SIGNAL_NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True).filter(lambda name: name not in list(SignalKind))
QUERIES = TEXT.filter(lambda text: ";" not in text and "${" not in text).map(str.strip)


@st.composite
def limits(draw, values, *, steers=True):
    """Target and maximum, at least one of them, in order."""
    low, high = sorted(draw(st.lists(values, min_size=2, max_size=2, unique=True)))
    which = draw(st.sampled_from(["both", "target", "maximum"])) if steers else "maximum"
    return {"target": low if which != "maximum" else None, "maximum": high if which != "target" else None}


@st.composite
def signals(draw, kind):
    if kind in (SignalKind.SQL, SignalKind.PROMETHEUS, SignalKind.HTTP):
        given = {
            "name": draw(SIGNAL_NAMES),
            "every_s": draw(st.none() | st.floats(0.2, 3600)),
            "ignore_failure": draw(st.booleans()),
        }
        if kind is not SignalKind.SQL:
            given["url"] = draw(st.sampled_from(["http://a", "https://b:9090/x?y=z"]))
        if kind is not SignalKind.HTTP:
            given |= draw(limits(COUNTS))
            given |= {"query": draw(QUERIES), "given_unit": draw(st.none() | st.sampled_from(SignalUnit))}
        return SignalSpec(kind=kind, **given)
    if draw(st.booleans()):
        return SignalSpec(kind=kind, off=True)
    match kind:
        case SignalKind.READ_LATENCY | SignalKind.COMMIT_LATENCY:
            given = {"target": draw(st.none() | SECONDS)}
        case SignalKind.REPLICATION_LAG:
            in_bytes = draw(st.booleans())
            given = draw(limits(SIZES if in_bytes else st.floats(0.1, 86_400))) | {"in_bytes": in_bytes}
        case SignalKind.LOCK_WAITS:
            given = {"maximum": draw(st.none() | st.floats(0.1, 3600))}
        case SignalKind.SLOT_RETENTION:
            given = draw(limits(SIZES, steers=False))
        case SignalKind.WAL_RATE:
            given = draw(limits(SIZES))
        case SignalKind.VACUUM_DEBT:
            given = draw(limits(SHARES))
        case SignalKind.AUTOVACUUM:
            given = {}
        case _:
            given = draw(limits(COUNTS, steers=kind is SignalKind.ACTIVE_SESSIONS))
    return SignalSpec(kind=kind, **given)


@st.composite
def paces(draw):
    kinds = draw(st.lists(st.sampled_from(SignalKind), max_size=4, unique=True))
    minutes = draw(st.lists(st.integers(0, 1439), min_size=2, max_size=2, unique=True))
    days = tuple(sorted(draw(st.sets(st.integers(0, 6), min_size=1))))
    window = TimeWindow(minutes[0], minutes[1] or 1440, draw(st.sampled_from(["UTC", "Asia/Kolkata"])), days)
    listed = tuple(draw(signals(kind)) for kind in kinds)
    names = [signal.name for signal in listed]
    return Pace(
        max_rows_per_s=draw(st.none() | st.floats(0.001, 1e12)),
        max_wal_bytes_per_s=draw(st.none() | st.integers(2**16, 2**40)),
        windows=draw(st.sampled_from([(), (window,)])),
        finish_by=draw(
            st.none() | st.datetimes(datetime(2000, 1, 2), datetime(2999, 12, 30), timezones=st.timezones())  # noqa: DTZ001
        ),
        signals=listed if len(set(names)) == len(names) else (),
    )


@st.composite
def specs(draw):
    low, high = sorted((draw(st.integers(1, 10_000_000)), draw(st.integers(1, 10_000_000))))
    common = {
        "source": draw(endpoints()),
        "where": draw(st.none() | TEXT),
        "key": tuple(draw(st.lists(NAMES, max_size=3, unique=True))),
        "workers": draw(st.integers(1, 64)),
        "chunk": ChunkLimits(
            target_s=draw(st.floats(0.001, 60)),
            min_rows=low,
            max_rows=high,
            max_bytes=draw(st.integers(2**16, 2**30)),
        ),
        "pace": draw(paces()),
        "accept": tuple(draw(st.lists(st.from_regex(r"[A-Z][A-Z0-9_]*", fullmatch=True), max_size=3, unique=True))),
        "role": draw(st.none() | NAMES),
        "lock_timeout_s": draw(st.floats(0.001, 3600)),
    }
    if draw(st.booleans()):
        common["name"] = draw(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,62}", fullmatch=True))
    if draw(st.booleans()):
        growth = draw(st.none() | st.integers(1, 1000).map(lambda percent: percent / 100))
        return JobSpec(**common, set=draw(COLUMNS), done=draw(st.none() | TEXT), bloat=Bloat(max_growth=growth))
    policy = draw(st.sampled_from(ConflictPolicy))
    column = draw(NAMES) if policy is ConflictPolicy.NEWEST else None
    return JobSpec(
        **common,
        target=draw(endpoints()),
        columns=draw(st.just({}) | COLUMNS),
        on_conflict=OnConflict(policy, column),
        deletes=draw(st.sampled_from(Deletes)),
    )


@given(specs())
def test_every_spec_survives_the_ledger(spec):
    data = json.loads(json.dumps(spec.for_ledger(), allow_nan=False))
    target_dsn = spec.target.dsn if spec.target else None
    again = JobSpec.from_ledger(data, source_dsn=spec.source.dsn, target_dsn=target_dsn)
    assert again == spec
    assert again.name == spec.name
    assert differences(again.meaning(), spec.meaning()) == []
    assert again.settings() == spec.settings()


@given(specs())
def test_what_the_ledger_holds_loads_as_a_file_once_it_has_connections(spec):
    data = spec.for_ledger()
    for side in ("source", "target"):
        if side in data:
            data[side]["dsn"] = "${D}"
    loaded = parse_spec(json.dumps(data), {"D": "host=x"})
    assert loaded.meaning() == spec.meaning()
    assert loaded.settings() == spec.settings()


@given(specs())
def test_no_spec_ever_shows_its_secret(spec):
    shown = [spec, str(spec), spec.for_ledger(), spec.meaning(), spec.settings(), spec.source, spec.source.dsn]
    assert CANARY not in repr(shown)


def read(content):
    """The spec in ``content``, or None when it is refused as it should be; any other exception fails the test."""
    return spec_or_problems(lambda: parse_spec(content, {"A": CANARY, "B": f"host=x password={CANARY}"}))


def spec_or_problems(attempt):
    refused = None
    try:
        return attempt()
    except SpecError as error:
        refused = error
    assert refused.problems
    assert all(problem.message for problem in refused.problems)
    assert CANARY not in repr([refused, str(refused), refused.problems])
    return None


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_garbage_is_a_spec_error_and_nothing_else(content):
    assert read(content) is None


@given(st.text("{}[]:,-?&*!|>'\"%@`# \n\t\\aUux0129.~<=", max_size=120))
def test_yaml_punctuation_is_a_spec_error_and_nothing_else(content):
    read(content)
    read("source: {table: t}\nset: {a: b}\nwhere: " + content)


KEYS = st.sampled_from(sorted({part for path in [*all_keys(JobSpec), *NOT_AVAILABLE] for part in path}))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [
            "${A}",
            "${B}",
            "${C}",
            CANARY,
            f"postgresql://u:{CANARY}@h/d",
            "250ms",
            "1MiB",
            "t",
            "keep",
            "off",
            "20%",
            "22:00-06:00 UTC",
        ]
    )
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=6)
)


@given(st.dictionaries(KEYS, TREES, max_size=10))
def test_any_tree_of_known_keys_and_odd_values_is_a_spec_or_a_spec_error(tree):
    for text in (yaml.safe_dump(tree, allow_unicode=True), json.dumps(tree)):
        read(text)


@given(st.dictionaries(KEYS, TREES, max_size=10))
def test_any_tree_in_the_ledger_is_a_spec_or_a_spec_error(tree):
    spec_or_problems(lambda: JobSpec.from_ledger(tree))
