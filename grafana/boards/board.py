"""One dashboard: panels laid out from left to right, rows of them under headings."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from typing import Any, Final, Literal

with warnings.catch_warnings():
    # The library would rather build the newest form of dashboards, which Grafana before 12 cannot read.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models import common as kinds
    from grafana_foundation_sdk.models import dashboard as model
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana.boards.queries import Scope, metrics_in
from grafana.boards.states import LOOKS

DATASOURCE: Final = "${datasource}"
TAG: Final = "backfill"
COLUMNS: Final = 24
REFRESH: Final = "30s"

ROWS: Final = "count:rows"
ROWS_PER_S: Final = "count:rows/s"
SECONDS: Final = "s"
BYTES: Final = "bytes"
BYTES_PER_S: Final = "binBps"
SHARE: Final = "percentunit"
COUNT: Final = "short"
PLAIN: Final = "sishort"
"""Of values whose unit the series does not tell: 0.0042 is shown as 4.2 m, whether of seconds or of anything else."""

GOOD: Final = "green"
WARN: Final = "orange"
BAD: Final = "red"
QUIET: Final = "#8e8e8e"

Steps = tuple[tuple[float | None, str], ...]


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel."""

    expr: str
    legend: str = ""
    now: bool = False  # one value, instead of one for each step of the range


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: a query's value, or one of its labels."""

    title: str
    expr: str
    unit: str = COUNT
    decimals: int | None = None
    label: str = ""  # shown instead of the value
    cell: Literal["", "state", "bar", "colour"] = ""
    steps: Steps = ()
    mappings: tuple[Any, ...] = ()
    width: int = 0


@dataclass(slots=True)
class Board:
    """A dashboard in the making."""

    uid: str
    title: str
    description: str
    scope: Scope
    variables: list[Any]
    links: list[Any] = field(default_factory=list)
    default_range: str = "now-1h"
    panels: list[Any] = field(default_factory=list)

    def row(self, title: str) -> None:
        """A heading."""
        self.panels.append(dashboard.Row(title))

    def add(self, panel: Any, title: str, description: str, *, width: int, height: int) -> None:
        """The next panel to the right, or on the next line."""
        panel.title(title).description(description).datasource(_source()).span(width).height(height)
        self.panels.append(panel)

    def as_json(self) -> dict[str, Any]:
        """As Grafana reads it."""
        made = (
            dashboard.Dashboard(self.title)
            .uid(self.uid)
            .description(self.description)
            .tags([TAG])
            .refresh(REFRESH)
            .time(self.default_range, "now")
            .timezone("browser")
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .variables([_datasources(), *self.variables])
            .links(self.links)
            .version(1)
        )
        line = 0
        for number, panel in enumerate(self.panels, 1):
            panel.id(number)
            if isinstance(panel, dashboard.Row):
                assert line % COLUMNS == 0, f"the line before {panel.build().title} is not full"
                made = made.with_row(panel)
            else:
                line += panel.build().grid_pos.w
                made = made.with_panel(panel)
        assert line % COLUMNS == 0, "the last line is not full"
        value: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
        return value

    def metrics(self) -> list[tuple[str, list[str]]]:
        """Each panel's title, and the metrics that it shows."""
        return [
            (panel["title"], [metric for target in panel["targets"] for metric in metrics_in(target["expr"])])
            for panel in self.as_json()["panels"]
            if panel["type"] != "row"
        ]


# -- panels -----------------------------------------------------------------------------------------------------------


