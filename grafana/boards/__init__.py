"""Makes the dashboards of ``grafana/dashboards`` from code; ``make dashboards`` writes them.

Every query is composed from the catalogue of metrics (``queries``), so that a name or a label that does not exist fails
here, and nobody has to remember how the processes of a job add up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from grafana.boards import database, job, overview
from grafana.boards.board import Board

FOLDER: Final = Path(__file__).parents[1] / "dashboards"
BOARDS: Final[dict[str, Callable[[], Board]]] = {
    "overview": overview.board,
    "job": job.board,
    "database": database.board,
}


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard by the name of its file, as JSON values."""
    return {name: make().as_json() for name, make in BOARDS.items()}


def text_of(dashboard: dict[str, Any]) -> str:
    """As it is committed."""
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def shown_on() -> dict[str, tuple[str, ...]]:
    """Metric (without prefix) -> the panels that show it, as ``dashboard/panel``: ``_SHOWN_ON`` of the catalogue."""
    shown: dict[str, list[str]] = {}
    for name, make in BOARDS.items():
        for title, metrics in make().metrics():
            for metric in metrics:
                shown.setdefault(metric, []).append(f"{name}/{title}")
    return {metric: tuple(dict.fromkeys(panels)) for metric, panels in sorted(shown.items())}
