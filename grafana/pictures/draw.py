"""Draws a dashboard: every panel where its JSON has it, on a light background.  Needs matplotlib (extra ``bench``)."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from grafana.pictures.ask import Series, Span
from grafana.pictures.values import CLASSIC, by_threshold, colour, formatted, mapped, readable_on

WIDTH_PX: Final = 1600
DPI: Final = 100
COLUMN_PX: Final = WIDTH_PX / 24
ROW_PX: Final = 36
HEAD_PX: Final = 62
GAP_PX: Final = 4
PAGE: Final = "#f4f5f5"
PAPER: Final = "#ffffff"
EDGE: Final = "#d8dadd"
INK: Final = "#24292e"
FAINT: Final = "#6e7580"
GRID: Final = "#e6e8ea"
SHADES: Final = 192
MOST_LEGEND_LINES: Final = 3

Ask = Callable[[Mapping[str, Any]], list[Series]]


def pt(pixels: float) -> float:
    """A size of type in points."""
    return pixels * 72 / DPI


class Page:
    """A figure measured in pixels from its upper left corner."""

    def __init__(self, height_px: float) -> None:
        self.height = height_px
        self.figure = plt.figure(figsize=(WIDTH_PX / DPI, height_px / DPI), dpi=DPI, facecolor=PAGE)
        self._renderer = self.figure.canvas.get_renderer()  # type: ignore[attr-defined]

    def text(self, x: float, y: float, words: str, *, size: float = 12, ink: str = INK, **more: Any) -> None:
        """Words, by default with their upper left corner there."""
        more = {"va": "top", "ha": "left"} | more
        # A dollar sign would begin a formula.
        self.figure.text(
            x / WIDTH_PX, 1 - y / self.height, words.replace("$", r"\$"), fontsize=pt(size), color=ink, **more
        )

    def box(self, x: float, y: float, w: float, h: float, fill: str, *, edge: str = "none", radius: float = 3) -> None:
        """A rectangle with round corners."""
        self.figure.patches.append(
            FancyBboxPatch(
                (x, self.height - y - h),
                w,
                h,
                boxstyle=f"round,pad=0,rounding_size={radius}",
                transform=None,
                facecolor=fill,
                edgecolor=edge,
                linewidth=0.8,
                zorder=-3,  # below axes
                figure=self.figure,
            )
        )

    def bar(self, x: float, y: float, w: float, h: float, fill: str) -> None:
        """A plain rectangle."""
        self.figure.patches.append(
            Rectangle((x, self.height - y - h), w, h, transform=None, facecolor=fill, zorder=-2, figure=self.figure)
        )

    def move(self, axes: Any, x: float, y: float, w: float, h: float) -> None:
        """Axes to another rectangle."""
        axes.set_position((x / WIDTH_PX, 1 - (y + h) / self.height, w / WIDTH_PX, h / self.height))

    def axes(self, x: float, y: float, w: float, h: float) -> Any:
        """Axes in a rectangle."""
        return self.figure.add_axes((x / WIDTH_PX, 1 - (y + h) / self.height, w / WIDTH_PX, h / self.height))

    def width_of(self, words: str, size: float, *, bold: bool = False) -> float:
        """How wide words will be."""
        font = FontProperties(size=pt(size), weight="bold" if bold else "normal")
        width, _, _ = self._renderer.get_text_width_height_descent(words, font, ismath=False)
        return float(width)


def draw(path: Path, dashboard: Mapping[str, Any], ask: Ask, span: Span) -> None:
    """Write one dashboard as a PNG."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    page = Page(HEAD_PX + rows * ROW_PX + GAP_PX)
    _head(page, dashboard, span)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y = place["x"] * COLUMN_PX + GAP_PX, HEAD_PX + place["y"] * ROW_PX + GAP_PX
        w, h = place["w"] * COLUMN_PX - 2 * GAP_PX, place["h"] * ROW_PX - 2 * GAP_PX
        if panel["type"] == "row":
            page.text(x + 4, y + h / 2, "▾  " + panel["title"], size=15, va="center", weight="bold")
            continue
        page.box(x, y, w, h, PAPER, edge=EDGE)
        page.text(x + 9, y + 8, panel["title"], size=13, weight="bold")
        inside = (x + 8, y + 28, w - 16, h - 34)
        DRAWN[panel["type"]](page, panel, ask(panel), inside, span)
    page.figure.savefig(path, dpi=DPI, facecolor=PAGE)
    plt.close(page.figure)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(SHADES)  # a third of the size, and nobody sees it
    few.save(path, optimize=True)


