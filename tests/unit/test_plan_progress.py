"""Progress follows the cursors, never falls, and survives a resume."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model import Phase, Span
from engine.plan.keyspace import KeySpace
from engine.plan.progress import Progress
from tests.support.tables import key_of


def space(rows=1000.0):
    return KeySpace(key_of("int"), rows=rows, low=("0",), high=("1000",))


def span(number, lo, hi, cursor=None, rows=0):
    def key(value):
        return None if value is None else (str(value),)

    return Span(number, Phase.MOVE, key(lo), (str(hi),), key(cursor), 1, rows)


def test_progress_is_the_share_of_rows_passed():
    report = Progress(space()).look(0.0, [span(1, None, 500, cursor=250), span(2, 500, 1000)], 250)
    assert report.progress == pytest.approx(0.25)
    assert report.rows_estimated == pytest.approx(1000)
    assert report.eta_s is None
    assert report.rows_per_s is None


def test_eta_comes_from_the_rate_and_ends_at_zero():
    progress = Progress(space())
    spans = [span(1, None, 1000, cursor=100)]
    progress.look(0.0, spans, 100)
    report = progress.look(10.0, [dataclasses.replace(spans[0], cursor=("200",))], 200)
    assert report.rows_per_s == pytest.approx(10)
    assert report.eta_s == pytest.approx(80)
    done = progress.look(20.0, [dataclasses.replace(spans[0], cursor=("1000",))], 1000)
    assert (done.progress, done.eta_s, done.rows_estimated) == (1.0, 0.0, 1000.0)


def test_a_resumed_job_goes_on_where_it_was_with_the_rate_it_had():
    spans = [span(1, None, 500, cursor=500), span(2, 500, 1000, cursor=750)]
    before = Progress(space()).look(0.0, spans, 750)
    resumed = Progress(space(), rows_per_s=25.0).look(0.0, spans, 750)
    assert resumed.progress == before.progress == pytest.approx(0.75)
    assert resumed.eta_s == pytest.approx(10)


def test_no_end_is_promised_while_nothing_moves():
    progress = Progress(space(), smoothing_s=1.0)
    spans = [span(1, None, 1000, cursor=100)]
    progress.look(0.0, spans, 100)
    progress.look(1.0, [dataclasses.replace(spans[0], cursor=("200",))], 200)
    report = progress.look(60.0, [dataclasses.replace(spans[0], cursor=("200",))], 200)
    assert report.eta_s is None
    assert report.rows_per_s == pytest.approx(0, abs=1e-6)


def test_a_selective_filter_shows_in_the_estimate_and_not_in_the_progress():
    report = Progress(space(1e6)).look(0.0, [span(1, None, 1000, cursor=500)], 5000)
    assert report.progress == pytest.approx(0.5)
    assert report.rows_estimated == pytest.approx(20_000, rel=0.1)


def test_an_unfinished_job_is_never_complete():
    report = Progress(space(0.0)).look(0.0, [span(1, None, 999, cursor=999), span(2, 999, 1000)], 999)
    assert report.progress < 1
    beyond_all_estimates = Progress(space()).look(0.0, [span(1, None, 2000, cursor=1500)], 1500)
    assert 0.99 < beyond_all_estimates.progress < 1
    assert Progress(space(0.0)).look(0.0, [], 0).progress == 1.0


def test_progress_stands_still_where_the_servers_order_runs_against_the_estimates():
    progress = Progress(space())
    assert progress.look(0.0, [span(1, None, 1000, cursor=600)], 600).progress == pytest.approx(0.6)
    assert progress.look(1.0, [span(1, None, 1000, cursor=300)], 610).progress == pytest.approx(0.6)


@given(st.lists(st.integers(1, 999), min_size=1, max_size=20), st.data())
def test_progress_never_falls_while_cursors_move_and_spans_are_stolen(steps, data):
    progress = Progress(space())
    spans = [span(1, None, 1000)]
    last = 0.0
    for now, step in enumerate(sorted(steps)):
        i = data.draw(st.integers(0, len(spans) - 1))
        lo = int(spans[i].lo[0]) if spans[i].lo else 0
        hi = int(spans[i].hi[0])
        if lo < step < hi and data.draw(st.booleans()) and not spans[i].cursor:
            spans[i : i + 1] = [span(1, lo or None, step), span(2, step, hi)]
        elif lo < step <= hi:
            cursor = max(step, int(spans[i].cursor[0]) if spans[i].cursor else 0)
            spans[i] = dataclasses.replace(spans[i], cursor=(str(cursor),))
        report = progress.look(float(now), spans, 0)
        assert last <= report.progress <= 1
        last = report.progress
