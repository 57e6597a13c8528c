"""Whom servers run as: ourselves, or an unprivileged account that exists when we are root."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNPRIVILEGED = ("postgres", "nobody")
"""Accounts to drop to, the best first."""

QUICK_S = 20.0
"""More than any question to a program takes on a starved machine."""


@dataclass(frozen=True, slots=True)
class Account:
    """An operating-system account.  ``drop`` says that we are root and must become it first."""

    name: str
    uid: int
    gid: int
    drop: bool

    @classmethod
    def for_servers(cls) -> Account:
        """The account that servers of this process run as.  Raises ``RuntimeError`` when root finds none to drop to."""
        if os.geteuid() != 0:
            return cls("", os.geteuid(), os.getegid(), drop=False)
        for name in UNPRIVILEGED:
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(name, entry.pw_uid, entry.pw_gid, drop=True)
        raise RuntimeError(f"PostgreSQL does not run as root, and there is no account {' or '.join(UNPRIVILEGED)}")

    def process_options(self) -> dict[str, Any]:
        """What ``subprocess`` needs to start a program as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.drop else {}

    def own(self, path: Path) -> None:
        """Give one file or folder to this account."""
        if self.drop:
            os.chown(path, self.uid, self.gid)

    def can_run(self, command: Sequence[str]) -> bool:
        """True when this account can run the command from ``/`` and it succeeds.

        Asked by trying: folders on the way, mount options and libraries all count, and no list of checks has them all.
        """
        try:
            done = subprocess.run(
                command, cwd="/", capture_output=True, timeout=QUICK_S, check=False, **self.process_options()
            )
        except OSError:
            return False
        return done.returncode == 0
