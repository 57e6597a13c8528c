"""The flags of ``backfill run`` as a spec: the same keys, the same checks, problems that name the flag."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from engine.errors import Problem, SpecError
from engine.spec.document import Document
from engine.spec.dsn import FALLBACK_VARIABLE, holds_password
from engine.spec.load import build
from engine.spec.models import JobSpec

_FLAGS: Final = {
    "source.dsn": "--source-dsn",
    "source.table": "--source-table",
    "source": "--source-table",
    "target.dsn": "--target-dsn",
    "target.table": "--target-table",
    "target": "--target-table",
    "set": "--set",
    "columns": "--columns",
    "transform": "--transform",
    "where": "--where",
    "done": "--done",
    "key": "--key",
    "order": "--order",
    "on_conflict": "--on-conflict",
    "deletes": "--deletes",
    "workers": "--workers",
    "chunk.target": "--chunk-target",
    "chunk.min_rows": "--chunk-min-rows",
    "chunk.max_rows": "--chunk-max-rows",
    "chunk.max_bytes": "--chunk-max-bytes",
    "pace.max_rows_per_s": "--max-rows-per-s",
    "accept": "--accept",
    "role": "--role",
    "lock_timeout": "--lock-timeout",
    "name": "--name",
}
_HINT_WORDS: Final = {"dsn": "--dsn", "max_rows_per_s": "--max-rows-per-s"} | _FLAGS
_DSN_HINT: Final = (
    f"set {FALLBACK_VARIABLE} instead, or name a variable ('${{SOURCE_DSN}}', in single quotes), "
    "or leave the password to ~/.pgpass or a service file"
)


def spec_from_flags(
    env: Mapping[str, str],
    *,
    dsn: str | None = None,
    table: str | None = None,
    source_dsn: str | None = None,
    source_table: str | None = None,
    target_dsn: str | None = None,
    target_table: str | None = None,
    name: str | None = None,
    set_columns: Sequence[str] = (),
    columns: Sequence[str] = (),
    transform: str | None = None,
    where: str | None = None,
    done: str | None = None,
    key: str | Sequence[str] | None = None,
    order: str | None = None,
    on_conflict: str | None = None,
    deletes: str | None = None,
    workers: int | None = None,
    chunk_target: str | None = None,
    chunk_min_rows: int | None = None,
    chunk_max_rows: int | None = None,
    chunk_max_bytes: str | None = None,
    max_rows_per_s: float | None = None,
    accept: Sequence[str] = (),
    role: str | None = None,
    lock_timeout: str | None = None,
) -> JobSpec:
    """The spec that the flags describe; None (or empty) means that a flag was not given.

    ``dsn`` and ``table`` are the short forms of ``source_dsn`` and ``source_table``.  ``set_columns`` and ``columns``
    hold ``column=expression`` each; ``key`` is a list, or one text with commas.  Raises ``SpecError`` with every
    problem, its path the flag.
    """
    document = Document()
    flags = dict(_FLAGS)
    if dsn is not None:
        flags["source.dsn"] = "--dsn"
    if source_table is None:
        flags["source.table"] = flags["source"] = "--table"
    for short, long, flag in ((dsn, source_dsn, "dsn"), (table, source_table, "table")):
        if short is not None and long is not None:
            problem = Problem(f"--{flag}", f"and --source-{flag} mean the same", "give one of the two")
            document.add(problem)

    source = _given(dsn=dsn if dsn is not None else source_dsn, table=table if table is not None else source_table)
    target = _given(dsn=target_dsn, table=target_table)
    for side, endpoint in (("source", source), ("target", target)):
        if holds_password(endpoint.get("dsn", "")):
            del endpoint["dsn"]
            document.report(
                (side, "dsn"), "holds a password, which every user of this host can read in the process list", _DSN_HINT
            )
    document.data = _given(
        name=name,
        set=_assignments(document, "set", set_columns),
        columns=_assignments(document, "columns", columns),
        transform=transform,
        where=where,
        done=done,
        key=[part.strip() for part in key.split(",")] if isinstance(key, str) else list(key or ()) or None,
        order=order,
        on_conflict=on_conflict,
        deletes=deletes,
        workers=workers,
        chunk=_given(target=chunk_target, min_rows=chunk_min_rows, max_rows=chunk_max_rows, max_bytes=chunk_max_bytes)
        or None,
        pace=_given(max_rows_per_s=max_rows_per_s) or None,
        accept=list(accept) or None,
        role=role,
        lock_timeout=lock_timeout,
        target=target or None,
    ) | {"source": source}
    spec = build(document, env)
    if spec is None:
        raise SpecError([_in_flags(problem, flags) for problem in document.problems], file="the flags")
    return spec


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _assignments(document: Document, key: str, texts: Sequence[str]) -> dict[str, str] | None:
    """``column=expression`` texts as a mapping, None when there are none."""
    pairs: dict[str, str] = {}
    for text in texts:
        column, equals, expression = text.partition("=")
        column = column.strip()
        if not equals or not column:
            document.report((key,), "is not column=expression", f"write {_FLAGS[key]} 'cents=(amount * 100)::bigint'")
        elif column in pairs:
            document.report((key,), "gives a column twice", "remove one")
        else:
            pairs[column] = expression.strip()
    return pairs if texts else None


def _in_flags(problem: Problem, flags: Mapping[str, str]) -> Problem:
    """``problem`` with flags for keys: in its path, and where its words name keys in backquotes."""
    path = problem.path
    while path and path not in flags and not path.startswith("--"):
        path = re.sub(r"(\[\d+\]|\.?[^.\[]*)$", "", path)

    def words(text: str) -> str:
        text = re.sub(r"`set`: \{column: SQL expression\}", "--set 'column=SQL expression'", text)
        return re.sub(r"`(\w+)`", lambda match: {**_HINT_WORDS, **flags}.get(match[1], match[1]), text)

    return replace(problem, path=flags.get(path, path), message=words(problem.message), hint=words(problem.hint))
