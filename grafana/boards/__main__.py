"""``python -m grafana.boards [--shown-on]``: write the dashboards, or print what the catalogue has to say of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from grafana.boards import FOLDER, dashboards, shown_on, text_of

WIDTH = 120


def main() -> None:
    """Write every file that is not as it should be."""
    if "--shown-on" in sys.argv[1:]:
        sys.stdout.writelines(f"{line}\n" for line in mapping())
        return
    for name, dashboard in dashboards().items():
        path = FOLDER / f"{name}.json"
        text = text_of(dashboard)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stdout.write(f"wrote {path}\n")


def mapping() -> Iterator[str]:
    """``_SHOWN_ON`` as Python."""
    yield "_SHOWN_ON: Final[Mapping[str, tuple[str, ...]]] = {"
    for metric, panels in shown_on().items():
        quoted = [f'"{panel}"' for panel in panels]
        line = f'    "{metric}": ({", ".join(quoted)}{"," if len(panels) == 1 else ""}),'
        if len(line) <= WIDTH:
            yield line
        else:
            yield f'    "{metric}": ('
            yield from (f"        {panel}," for panel in quoted)
            yield "    ),"
    yield "}"


main()
