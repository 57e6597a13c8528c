"""The spec of a command: a file, or the flags that say the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeVar

import click

from engine.cli.places import Where, daemon_options
from engine.errors import UsageError
from engine.model import ConflictPolicy, Deletes
from engine.spec import JobSpec, Purpose, load_spec, spec_from_flags
from engine.spec.models import MAX_WORKERS

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.argument("file", required=False, metavar="[FILE]"),
    click.option("--dsn", metavar="DSN", help="Connection string of the source (and of an in-place job)."),
    click.option("--table", metavar="TABLE", help="The source table."),
    click.option("--source-dsn", metavar="DSN", help="The same as --dsn."),
    click.option("--source-table", metavar="TABLE", help="The same as --table."),
    click.option("--target-dsn", metavar="DSN", help="Connection string of the target. Default: the source's."),
    click.option("--target-table", metavar="TABLE", help="The target table. Default: in place."),
    click.option("--name", metavar="NAME", help="The job's name. Default: from the tables and what the job means."),
    click.option("--set", "set_columns", multiple=True, metavar="COLUMN=EXPR", help="In place: a column to fill."),
    click.option("--columns", multiple=True, metavar="COLUMN=EXPR", help="Copy: what fills a column of the target."),
    click.option("--transform", metavar="MODULE:FUNCTION", help="A Python function that computes columns."),
    click.option("--where", metavar="SQL", help="Only rows for which this is true."),
    click.option("--done", metavar="SQL", help="In place: true for a finished row."),
    click.option("--key", metavar="COLUMN[,COLUMN…]", help="The key to page through. Default: the primary key."),
    click.option("--on-conflict", metavar="POLICY", help=f"{' | '.join(ConflictPolicy)}, as in newest(column)."),
    click.option("--deletes", metavar="HOW", help=" | ".join(Deletes)),
    click.option("--workers", type=click.IntRange(1, MAX_WORKERS), metavar="N", help="Chunks in flight at once."),
    click.option("--chunk-target", metavar="DURATION", help="How long a chunk should take, such as 250ms."),
    click.option("--chunk-min-rows", type=int, metavar="N"),
    click.option("--chunk-max-rows", type=int, metavar="N"),
    click.option("--chunk-max-bytes", metavar="SIZE", help="Such as 16MiB."),
    click.option("--max-rows-per-s", type=float, metavar="N", help="A fixed limit for all workers together."),
    click.option("--accept", multiple=True, metavar="CODE", help="A finding that you have looked at."),
    click.option("--role", metavar="ROLE", help="SET ROLE for data statements."),
    click.option("--lock-timeout", metavar="DURATION", help="Give way after waiting so long for a lock."),
)


def spec_options(command: Command) -> Command:
    """Adds ``[FILE]``, the flags of a spec and ``--daemon``; the command gets the ``JobSpec`` as ``spec``, and the
    daemon that it is for, if any, as ``remote``.
    """

    @wraps(command)
    def wrapped(*args: Any, place: Where, **options: Any) -> Any:
        remote = place.remote()
        flags = {name: place.dsn if name == "dsn" else options.pop(name) for name in _NAMES}
        spec = read_spec(options.pop("file"), flags, for_daemon=remote is not None)
        return command(*args, spec=spec, remote=remote, **options)

    decorated: Any = daemon_options(wrapped, "place")  # `where` is a part of a spec
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]  # as the command itself


# fmt: off
_NAMES: Final = (
    "dsn", "table", "source_dsn", "source_table", "target_dsn", "target_table", "name", "set_columns", "columns",
    "transform", "where", "done", "key", "on_conflict", "deletes", "workers", "chunk_target", "chunk_min_rows",
    "chunk_max_rows", "chunk_max_bytes", "max_rows_per_s", "accept", "role", "lock_timeout",
)
# fmt: on
_BESIDE_A_FILE: Final = ("workers",)


def read_spec(file: str | None, flags: dict[str, Any], *, for_daemon: bool = False) -> JobSpec:
    """The spec of the file, with ``--workers`` on top, or the one that the flags describe."""
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    if file is None:
        if for_daemon:
            raise UsageError("a daemon takes a spec file", hint="write the flags into one, with the `connection`")
        if not given:
            raise UsageError("no spec", hint="give a spec file, or --dsn, --table and --set (backfill run --help)")
        return spec_from_flags(os.environ, **given)
    others = [name for name in given if name not in _BESIDE_A_FILE]
    if others:
        names = ", ".join("--" + {"set_columns": "set"}.get(n, n).replace("_", "-") for n in others)
        raise UsageError(f"{names} beside a spec file", hint="write it into the file, or leave the file out")
    spec = load_spec(file, os.environ, purpose=Purpose.DAEMON if for_daemon else Purpose.HAND)
    if "workers" in given:
        spec = spec.model_copy(update={"workers": given["workers"]})
    return spec
