"""What is repeated and what is not, how long is waited, and what a stream that breaks costs: decided without a network."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from engine import errors
from engine.client.failures import AnswerLost, DaemonError, NotAllowed
from engine.client.plans import Broken, Give, Habits, NotSent, Open, Plan, Read, Received, Send, Sleep
from engine.client.talk import Talk
from engine.model import JobState
from engine.wire import shapes
from tests.client.jobs import JOB


def job(**changes: Any) -> Received:
    return Received(200, {"content-type": "application/json"}, json.dumps(JOB | changes).encode())


def problem(status: int, code: str, headers: dict[str, str] | None = None, **more: Any) -> Received:
    body = {"type": "x", "title": "x", "status": status, "detail": "no", "instance": "urn:x:12ab", "code": code} | more
    return Received(status, headers or {}, json.dumps(body).encode())


class Played:
    """Plays the network for one plan: gives it an outcome for each request, lets time pass at each sleep."""

    def __init__(self, outcomes: Sequence[Any], *, patience_s: float = 30.0) -> None:
        self.outcomes = list(outcomes)
        self.now = 0.0
        self.asked: list[Any] = []
        self.given: list[Any] = []
        self.slept: list[float] = []
        self.talk = Talk(Habits("unix:///d", patience_s, lambda: self.now, random.Random(1)))

    def run(self, say: Callable[[Talk], Plan[Any]]) -> Any:
        plan = say(self.talk)
        outcome: Any = None
        while True:
            try:
                step = plan.send(outcome)
            except StopIteration as end:
                assert not self.outcomes, f"never asked for: {self.outcomes}"
                return end.value
            outcome = None
            match step:
                case Sleep(seconds):
                    self.now += seconds
                    self.slept.append(seconds)
                case Give(item):
                    self.given.append(item)
                case Send(request) | Open(request):
                    self.asked.append(request)
                    outcome = self._next()
                case Read():
                    outcome = self._next()

    def _next(self) -> Any:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, tuple):  # (seconds that pass, outcome)
            self.now += outcome[0]
            return outcome[1]
        return outcome


SAFE: list[Callable[[Talk], Plan[Any]]] = [
    lambda talk: talk.job("cents"),
    lambda talk: talk.submit({"name": "cents"}),
]
UNSAFE: list[Callable[[Talk], Plan[Any]]] = [
    lambda talk: talk.pause("cents"),
    lambda talk: talk.resume("cents"),
    lambda talk: talk.cancel("cents"),
    lambda talk: talk.pace("cents", {"workers": 1}),
    lambda talk: talk.verify("cents"),
    lambda talk: talk.restart("cents"),
    lambda talk: talk.remove("cents"),
    lambda talk: talk.retry_quarantine("cents"),
    lambda talk: talk.drop_quarantine("cents", [1]),
    lambda talk: talk.change_dual_write("cents", "install"),
    lambda talk: talk.rehearse({"name": "cents"}),
]


# -- repeating ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("say", SAFE)
@pytest.mark.parametrize("first", [Broken("it broke"), NotSent("refused"), problem(503, "draining"), problem(429, "x")])
def test_what_can_be_done_twice_is_tried_again(say: Callable[[Talk], Plan[Any]], first: Any) -> None:
    played = Played([first, first, job()])
    assert played.run(say).job == "cents"
    assert len(played.slept) == 2


@pytest.mark.parametrize("say", UNSAFE)
def test_what_may_have_been_done_is_not_done_again(say: Callable[[Talk], Plan[Any]]) -> None:
    with pytest.raises(AnswerLost, match="not known"):
        Played([Broken("it broke")]).run(say)
    with pytest.raises(errors.CannotConnect):
        Played([problem(503, "cannot_connect")]).run(say)


def test_an_order_that_nobody_heard_is_given_again() -> None:
    turned_away = [problem(429, "too_many_tries"), problem(503, "crowded"), problem(503, "draining")]
    played = Played([NotSent("connection refused"), *turned_away, job(state="paused")])
    assert played.run(lambda talk: talk.pause("cents")).state is JobState.PAUSED


def test_a_connection_that_cannot_come_about_is_not_tried_again() -> None:
    played = Played([NotSent("TLS failed: unknown authority", is_lasting=True)])
    with pytest.raises(errors.CannotConnect, match="unknown authority"):
        played.run(lambda talk: talk.job("cents"))
    assert not played.slept


def test_all_tries_of_a_submission_carry_one_key_and_two_submissions_two() -> None:
    played = Played([Broken("it broke"), problem(503, "draining"), job()])
    played.run(lambda talk: talk.submit({"name": "cents"}))
    one = {request.headers["idempotency-key"] for request in played.asked}
    assert len(one) == 1
    played.outcomes = [job()]
    played.run(lambda talk: talk.submit({"name": "cents"}))
    assert played.asked[-1].headers["idempotency-key"] not in one
    played.outcomes = [job()]
    played.run(lambda talk: talk.submit({"name": "cents"}, idempotency_key="mine"))
    assert played.asked[-1].headers["idempotency-key"] == "mine"


def test_patience_ends_and_pauses_grow_up_to_a_bound_with_jitter() -> None:
    played = Played([NotSent("refused")] * 100)
    with pytest.raises(errors.CannotConnect, match="cannot reach the daemon at unix:///d: refused"):
        played.run(lambda talk: talk.job("cents"))
    assert 20 < played.now <= 30
    assert max(played.slept) <= 5
    assert played.slept[0] < 0.3
    assert len(set(played.slept)) == len(played.slept)


def test_retry_after_is_obeyed_and_a_date_or_a_century_is_not() -> None:
    played = Played([problem(503, "overloaded", {"retry-after": "7"}), job()])
    played.run(lambda talk: talk.job("cents"))
    assert 7 <= played.slept[0] <= 8.75
    played = Played([problem(503, "overloaded", {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), job()])
    played.run(lambda talk: talk.job("cents"))
    assert played.slept[0] < 0.3
    with pytest.raises(DaemonError):
        Played([problem(503, "overloaded", {"retry-after": "99999999999"})]).run(lambda talk: talk.job("cents"))


@pytest.mark.parametrize(
    "key", ["two words", "line\nbreak: x", "ä", "x" * 400], ids=["space", "line", "umlaut", "long"]
)
def test_a_key_that_would_break_its_header_is_not_sent(key: str) -> None:
    played = Played([])
    with pytest.raises(errors.UsageError):
        played.run(lambda talk: talk.pause("cents", if_match=key))
    with pytest.raises(errors.UsageError):
        played.run(lambda talk: talk.submit({}, idempotency_key=key))
    for spec in ({"n": float("nan")}, {"n": object()}):
        with pytest.raises(errors.UsageError, match="JSON"):
            played.run(lambda talk: talk.submit(spec))  # noqa: B023 - it is run at once


# -- errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind", "exit_code"),
    [
        (404, "unknown_job", errors.UnknownJob, 2),
        (404, "ledger_missing", errors.UnknownJob, 2),
        (409, "busy", errors.Busy, 75),
        (409, "stopped", errors.Stopped, 7),
        (409, "schema_drift", errors.SchemaDrift, 7),
        (401, "unauthenticated", DaemonError, 5),
        (403, "forbidden", DaemonError, 5),
        (403, "stranger", DaemonError, 5),
        (412, "changed_meanwhile", DaemonError, 75),
        (409, "idempotency_key_reused", DaemonError, 3),
        (409, "ambiguous_job", DaemonError, 2),
        (418, "a_code_of_tomorrow", DaemonError, 1),
    ],
)
def test_a_problem_becomes_the_error_that_has_its_code(status: int, code: str, kind: type, exit_code: int) -> None:
    with pytest.raises(errors.BackfillError) as caught:
        Played([problem(status, code, hint="do this", sqlstate="42P01")]).run(lambda talk: talk.pause("cents"))
    error = caught.value
    assert type(error) is kind
    assert (error.message, error.hint, error.sqlstate, error.exit_code) == ("no", "do this", "42P01", exit_code)
    assert error.code in (code, "unknown_job")


def test_findings_problems_differences_and_states_come_back_as_they_were() -> None:
    def caught(received: Received) -> Any:
        with pytest.raises(errors.BackfillError) as found:
            Played([received]).run(lambda talk: talk.pause("cents"))
        return found.value

    finding = {"code": "NO_KEY", "severity": "refuse", "message": "none", "remedy": "add one"}
    refused = caught(problem(409, "preflight_refused", findings=[finding]))
    assert isinstance(refused, errors.PreflightRefused)
    assert (refused.findings[0].code, refused.findings[0].severity.value) == ("NO_KEY", "refuse")
    detail = {"pointer": "/columns/a~1b", "message": "is odd", "hint": "mend it"}
    invalid = caught(problem(422, "spec_invalid", errors=[detail]))
    assert isinstance(invalid, errors.SpecError)
    assert (invalid.problems[0].path, invalid.problems[0].hint) == ("columns.a/b", "mend it")
    assert isinstance(caught(problem(403, "not_allowed", errors=[detail])), NotAllowed)
    changed = caught(
        problem(
            409,
            "spec_changed",
            job="cents",
            errors=[{"pointer": "/where", "message": "m", "before": "a", "after": "b"}],
        )
    )
    assert isinstance(changed, errors.SpecChanged)
    assert (changed.job, changed.differences) == ("cents", (("where", "a", "b"),))
    held = caught(problem(409, "held_by_operator", state="cancelled"))
    assert isinstance(held, errors.HeldByOperator)
    assert held.state is JobState.CANCELLED


@pytest.mark.parametrize("body", [b"", b"<html>Bad gateway</html>", b"[1]", b'{"detail": 3}', b"\xff" * 100])
def test_what_answers_and_is_no_daemon_is_told_apart(body: bytes) -> None:
    with pytest.raises(DaemonError, match="answered 500, and did not say why"):
        Played([Received(500, {}, body)]).run(lambda talk: talk.job("cents"))
    with pytest.raises(DaemonError, match="is no Job"):
        Played([Received(200, {}, body)]).run(lambda talk: talk.job("cents"))


def test_a_name_cannot_leave_its_place_in_the_path() -> None:
    played = Played([job()])
    played.run(lambda talk: talk.job("../x?y#z/ä"))
    assert played.asked[0].path == "/v1/jobs/..%2Fx%3Fy%23z%2F%C3%A4"


# -- waiting ------------------------------------------------------------------------------------------------------------


def test_waiting_asks_the_daemon_to_hold_back_and_ends_with_the_job() -> None:
    played = Played([job(), (20.0, job()), (3.0, job(state="done", revision="8"))])
    assert played.run(lambda talk: talk.wait("cents")).state is JobState.DONE
    assert [request.parameters.get("wait") for request in played.asked] == [None, "20s", "20s"]
    assert played.asked[1].headers["if-none-match"] == '"7"'


def test_waiting_for_a_change_outlives_the_daemon_and_answers_without_news() -> None:
    unchanged = (20.0, Received(304, {}, b""))
    played = Played([job(), unchanged, Broken("restart"), NotSent("refused"), unchanged, job(revision="8")])
    assert played.run(lambda talk: talk.wait("cents", until="change")).revision == "8"


def test_waiting_for_a_pause_ends_with_whatever_ends_the_job() -> None:
    assert Played([job(state="paused")]).run(lambda talk: talk.wait("cents", until="paused")).state is JobState.PAUSED
    assert Played([job(state="failed")]).run(lambda talk: talk.wait("cents", until="paused")).state is JobState.FAILED


def test_waiting_gives_up_in_time() -> None:
    played = Played([job(), (20.0, job()), (20.0, job()), (5.0, job())])
    with pytest.raises(errors.Busy, match="running still"):
        played.run(lambda talk: talk.wait("cents", timeout_s=45))
    assert [request.parameters.get("wait") for request in played.asked[1:]] == ["20s", "20s", "5s"]


def test_a_daemon_that_does_not_hold_its_answers_back_is_not_asked_without_end() -> None:
    played = Played([job()] * 20 + [job(state="done")])
    played.run(lambda talk: talk.wait("cents"))
    assert played.now >= 19 * 0.5


# -- following ----------------------------------------------------------------------------------------------------------

OPEN = Received(200, {"content-type": "text/event-stream"}, b"")
RETRY = b"retry: 2000\n\n"
"""How a daemon opens each stream."""


def event(kind: str, data: dict[str, Any], number: int | None = None) -> bytes:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def entry(number: int) -> bytes:
    line = {"id": number, "at": "2026-01-01T00:00:00Z", "who": "ana", "what": "paused", "detail": {}}
    return event("history", line, number)


def page(*numbers: int) -> Received:
    entries = [json.loads(entry(number).decode().split("data: ")[1]) for number in numbers]
    return Received(200, {}, json.dumps({"entries": entries, "next": None}).encode())


END = event("end", {})
DONE = JOB | {"revision": "8", "state": "done"}


def told(played: Played) -> list[Any]:
    return [
        item.id if isinstance(item, shapes.HistoryEntry) else item.state.value if isinstance(item, shapes.Job) else "!"
        for item in played.given
    ]


def test_a_broken_stream_is_taken_up_behind_the_last_entry() -> None:
    first = [OPEN, b"retry: 2000\n\n", entry(3), event("status", JOB), entry(4), Broken("it broke")]
    second = [NotSent("refused"), problem(503, "draining"), OPEN, entry(5), None]
    played = Played([*first, *second, OPEN, event("status", JOB | {"state": "done"}) + END])
    played.run(lambda talk: talk.follow("cents", after=2))
    assert [request.headers.get("last-event-id") for request in played.asked] == ["2", "4", "4", "4", "5"]
    assert told(played) == [3, "running", 4, "!", 5, "done"]


def test_an_end_without_the_last_status_is_looked_up() -> None:
    played = Played([OPEN, event("status", JOB), END, job(state="cancelled")])
    played.run(lambda talk: talk.follow("cents"))
    assert told(played) == ["running", "cancelled"]


def test_a_status_that_says_nothing_new_is_not_told_again() -> None:
    played = Played([OPEN, event("status", JOB) * 3, event("status", JOB | {"state": "done"}), END])
    played.run(lambda talk: talk.follow("cents"))
    assert told(played) == ["running", "done"]


def test_trouble_of_the_daemons_database_is_told_and_events_of_tomorrow_are_passed_over() -> None:
    played = Played(
        [
            OPEN,
            event("trouble", {"message": "main is away"}),
            event("sparkle", {}),
            event("status", JOB | {"state": "done"}),
            END,
        ]
    )
    played.run(lambda talk: talk.follow("cents"))
    assert told(played) == ["!", "done"]


def test_a_daemon_that_stays_away_ends_the_following() -> None:
    played = Played([OPEN, event("status", JOB), Broken("it broke")] + [NotSent("refused")] * 100)
    with pytest.raises(errors.CannotConnect):
        played.run(lambda talk: talk.follow("cents"))
    assert 30 < played.now < 45
    assert told(played) == ["running", "!"], "trouble is told once"


def test_a_job_that_nobody_knows_or_a_token_that_is_not_known_is_told_at_once() -> None:
    for status, code, kind in ((404, "unknown_job", errors.UnknownJob), (401, "unauthenticated", DaemonError)):
        played = Played([problem(status, code)])
        with pytest.raises(kind):
            played.run(lambda talk: talk.follow("cents"))


@pytest.mark.parametrize(
    "refusal",
    [
        [problem(404, "not_found")],
        [problem(405, "method_not_allowed")],
        [Received(200, {"content-type": "text/html"}, b"")],
        [OPEN, None, OPEN, None, OPEN, None],
        [OPEN, RETRY, None, OPEN, RETRY[:7], RETRY[7:], Broken("cut off"), OPEN, RETRY, None],
    ],
)
def test_where_no_stream_comes_through_it_polls(refusal: list[Any]) -> None:
    unchanged = (20.0, Received(304, {}, b""))
    played = Played([*refusal, job(), page(1, 2), unchanged, page(), job(revision="8", state="done"), page(3)])
    played.run(lambda talk: talk.follow("cents", after=0))
    assert told(played) == [1, 2, "running", 3, "done"]


@pytest.mark.parametrize("sign", [b": still there\n\n", event("sparkle", {})])
def test_a_stream_with_signs_of_life_is_a_stream_however_often_it_ends(sign: bytes) -> None:
    cut_off = [OPEN, RETRY, sign, None]
    played = Played([*cut_off * 5, OPEN, event("status", JOB | {"state": "done"}), END])
    played.run(lambda talk: talk.follow("cents"))
    assert told(played) == ["done"]


def test_trouble_does_not_end_with_a_stream_that_is_only_opened() -> None:
    """Or a proxy that answers by itself would keep a daemon that is away from ever being missed."""
    played = Played([*[(12.0, NotSent("refused")), OPEN, RETRY, None] * 2, *[(12.0, NotSent("refused"))] * 2])
    with pytest.raises(errors.CannotConnect):
        played.run(lambda talk: talk.follow("cents"))
    assert told(played) == ["!"]


def test_who_does_not_say_where_to_begin_hears_nothing_old_by_polling_either() -> None:
    played = Played([problem(404, "not_found"), job(), page(8), job(revision="8", state="done"), page()])
    played.run(lambda talk: talk.follow("cents"))
    assert [request.parameters["after"] for request in played.asked if request.path.endswith("/history")] == ["7", "8"]
    assert told(played) == [8, "running", "done"]


def test_what_happens_between_the_first_look_and_the_next_stream_is_not_lost() -> None:
    played = Played([OPEN, RETRY, event("status", JOB), None, OPEN, entry(8), event("status", DONE), END])
    played.run(lambda talk: talk.follow("cents"))
    assert [request.headers.get("last-event-id") for request in played.asked] == [None, "7"]
    assert told(played) == ["running", 8, "done"]
