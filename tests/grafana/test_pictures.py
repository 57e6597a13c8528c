"""What the pictures of dashboards show is what Grafana would: numbers, names and colours."""

from __future__ import annotations

import pytest

from grafana.boards import dashboards
from grafana.pictures.ask import Span, legend
from grafana.pictures.values import COLOURS, by_threshold, colour, formatted, mapped, readable_on

SPAN = Span(start=1000.0, end=1300.0, step_s=1, rate_interval_s=20, variables={"job": "orders", "side": ".+"})


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "shown"),
    [
        (0.615, "percentunit", 1, "61.5%"),
        (1.0, "percentunit", None, "100%"),
        (0.0042, "s", None, "4.20 ms"),
        (96.0, "s", 1, "1.6 mins"),
        (3600.0, "s", None, "1 hour"),
        (0.0, "s", None, "0 s"),
        (262 * 1024.0**2, "bytes", None, "262 MiB"),
        (1536.0, "binBps", None, "1.50 KiB/s"),
        (6000.0, "count:rows/s", None, "6 K rows/s"),
        (1_500_000.0, "short", None, "1.50 Mil"),
        (0.0042, "sishort", 2, "4.20 m"),
        (2.0, "cps", None, "2 c/s"),
        (float("nan"), "short", None, "NaN"),
    ],
)
def test_a_value_is_shown_in_its_unit(value: float, unit: str, decimals: int | None, shown: str) -> None:
    assert formatted(value, unit, decimals) == shown


def test_variables_are_replaced_by_what_was_chosen() -> None:
    asked = 'rate(x{job="$job", side=~"$side"}[$__rate_interval]) + last_over_time(y{job="${job}"}[$__range])'
    wanted = 'rate(x{job="orders", side=~".+"}[20s]) + last_over_time(y{job="orders"}[300s])'
    assert SPAN.substituted(asked) == wanted


def test_no_query_has_a_variable_that_the_pictures_do_not_know() -> None:
    for dashboard in dashboards().values():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                assert "$" not in SPAN.substituted(target["expr"])


def test_a_line_is_named_by_its_labels() -> None:
    labels = {"job": "orders", "reason": "lag"}
    assert legend("{{job}}: {{reason}}", labels) == "orders: lag"
    assert legend("{{missing}}!", labels) == "!"
    assert legend("", labels) == "orders, lag"


def test_values_get_the_words_and_colours_of_their_mapping() -> None:
    mappings = [{"type": "value", "options": {"8": {"text": "held", "color": "yellow"}}}]
    assert mapped(8.0, mappings) == ("held", COLOURS["yellow"])
    assert mapped(9.0, mappings) is None


def test_a_threshold_colours_from_its_value_on() -> None:
    thresholds = {"steps": [{"value": None, "color": "green"}, {"value": 60, "color": "red"}]}
    assert [by_threshold(value, thresholds) for value in (0.0, 59.9, 60.0)] == [
        COLOURS["green"],
        COLOURS["green"],
        COLOURS["red"],
    ]


def test_every_colour_of_a_dashboard_can_be_drawn() -> None:
    def colours(value: object) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(colours, value)) if value else set()
        if not isinstance(value, dict):
            return set()
        found = set().union(*map(colours, value.values())) if value else set()
        return found | {one for key, one in value.items() if key in ("color", "fixedColor") and isinstance(one, str)}

    used = set().union(*(colours(dashboard["panels"]) for dashboard in dashboards().values()))
    assert used
    assert all(colour(name).startswith("#") for name in used), used


def test_words_can_be_read_on_their_background() -> None:
    assert readable_on(COLOURS["light-yellow"]) != readable_on(COLOURS["dark-red"])