def number(
    query: str,
    unit: str,
    *,
    steps: Steps = ((None, "text"),),
    decimals: int | None = None,
    mappings: list[Any] | None = None,
    none: str = "-",
    filled: bool = False,
    legend: str = "",
) -> Any:
    """One large number; with ``legend`` it is a label that is shown, not the value."""
    panel = (
        stat.Panel()
        .with_target(_target("A", Query(query, legend, now=True)))
        .unit(unit)
        .thresholds(_thresholds(steps))
        .no_value(none)
        .graph_mode(kinds.BigValueGraphMode.NONE)
        .color_mode(kinds.BigValueColorMode.BACKGROUND if filled else kinds.BigValueColorMode.VALUE)
        .text_mode(kinds.BigValueTextMode.NAME if legend else kinds.BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .mappings(mappings or [])
    )
    return panel if decimals is None else panel.decimals(decimals)


def lines(
    *queries: Query,
    unit: str,
    stacked: bool = False,
    least: float | None = 0,
    most: float | None = None,
    line_at: Steps = (),
    dashed: str = "",
    colours: dict[str, str] | None = None,
    log: bool = False,
    table_legend: bool = True,
) -> Any:
    """Lines over time.  ``line_at``: thresholds, drawn dashed.  ``dashed``: a pattern of names that are targets or
    limits.  ``colours``: of names.
    """
    panel = (
        timeseries.Panel()
        .unit(unit)
        .line_width(1.5)
        .fill_opacity(35 if stacked else 8)
        .show_points(kinds.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .placement(kinds.LegendPlacement.BOTTOM)
            .display_mode(kinds.LegendDisplayMode.LIST)
            .calcs(["lastNotNull"] if table_legend else [])
        )
        .tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
    )
    for letter, query in zip("ABCDEFGHIJ", queries, strict=False):
        panel = panel.with_target(_target(letter, query))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if least is not None:
        panel = panel.min(least)
    if most is not None:
        panel = panel.max(most)
    if log:
        panel = panel.scale_distribution(common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LOG).log(10))
    if line_at:
        panel = panel.thresholds(_thresholds(((None, "transparent"), *line_at))).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        )
        panel = panel.axis_soft_max(max(at for at, _ in line_at if at is not None) * 1.1)
    if dashed:
        panel = panel.override_by_regexp(
            f"/{dashed}/",
            [
                model.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [6, 4]}),
                model.DynamicConfigValue("custom.fillOpacity", 0),
                model.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "B"}),
            ],
        )
    for name, colour in (colours or {}).items():
        panel = panel.override_by_name(
            name, [model.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})]
        )
    return panel


def timeline(query: Query, mappings: list[Any], *, unit: str = COUNT) -> Any:
    """What each thing was, over time, as coloured bands."""
    return (
        statetimeline.Panel()
        .with_target(_target("A", query))
        .unit(unit)
        .mappings(mappings)
        .merge_values(True)
        .show_value(kinds.VisibilityMode.AUTO)
        .row_height(0.8)
        .fill_opacity(85)
        .line_width(0)
        .legend(common.VizLegendOptions().show_legend(False))
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(_thresholds(((None, QUIET),)))
    )


def grid(by: str, columns: list[Column], *, first: Column, sort: str = "") -> Any:
    """A table with one line for each value of the label ``by``, and one query for each column."""
    panel = (
        table.Panel()
        .cell_height(kinds.TableCellHeight.SM)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    )
    panel = panel.unit(COUNT).no_value("").thresholds(_thresholds(((None, "text"),)))
    hidden: dict[str, bool] = {"Time": True}
    names: dict[str, str] = {by: first.title}
    order: dict[str, int] = {by: 0}
    for place, (letter, column) in enumerate(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", columns, strict=False), 1):
        panel = panel.with_target(_target(letter, Query(column.expr, now=True), as_table=True))
        value = f"Value #{letter}"
        shown = column.label or value
        if column.label:
            hidden[value] = True
        names[shown] = column.title
        order[shown] = place
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={})).with_transformation(
        model.DataTransformerConfig(
            id_val="organize", options={"excludeByName": hidden, "renameByName": names, "indexByName": order}
        )
    )
    for column in (first, *columns):
        properties = _properties(column)
        if properties:
            panel = panel.override_by_name(column.title, properties)
    if sort:
        panel = panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])
    return panel