def _head(page: Page, dashboard: Mapping[str, Any], span: Span) -> None:
    page.text(12, 14, dashboard["title"], size=19, weight="bold")
    begin, end = (datetime.fromtimestamp(at, UTC) for at in (span.start, span.end))
    when = f"{begin:%H:%M:%S} to {end:%H:%M:%S}   ⟳ {dashboard['refresh']}"
    page.text(WIDTH_PX - 14, 18, when, size=13, ink=FAINT, ha="right")
    x = 12.0
    for variable in dashboard["templating"]["list"]:
        name = variable["name"]
        value = span.variables.get(name, "Prometheus")
        words = f"{variable['label']}: {'All' if value == '.+' else value}"
        page.text(x, 42, words, size=13, ink=FAINT)
        x += page.width_of(words, 13) + 24
    for link in dashboard.get("links", []):
        page.text(x, 42, "↗ " + link["title"], size=13, ink="#1f60c4")
        x += page.width_of("↗ " + link["title"], 13) + 20


# -- what a panel's options say of a field -----------------------------------------------------------------------------


def _defaults(panel: Mapping[str, Any]) -> dict[str, Any]:
    return dict(panel["fieldConfig"]["defaults"])


def _options(panel: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A field's options: the panel's defaults, and the overrides that match its name."""
    found = _defaults(panel)
    found.update({f"custom.{key}": value for key, value in (found.get("custom") or {}).items()})
    for override in panel["fieldConfig"]["overrides"]:
        matcher = override["matcher"]
        matches = (
            matcher["options"] == name
            if matcher["id"] == "byName"
            else re.search(matcher["options"].strip("/"), name) is not None
        )
        if matches:
            found.update({one["id"]: one.get("value") for one in override["properties"]})
    return found


# -- kinds of panels ---------------------------------------------------------------------------------------------------


def _stat(page: Page, panel: Mapping[str, Any], found: list[Series], inside: Any, span: Span) -> None:  # noqa: ARG001
    x, y, w, h = inside
    options = _defaults(panel)
    is_name = panel["options"].get("textMode") == "name"
    if not found:
        words, ink = options.get("noValue", "No data"), FAINT
    else:
        value = found[0].last
        known = mapped(value, options.get("mappings", []))
        words, ink = known or (
            formatted(value, options["unit"], options.get("decimals")),
            by_threshold(value, options.get("thresholds")),
        )
        words = found[0].name if is_name else words
    size = min(38.0, h * 0.62)
    while size > 12 and page.width_of(words, size, bold=True) > w - 16:
        size -= 1
    if panel["options"].get("colorMode") == "background" and found:
        page.box(x - 4, y - 2, w + 8, h + 4, ink)
        ink = readable_on(ink)
    page.text(x + w / 2, y + h / 2, words, size=size, ink=ink, ha="center", va="center", weight="bold")


def _lines(page: Page, panel: Mapping[str, Any], found: list[Series], inside: Any, span: Span) -> None:
    x, y, w, h = inside
    defaults = _defaults(panel)
    unit, custom = defaults["unit"], defaults.get("custom") or {}
    styles = [_style(panel, series, place) for place, series in enumerate(found)]
    entries = [
        (series.name, style["ink"], formatted(_last(series), unit))
        for series, style in zip(found, styles, strict=True)
        if not math.isnan(_last(series))
    ]
    lines_taken = _legend(page, entries, x, y, w, h) if entries else 0
    axes = page.axes(x + 62, y + 2, w - 70, h - 26 - 17 * lines_taken)
    if custom.get("stacking", {}).get("mode") == "normal":
        _stack(axes, found, styles, span)
    else:
        for series, style in zip(found, styles, strict=True):
            times, values = _with_gaps(series, span)
            axes.plot(times, values, color=style["ink"], linewidth=1.4, linestyle=style["dash"])
            if len(found) == 1:
                axes.fill_between(times, values, color=style["ink"], alpha=0.08, linewidth=0)
    if not found:
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center", va="center", color=FAINT, fontsize=pt(13))
    if custom.get("thresholdsStyle", {}).get("mode") == "dashed":
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is not None:
                axes.axhline(step["value"], color=colour(step["color"]), linewidth=1, linestyle=(0, (4, 3)))
    _limits(axes, defaults, custom, found)
    _time_axis(axes, span)
    ticks = _ticks(axes, unit, whole=unit in ("short", "count:rows") and _is_whole(found))
    axes.set_yticks(ticks, [formatted(tick, unit) for tick in ticks])
    margin = max(page.width_of(formatted(tick, unit), 11) for tick in ticks) + 10
    page.move(axes, x + margin, y + 2, w - margin - 8, h - 26 - 17 * lines_taken)
    axes.tick_params(labelsize=pt(11), colors=FAINT, length=0)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _ticks(axes: Any, unit: str, *, whole: bool) -> list[float]:
    """Round numbers of the unit that is shown: of MiB, not of millions of bytes."""
    low, high = axes.get_ylim()
    scale = 1.0
    if unit in ("bytes", "binBps") and high >= 1:
        scale = 1024.0 ** int(math.log2(high) // 10)
    elif unit == "s" and high >= 60:
        scale = 3600.0 if high >= 3600 else 60.0
    locator = mpl.ticker.MaxNLocator(5, integer=whole, steps=[1, 2, 2.5, 5, 10])
    found = [tick * scale for tick in locator.tick_values(low / scale, high / scale)]
    return [tick for tick in found if low <= tick <= high * 1.001]


def _is_whole(found: Sequence[Series]) -> bool:
    return all(value == round(value) for series in found for _, value in series.points if not math.isnan(value))


def _last(series: Series) -> float:
    return next((value for _, value in reversed(series.points) if not math.isnan(value)), math.nan)


def _style(panel: Mapping[str, Any], series: Series, place: int) -> dict[str, Any]:
    options = _options(panel, series.name)
    chosen = options.get("color") or {}
    ink = colour(chosen["fixedColor"]) if chosen.get("mode") == "fixed" else CLASSIC[place % len(CLASSIC)]
    dash = (options.get("custom.lineStyle") or {}).get("dash")
    return {
        "ink": ink,
        "dash": (0, tuple(part / 1.5 for part in dash)) if dash else "-",
        "is_stacked": (options.get("custom.stacking") or {}).get("mode") == "normal",
    }


def _with_gaps(series: Series, span: Span) -> tuple[list[datetime], list[float]]:
    """Points with a hole wherever the series was absent."""
    times, values = [], []
    before: float | None = None
    for at, value in series.points:
        if before is not None and at - before > 1.5 * span.step_s:
            times.append(_moment(before + span.step_s))
            values.append(math.nan)
        times.append(_moment(at))
        values.append(value)
        before = at
    return times, values


def _stack(axes: Any, found: Sequence[Series], styles: Sequence[Mapping[str, Any]], span: Span) -> None:
    count = int((span.end - span.start) / span.step_s) + 1
    moments = [_moment(span.start + place * span.step_s) for place in range(count)]
    base = [math.nan] * count
    for series in found:
        for at, _ in series.points:
            base[min(count - 1, round((at - span.start) / span.step_s))] = 0.0
    for series, style in zip(found, styles, strict=True):
        values = [0.0] * count
        for at, value in series.points:
            values[min(count - 1, round((at - span.start) / span.step_s))] = 0.0 if math.isnan(value) else value
        top = [low + value for low, value in zip(base, values, strict=True)]
        axes.fill_between(moments, base, top, color=style["ink"], alpha=0.45, linewidth=0)
        axes.plot(moments, top, color=style["ink"], linewidth=1)
        base = top


def _limits(axes: Any, defaults: Mapping[str, Any], custom: Mapping[str, Any], found: Sequence[Series]) -> None:
    low, high = axes.get_ylim()
    high = max(high * 1.04, custom.get("axisSoftMax") or high)
    low = defaults.get("min", low)
    high = defaults.get("max", high)
    values = [value for series in found for _, value in series.points if not math.isnan(value)]
    if not values or (max(values) == 0 and defaults.get("max") is None and not custom.get("axisSoftMax")):
        high = low + 1
    axes.set_ylim(low, high * 1.0001 if high > low else low + 1)


def _time_axis(axes: Any, span: Span) -> None:
    axes.set_xlim(_moment(span.start), _moment(span.end))
    length = span.end - span.start
    form = "%H:%M:%S" if length < 900 else "%H:%M"
    axes.xaxis.set_major_locator(mpl.dates.AutoDateLocator(minticks=3, maxticks=6))
    axes.xaxis.set_major_formatter(mpl.dates.DateFormatter(form))


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _legend(page: Page, entries: Sequence[tuple[str, str, str]], x: float, y: float, w: float, h: float) -> int:
    """The names below a panel with their last values; gives the number of lines."""
    placed: list[tuple[int, float, tuple[str, str, str]]] = []
    line, at = 0, 0.0
    for entry in entries:
        width = 18 + page.width_of(f"{entry[0]}  {entry[2]}", 11) + 16
        if at and at + width > w:
            line, at = line + 1, 0.0
        placed.append((line, at, entry))
        at += width
    taken = min(line + 1, MOST_LEGEND_LINES)
    top = y + h - 17 * taken + 4
    for line, at, (name, ink, last) in placed:
        if line < taken:
            page.bar(x + at + 2, top + 17 * line + 5, 12, 3, ink)
            page.text(x + at + 18, top + 17 * line, name, size=11)
            page.text(x + at + 18 + page.width_of(name + "  ", 11), top + 17 * line, last, size=11, ink=FAINT)
    return taken


def _timeline(page: Page, panel: Mapping[str, Any], found: list[Series], inside: Any, span: Span) -> None:
    x, y, w, h = inside
    mappings = _defaults(panel).get("mappings", [])
    margin = max([page.width_of(series.name, 12) for series in found] or [40]) + 16
    axes = page.axes(x + margin, y + 2, w - margin - 8, h - 22)
    names = sorted({series.name for series in found})
    for series in found:
        place = len(names) - 1 - names.index(series.name)
        for begin, end, value in _bands(series, span):
            known = mapped(value, mappings)
            if known is None or not known[0]:
                continue
            words, ink = known
            axes.barh(place, end - begin, left=begin, height=0.8, color=ink)
            share = (end - begin) / (span.end - span.start) * (w - margin)
            if share > page.width_of(words, 12) + 8:
                axes.text(
                    begin + (end - begin) / 2,
                    place,
                    words,
                    ha="center",
                    va="center",
                    fontsize=pt(12),
                    color=readable_on(ink),
                )
    if not found:
        axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center", va="center", color=FAINT, fontsize=pt(13))
    axes.set_xlim(span.start, span.end)
    axes.set_ylim(-0.6, max(0, len(names) - 1) + 0.6)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(8))
    axes.xaxis.set_major_formatter(lambda at, _: f"{_moment(at):%H:%M:%S}")
    axes.tick_params(labelsize=pt(12), colors=INK, length=0)
    axes.tick_params(axis="x", labelsize=pt(11), colors=FAINT)
    for side in axes.spines.values():
        side.set_visible(False)


def _bands(series: Series, span: Span) -> list[tuple[float, float, float]]:
    """Stretches of one value."""
    bands: list[tuple[float, float, float]] = []
    for at, value in series.points:
        end = min(at + span.step_s, span.end)
        if bands and bands[-1][2] == value and at - bands[-1][1] < 0.5 * span.step_s:
            bands[-1] = (bands[-1][0], end, value)
        else:
            bands.append((at, end, value))
    return bands


def _table(page: Page, panel: Mapping[str, Any], found: list[Series], inside: Any, span: Span) -> None:  # noqa: ARG001
    x, y, w, h = inside
    organised = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
    order = sorted(organised["indexByName"], key=organised["indexByName"].get)
    names = [organised["renameByName"][field] for field in order]
    lines: dict[str, dict[str, float | str]] = {}
    for series in found:
        line = lines.setdefault(series.labels[order[0]], {})
        line |= {organised["renameByName"][label]: value for label, value in series.labels.items() if label in order}
        if f"Value #{series.query}" in order:
            line[organised["renameByName"][f"Value #{series.query}"]] = series.last
    ordered = [lines[key] for key in sorted(lines)]
    for by in reversed(panel["options"].get("sortBy") or []):
        ordered.sort(key=lambda line: float(line.get(by["displayName"], -math.inf)), reverse=by.get("desc", False))
    widths = _widths(panel, names, w)
    row = 30.0
    at = x
    for name, width in zip(names, widths, strict=True):
        page.text(at + 6, y + 13, name, size=12, ink="#1f60c4", va="center", weight="bold")
        at += width
    for number, line in enumerate(ordered[: int((h - 26) // row)]):
        top = y + 26 + number * row
        page.bar(x, top, w, 0.8, GRID)
        at = x
        for name, width in zip(names, widths, strict=True):
            if name in line:
                _cell(page, _options(panel, name), line[name], (at, top, width, row))
            at += width


def _widths(panel: Mapping[str, Any], names: Sequence[str], w: float) -> list[float]:
    fixed = {name: _options(panel, name).get("custom.width") for name in names}
    rest = w - sum(width for width in fixed.values() if width)
    free = sum(1 for width in fixed.values() if not width) or 1
    return [fixed[name] or rest / free for name in names]


def _cell(page: Page, options: Mapping[str, Any], value: float | str, place: tuple[float, float, float, float]) -> None:
    x, y, w, h = place
    kind = (options.get("custom.cellOptions") or {}).get("type", "auto")
    known = mapped(value, options.get("mappings") or [])
    if isinstance(value, str):
        words, ink = known or (value, INK)
    else:
        words, ink = known or (
            formatted(value, options["unit"], options.get("decimals")),
            by_threshold(value, options.get("thresholds")),
        )
    middle = y + h / 2 + 0.5
    if kind == "color-background":
        page.bar(x + 1, y + 1, w - 2, h - 2, ink)
        page.text(x + 8, middle, words, size=13, ink=readable_on(ink), va="center", weight="bold")
    elif kind == "gauge" and isinstance(value, float):
        room = w - 66
        share = min(1.0, max(0.0, value / options.get("max", 1)))
        page.bar(x + 6, y + 8, room, h - 16, "#e9ecef")
        page.bar(x + 6, y + 8, room * share, h - 16, ink)
        page.text(x + w - 8, middle, words, size=12, va="center", ha="right")
    else:
        bold = {"weight": "bold"} if kind == "color-text" and ink not in (INK, colour("text")) else {}
        if isinstance(value, str) or known:
            page.text(
                x + 6, middle, textwrap.shorten(words, 26, placeholder="…"), size=13, ink=ink, va="center", **bold
            )
        else:
            page.text(x + 6, middle, words, size=13, ink=ink, va="center", **bold)


DRAWN: Final = {"stat": _stat, "timeseries": _lines, "state-timeline": _timeline, "table": _table}
