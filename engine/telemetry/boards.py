"""The files for Grafana and Prometheus that come with the program: dashboards, alert rules, provisioning, and the pages
that alerts lead to.

In a wheel they are beside this module, put there by ``setup.py``; in a checkout they are in ``grafana/`` and ``docs/``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

PACKED: Final = Path(__file__).parent / "grafana"
CHECKOUT: Final = Path(__file__).parents[2]

KINDS: Final = frozenset({".json", ".yaml", ".yml", ".md"})
PROOFS: Final = ".tests.yaml"
"""What proves the alert rules stays with the source."""

GRAFANA: Final = "grafana"
MARKER: Final = "dashboards"
"""The folder without which there is nothing to export."""

PAGES: Final = ("docs/alerts.md", "docs/correctness.md", "docs/metrics.md", "docs/pacing.md", "docs/operations/*.md")
"""What to do when an alert fires, and what these pages lead to."""

_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def files() -> dict[PurePosixPath, bytes]:
    """What there is to export: path below the folder -> content, sorted.  Raises ``FileNotFoundError`` in an
    installation that left it out.
    """
    if (PACKED / MARKER).is_dir():
        return dict(sorted((_below(PACKED, path), path.read_bytes()) for path in PACKED.rglob("*") if path.is_file()))
    if (CHECKOUT / GRAFANA / MARKER).is_dir():
        return gathered(CHECKOUT)
    raise FileNotFoundError("the dashboards are not part of this installation")


def gathered(checkout: Path) -> dict[PurePosixPath, bytes]:
    """The same from a checkout; ``setup.py`` packs it.  Links lead to where the files are then."""
    folder = checkout / GRAFANA
    places = {
        _below(checkout, path): _below(folder, path)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in KINDS and not path.name.endswith(PROOFS)
    }
    places |= {page: page for pattern in PAGES for page in (_below(checkout, path) for path in checkout.glob(pattern))}
    found = {}
    for source, place in places.items():
        content = (checkout / source).read_bytes()
        found[place] = _relinked(content.decode(), source, places).encode() if source.suffix == ".md" else content
    return dict(sorted(found.items()))


def _relinked(text: str, source: PurePosixPath, places: Mapping[PurePosixPath, PurePosixPath]) -> str:
    """A page of which links lead to what is exported; of other links the words stay, and of pictures nothing."""

    def moved(link: re.Match[str]) -> str:
        is_picture, words, target, anchor = link.groups()
        if "://" in target:
            return link[0]
        place = places.get(PurePosixPath(posixpath.normpath(source.parent / target)))
        if place is None:
            return "" if is_picture else words
        return f"[{words}]({posixpath.relpath(place, places[source].parent)}{anchor or ''})"

    return _LINK.sub(moved, text)


def _below(folder: Path, path: Path) -> PurePosixPath:
    return PurePosixPath(path.relative_to(folder).as_posix())