def _properties(column: Column) -> list[Any]:
    found: list[Any] = []
    if not column.label:
        found.append(model.DynamicConfigValue("unit", column.unit))
    if column.decimals is not None:
        found.append(model.DynamicConfigValue("decimals", column.decimals))
    if column.width:
        found.append(model.DynamicConfigValue("custom.width", column.width))
    if column.cell == "state":
        found.append(model.DynamicConfigValue("custom.cellOptions", {"type": "color-background", "mode": "basic"}))
    elif column.cell == "bar":
        found.append(
            model.DynamicConfigValue(
                "custom.cellOptions", {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
            )
        )
        found += [model.DynamicConfigValue("min", 0), model.DynamicConfigValue("max", 1)]
    elif column.cell == "colour":
        found.append(model.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
    if column.steps:
        found.append(
            model.DynamicConfigValue(
                "thresholds",
                {"mode": "absolute", "steps": [{"value": at, "color": colour} for at, colour in column.steps]},
            )
        )
    if column.mappings:
        found.append(model.DynamicConfigValue("mappings", list(column.mappings)))
    return found


# -- what panels and boards share -------------------------------------------------------------------------------------


def state_mapping() -> dict[str, Any]:
    """Numbers of states as coloured words."""
    return {
        "type": "value",
        "options": {
            str(shown.value): {"text": look.text, "color": look.colour, "index": place}
            for place, (shown, look) in enumerate(LOOKS.items())
        },
    }


def words(**options: tuple[str, str]) -> dict[str, Any]:
    """Values as coloured words: ``words(_1=("yes", "green"))``."""
    return {
        "type": "value",
        "options": {
            value.lstrip("_"): {"text": text, "color": colour, "index": place}
            for place, (value, (text, colour)) in enumerate(options.items())
        },
    }


def job_variable(*, multi: bool) -> Any:
    """Which job, or jobs, the dashboard is about: those seen within its range."""
    variable = _labels("job", "Job", "label_values(backfill_job_state, job)")
    if not multi:
        return variable
    return (
        variable.multi(True).include_all(True).all_value(".+").current(model.VariableOption(True, ["All"], ["$__all"]))
    )


def side_variable() -> Any:
    """Which of the job's databases."""
    variable = _labels("side", "Side", 'label_values(backfill_database_up{job="$job"}, side)')
    return (
        variable.multi(True).include_all(True).all_value(".+").current(model.VariableOption(True, ["All"], ["$__all"]))
    )


def link(title: str, uid: str, *, keep_job: bool = True) -> Any:
    """To another dashboard, for the same time, and for the same job where both are about one."""
    job = "&var-job=${job}" if keep_job else ""
    return (
        dashboard.DashboardLink(title)
        .type(model.DashboardLinkType.LINK)
        .icon("dashboard")
        .url(f"/d/{uid}?var-datasource={DATASOURCE}{job}")
        .keep_time(True)
    )


def cell_link(title: str, uid: str) -> Any:
    """Property of a column of jobs: a click on a cell opens the dashboard of the job that stands there."""
    url = f"/d/{uid}?var-datasource={DATASOURCE}&var-job=${{__value.raw}}&${{__url_time_range}}"
    return model.DynamicConfigValue("links", [{"title": title, "url": url}])


def _labels(name: str, label: str, query: str) -> Any:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_source())
        .query({"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
        .definition(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )


def _datasources() -> Any:
    return dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def _source() -> Any:
    return kinds.DataSourceRef(type_val="prometheus", uid=DATASOURCE)


def _thresholds(steps: Steps) -> Any:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(at, colour) for at, colour in steps])
    )


def _target(letter: str, query: Query, *, as_table: bool = False) -> Any:
    made = prometheus.Dataquery().ref_id(letter).expr(query.expr).datasource(_source())
    if query.legend:
        made = made.legend_format(query.legend)
    if as_table:
        made = made.format(PromQueryFormat.TABLE)
    return made.instant() if query.now else made.range()
