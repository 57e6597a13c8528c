"""The files for Grafana and Prometheus that come with the program: dashboards, alert rules, provisioning.

In a wheel they are beside this module, put there by ``setup.py``; in a checkout they are in ``grafana/``.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

PACKED: Final = Path(__file__).parent / "grafana"
CHECKOUT: Final = Path(__file__).parents[2] / "grafana"

KINDS: Final = frozenset({".json", ".yaml", ".yml", ".md"})
PROOFS: Final = ".tests.yaml"
"""What proves the alert rules stays with the source."""


def folder() -> Path:
    """Where the files are.  Raises ``FileNotFoundError`` in an installation that left them out."""
    for place in (PACKED, CHECKOUT):
        if (place / "dashboards").is_dir():
            return place
    raise FileNotFoundError("the dashboards are not part of this installation")


def files(place: Path | None = None) -> dict[PurePosixPath, bytes]:
    """What there is to export: path below the folder -> content, sorted."""
    place = place or folder()
    found = (path for path in sorted(place.rglob("*")) if path.is_file() and is_exported(path))
    return {PurePosixPath(path.relative_to(place).as_posix()): path.read_bytes() for path in found}


def is_exported(path: Path) -> bool:
    """True for what a user gets; ``setup.py`` asks the same."""
    return path.suffix in KINDS and not path.name.endswith(PROOFS)
