"""What a spec names without saying what it is: connections and signals of a daemon's operator, and JSON pointers."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SpecError, UsageError
from engine.flow.wishes import asked, may_ask
from engine.spec import (
    Dsn,
    JobSpec,
    Purpose,
    SignalKind,
    SignalSpec,
    differences,
    load_spec,
    parse_spec,
    read_submitted,
)
from engine.spec.document import MAX_POINTER_LENGTH, Document, pointer_text, read_document
from engine.spec.submitted import MAX_COLUMNS, MAX_ENTRIES, MAX_PROBLEMS

ENV = {"D": "host=somewhere"}
FOR_A_DAEMON = "source: {connection: main, table: public.orders}\nset: {cents: amount}\npace: {signals: [api_p99]}\n"
SUBMITTED = {"source": {"connection": "main", "table": "public.orders"}, "set": {"cents": "amount"}}
API = SignalSpec(kind=SignalKind.HTTP, name="api_p99", url="http://api/ok?key=s3cr3t-canary", of_operator=True)


def problems(text, purpose=Purpose.HAND):
    with pytest.raises(SpecError) as caught:
        parse_spec(text, ENV, purpose=purpose)
    return {p.path: (p.line, p.message, p.hint) for p in caught.value.problems}


def refused(data):
    with pytest.raises(SpecError) as caught:
        read_submitted(data)
    return {p.pointer: p.message for p in caught.value.problems}


# -- who reads it -----------------------------------------------------------------------------------------------------


def test_by_hand_a_connection_and_a_signal_of_an_operator_are_refused_with_what_to_do():
    found = problems(FOR_A_DAEMON)
    assert set(found) == {"source.connection", "pace.signals[0]"}
    assert found["source.connection"][0] == 1
    assert found["pace.signals[0]"][0] == 3
    for _, message, hint in found.values():
        assert "of a daemon's operator" in message
        assert "--daemon" in hint
    assert "dsn" in found["source.connection"][2]
    assert "prometheus" in found["pace.signals[0]"][2]


def test_a_spec_for_a_daemon_names_what_the_operator_has_configured(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(FOR_A_DAEMON)
    for purpose in (Purpose.DAEMON, Purpose.EITHER):
        spec = load_spec(path, {}, purpose=purpose)
        assert spec.needs_daemon
        assert (spec.source.connection, spec.source.dsn) == ("main", None)
        assert spec.pace.unknown_signals == ("api_p99",)


def test_a_target_without_a_connection_is_in_the_sources():
    spec = parse_spec("{source: {connection: main, table: t}, target: {table: u}}", {}, purpose=Purpose.DAEMON)
    assert spec.target is not None
    assert spec.target.connection == "main"


def test_a_daemon_takes_no_connection_string_and_no_variable():
    text = 'source: {dsn: "${D}", table: t}\ntarget: {connection: a, dsn: "host=x", table: u}\nwhere: "a = ${D}"\n'
    found = problems(text, Purpose.DAEMON)
    assert set(found) == {"source.dsn", "target.dsn", "where"}
    assert "only in files that are run by hand" in found["where"][1]


def test_a_daemon_wants_to_be_told_the_sources_connection():
    assert set(problems("source: {table: t}\nset: {a: b}\n", Purpose.DAEMON)) == {"source.connection"}


def test_a_spec_that_is_only_checked_is_a_daemons_when_it_names_anything_of_an_operators():
    assert set(problems("{source: {connection: a, dsn: x, table: t}, set: {a: b}}", Purpose.EITHER)) == {"source.dsn"}
    by_hand = parse_spec("{source: {dsn: '${D}', table: t}, set: {a: b}}", ENV, purpose=Purpose.EITHER)
    assert not by_hand.needs_daemon
    assert by_hand.source.dsn == Dsn("host=somewhere", reference="${D}")


@pytest.mark.parametrize(
    ("signals", "path", "words"),
    [
        ("[Api]", "pace.signals[0]", "not a signal's name"),
        ("[lock_waits]", "pace.signals[0]", "must be a mapping"),
        ("[http]", "pace.signals[0]", "must be a mapping"),
        ("[api, {lock_waits: {}}, api]", "pace.signals[2]", "twice"),
        ("[api, {http: {name: api, url: 'http://a'}}]", "pace.signals[1].http.name", "twice"),
    ],
)
def test_a_mistake_in_the_name_of_a_signal_has_its_place(signals, path, words):
    found = problems(
        f"source: {{connection: main, table: t}}\nset: {{a: b}}\npace: {{signals: {signals}}}", Purpose.DAEMON
    )
    assert set(found) == {path}
    assert words in found[path][1]


# -- the ledger -------------------------------------------------------------------------------------------------------


def test_the_ledger_keeps_names_and_never_what_they_mean():
    spec = JobSpec.from_ledger(
        parse_spec(FOR_A_DAEMON, {}, purpose=Purpose.DAEMON).for_ledger(),
        source_dsn=Dsn("host=a password=s3cr3t-canary"),
        signals={"api_p99": API},
    )
    assert spec.pace.signals == (API,)
    assert spec.source.dsn is not None
    data = spec.for_ledger()
    assert data["source"] == {"connection": "main", "table": "public.orders"}
    assert data["pace"]["signals"] == ["api_p99"]
    shown = [spec, str(spec), data, spec.settings(), spec.meaning(), spec.model_dump(), spec.model_dump_json()]
    assert "s3cr3t-canary" not in repr(shown)


def test_a_name_that_nobody_here_knows_stays_a_name_and_nothing_is_moved_without_it():
    data = parse_spec(FOR_A_DAEMON, {}, purpose=Purpose.DAEMON).for_ledger()
    spec = JobSpec.from_ledger(data, source_dsn=Dsn("host=a"), signals={"other": API})
    assert spec.for_ledger() == data
    assert (spec.pace.signals, spec.pace.unknown_signals) == ((), ("api_p99",))
    with pytest.raises(UsageError, match="api_p99"):
        may_ask(spec)


def test_a_connection_is_no_part_of_a_jobs_identity():
    one = parse_spec("{source: {connection: a, table: t}, set: {x: y}}", {}, purpose=Purpose.DAEMON)
    other = parse_spec("{source: {connection: b, table: t}, set: {x: y}}", {}, purpose=Purpose.DAEMON)
    by_hand = parse_spec("{source: {dsn: '${D}', table: t}, set: {x: y}}", ENV)
    assert one.name == other.name == by_hand.name
    assert differences(one.meaning(), other.meaning()) == differences(one.meaning(), by_hand.meaning()) == []


def test_settings_that_come_later_may_ask_only_what_this_host_has_named():
    own = JobSpec.from_ledger(
        SUBMITTED | {"pace": {"signals": ["api_p99"]}}, source_dsn=Dsn("host=a"), signals={"api_p99": API}
    )
    listed = {"http": {"name": "spy", "url": "http://elsewhere"}}
    sql = {"sql": {"name": "spy", "query": "select secret()", "max": 1}}
    for signals, strange in (([], False), (["api_p99"], False), ([listed], True), ([sql], True)):
        newest = JobSpec.from_ledger(SUBMITTED | {"pace": {"signals": signals}}, signals=own.operator_signals)
        assert bool(asked(own, newest.pace.effective_signals()) - may_ask(own)) is strange


def test_by_hand_the_newest_runs_sql_is_asked_as_before():
    own = JobSpec.from_ledger(SUBMITTED, source_dsn=Dsn("host=a"))
    sql = {"sql": {"name": "queue", "query": "select 1", "max": 1}}
    newest = JobSpec.from_ledger(SUBMITTED | {"pace": {"signals": [sql]}})
    assert not asked(own, newest.pace.effective_signals()) - may_ask(own)


# -- pointers ---------------------------------------------------------------------------------------------------------


def resolve(data, pointer):
    """RFC 6901, as plainly as it can be written."""
    for written in pointer.split("/")[1:]:
        part = written.replace("~1", "/").replace("~0", "~")
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


KEYS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["a.b", "a/b", "~", "~1", "", "0", "a[1]", "§ x"]
)
TREES = st.recursive(
    st.integers(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)


def places(data, path=()):
    yield path, data
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in children:
        yield from places(item, (*path, key))


@given(TREES)
def test_a_pointer_leads_to_the_place_whatever_its_keys_are(data):
    for path, value in places(data):
        assert resolve(data, pointer_text(path)) is value


def test_a_problem_of_a_file_points_into_it():
    text = '{"source": {"table": "t"}, "set": {"a.b/c~d": ""}, "chunk": {"nonsense": 1}, "accept": ["A", "b"]}'
    with pytest.raises(SpecError) as caught:
        parse_spec(text, {})
    pointers = {problem.pointer for problem in caught.value.problems}
    assert pointers == {"/set/a.b~1c~0d", "/chunk/nonsense", "/accept/1"}
    assert resolve(json.loads(text), "/set/a.b~1c~0d") == ""


def test_a_pointer_never_shows_itself_to_people():
    problem = read_document('{"s3cr3t-canary of somebody!": 1, "s3cr3t-canary of somebody!": 2}').problems[0]
    assert "s3cr3t-canary" in problem.pointer
    assert "s3cr3t-canary" not in repr(problem)
    assert "s3cr3t-canary" in dataclasses.asdict(problem)["pointer"]


def test_a_pointer_that_no_answer_could_hold_ends_at_what_holds_the_rest():
    assert pointer_text(("set", "a" * (MAX_POINTER_LENGTH + 1))) == "/set"
    assert pointer_text(("set", "half \ud83d")) == "/set"
    document = Document(data={})
    document.report(("set", "\0"), "x")
    assert document.problems[0].pointer == "/set"


# -- submitted --------------------------------------------------------------------------------------------------------


def test_a_submitted_spec_is_read_as_one_for_a_daemon():
    spec = read_submitted(SUBMITTED)
    assert spec == parse_spec(json.dumps(SUBMITTED), {}, purpose=Purpose.DAEMON)


@pytest.mark.parametrize("data", [None, [], {}, 5, "source", True, 1.5, [SUBMITTED], float("inf"), object()])
def test_what_is_no_spec_is_refused(data):
    assert refused(data)


def deep(levels, make):
    inner = 1
    for _ in range(levels):
        inner = make(inner)
    return inner


HOSTILE = {
    "deep mappings": deep(5_000, lambda inner: {"pace": inner}),
    "deep lists": SUBMITTED | {"pace": deep(5_000, lambda inner: [inner])},
    "a megabyte of text": SUBMITTED | {"where": "a" * 2**20},
    "a megabyte as a key": SUBMITTED | {"a" * 2**20: 1},
    "a megabyte of names": SUBMITTED | {"source": {"connection": "main", "table": "a." * 2**19}},
    "a nul": SUBMITTED | {"where": "a\0b"},
    "a nul in a key": SUBMITTED | {"set": {"a\0": "b"}},
    "half a character": SUBMITTED | {"done": "\ud83d"},
    "half a character in a key": SUBMITTED | {"set": {"\udc00": "b"}},
    "infinity": SUBMITTED | {"pace": {"max_rows_per_s": float("1e999")}},
    "not a number": SUBMITTED | {"pace": {"max_rows_per_s": float("nan")}},
    "a huge integer": SUBMITTED | {"workers": 10**4000},
    "a huge integer as a rate": SUBMITTED | {"pace": {"max_rows_per_s": 10**4000}},
    "many keys": {f"sourc{number}": 1 for number in range(50_000)},
    "many columns": SUBMITTED | {"set": {f"c{number}": "a" for number in range(MAX_COLUMNS + 1)}},
    "many windows": SUBMITTED | {"pace": {"windows": ["22:00-06:00 Europe/Berlim"] * (MAX_ENTRIES + 1)}},
    "wrong windows": SUBMITTED | {"pace": {"windows": [f"22:00-06:00 Europe/Berlim{n}" for n in range(MAX_ENTRIES)]}},
    "spaces for a slow pattern": {
        "source": SUBMITTED["source"],
        "target": {"table": "public.u"},
        "on_conflict": "keep" + " " * 99_000 + "!",
    },
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_spec_is_refused_soon_in_few_words(what):
    began = time.perf_counter()
    with pytest.raises(SpecError) as caught:
        read_submitted(HOSTILE[what])
    assert time.perf_counter() - began < 5.0
    assert 1 <= len(caught.value.problems) <= MAX_PROBLEMS
    said = json.dumps([dataclasses.asdict(problem) for problem in caught.value.problems], ensure_ascii=False)
    assert len(said.encode()) < 2**17


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["source", "target", "connection", "table", "pace", "signals", "dsn", "x"]), inner
        )
    ),
)


@given(st.dictionaries(st.sampled_from(["source", "target", "set", "columns", "pace", "chunk", "name", "accept"]), ODD))
def test_any_tree_is_a_spec_or_a_spec_error(data):
    refusal: SpecError | None = None
    try:
        assert read_submitted(data).needs_daemon
    except SpecError as error:
        refusal = error
    if refusal is not None:
        assert refusal.problems
        json.dumps([dataclasses.asdict(problem) for problem in refusal.problems], ensure_ascii=False).encode()
