"""Files that are read again when they change: edited in place, renamed over, or swapped behind a symbolic link."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Final

_SETTLED_S: Final = 2.0
"""A file that has not changed for this long will show another time when it changes again."""


class Watched:
    """Whether any of some files is another than it was.  Costs one ``stat`` each."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._paths = tuple(paths)
        self._seen: tuple[tuple[int, ...], ...] | None = None

    def has_changed(self) -> bool:
        """True when a file may have changed since the last call, and at the first.

        Also true while a second change could hide in the same tick of the file system's clock as the first.
        """
        now = tuple(map(_signature, self._paths))
        if now == self._seen:
            return False
        self._seen = now if all(abs(time.time() - one[0] / 1e9) > _SETTLED_S for one in now) else None
        return True


def _signature(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """What changes when a file is edited, replaced, or given to somebody else; zero where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - of many paths, often
    except OSError:
        return (0,)
    return (status.st_ctime_ns, status.st_mtime_ns, status.st_ino, status.st_dev, status.st_size, status.st_mode)
