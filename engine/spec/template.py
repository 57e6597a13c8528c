"""The commented spec that ``backfill init`` writes: valid as it stands, and every other key shown with its default.

An expression that only the user can know is left as ``REPLACE_ME``: the file loads, and ``backfill plan`` refuses it
until the placeholder is gone, since no column has that name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import yaml

from engine.spec.models import JobSpec
from engine.spec.names import TableRef
from engine.spec.units import format_duration, format_size

PLACEHOLDER: Final = "REPLACE_ME"
_COMMENT_COLUMN: Final = 39
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_ENDLESS: Final = 2**31  # a line width at which nothing is folded


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """What is known of the tables when a spec is begun.

    ``columns``: in place the columns to fill; for a copy the columns that both tables have.  ``key`` empty: none was
    found.  ``missing``: target columns that the source does not have and that must be given.  ``target_dsn`` None: the
    target is in the source's database.
    """

    source: TableRef
    target: TableRef | None = None
    key: Sequence[str] = ()
    columns: Sequence[str] = ()
    missing: Sequence[str] = ()
    source_dsn: str = "${SOURCE_DSN}"
    target_dsn: str | None = None
    rows: float | None = None
    name: str | None = None


def template(facts: TemplateFacts) -> str:
    """YAML text with comments.  It loads as it stands when the variables it names are set."""
    return (
        "\n".join([*_head(facts), *_meaning(facts), *_key(facts), *_settings(copies=facts.target is not None)]) + "\n"
    )


def _head(facts: TemplateFacts) -> list[str]:
    lines = [
        "# What to backfill, and how. `backfill validate` checks this file, `backfill plan` shows what it would do,",
        "# and `backfill run` starts the job, or goes on with it. Lines behind # show defaults and choices.",
        "",
    ]
    if facts.name is None:
        lines += [_line("# name: orders-amount-cents", "unique in the ledger; default: from the tables and the spec")]
    else:
        lines += [_line(f"name: {_quoted(facts.name)}", "unique in the ledger")]
    rows = f"about {facts.rows:,.0f} rows" if facts.rows is not None and facts.rows >= 0 else ""
    lines += _endpoint("source", facts.source, facts.source_dsn, rows)
    if facts.target is not None:
        lines += _endpoint("target", facts.target, facts.target_dsn, "")
    return [*lines, ""]


def _endpoint(side: str, table: TableRef, dsn: str | None, comment: str) -> list[str]:
    if dsn is None:
        first = "  # dsn: left out, so the target is in the source's database"
    else:
        first = _line(f"  dsn: {_quoted(dsn)}", "keep passwords in the variable, ~/.pgpass or a service file")
    return [f"{side}:", first, _line(f"  table: {_quoted(str(table))}", comment)]


def _meaning(facts: TemplateFacts) -> list[str]:
    transform = _line("# transform: shop.transforms:cents", "a Python function that computes columns")
    where = _line('# where: "deleted_at is null"', "only these rows")
    if facts.target is None:
        return [
            "# column <- SQL expression over the row as it is",
            "set:",
            *_mapping(dict.fromkeys(facts.columns or (PLACEHOLDER,), PLACEHOLDER)),
            transform,
            where,
            _line('# done: "amount_cents is not null"', "true for a finished row; default: set columns not null"),
            "",
        ]
    pairs = {column: _expression(column) for column in facts.columns} | dict.fromkeys(facts.missing, PLACEHOLDER)
    return [
        "# target column <- SQL expression over the source row; left out: columns of the same name",
        *(["columns:", *_mapping(pairs)] if pairs else ["# columns: {id: id}"]),
        transform,
        where,
        _line("# on_conflict: keep", "keep | replace | newest(updated_at) | fail; keep: the target's row wins"),
        _line("# deletes: guarded", "guarded | none (declared: nobody deletes meanwhile)"),
        "",
    ]


def _key(facts: TemplateFacts) -> list[str]:
    if not facts.key:
        return [_line("# key: [id]", "default: primary key, else a unique not-null index"), ""]
    return [_line(f"key: [{', '.join(map(_quoted, facts.key))}]", "unique and not null, in the order of its index"), ""]


def _settings(*, copies: bool) -> list[str]:
    defaults = {name: info.default for name, info in JobSpec.model_fields.items()}
    chunk = defaults["chunk"]
    limits = f"target: {format_duration(chunk.target_s)}, min_rows: {chunk.min_rows}, max_rows: {chunk.max_rows}"
    return [
        "# These may change at any time: the next `backfill run` applies them.",
        _line(f"# workers: {defaults['workers']}", "chunks in flight at once"),
        f"# chunk: {{{limits}, max_bytes: {format_size(chunk.max_bytes)}}}",
        "# pace:",
        _line("#   max_rows_per_s: 20000", "default: no fixed limit"),
        _line("#   max_wal_bytes_per_s: 50MiB", "default: no fixed limit"),
        _line('#   windows: ["22:00-06:00 UTC"]', "or Mon-Fri 22:00-06:00 Europe/Berlin; default: always"),
        _line("#   finish_by: 2030-01-31T06:00+01:00", "it says early when that cannot be met"),
        _line("#   signals:", "what holds it back; the first three are on by default"),
        _line("#     - read_latency: {}", "{target: 5ms}, {} learns one, off turns it off"),
        _line("#     - commit_latency: {}", ""),
        _line("#     - lock_waits: {max: 1s}", "others waiting for a lock of this job"),
        _line("#     - replication_lag: {max: 30s}", "or in bytes: {target: 16MiB, max: 100MiB}"),
        *([] if copies else [_line("# bloat: {max_growth: 20%}", "vacuums in between; default: no limit")]),
        _line("# accept: [TRIGGERS_ON_TARGET]", "findings of `backfill plan` that you have looked at"),
        _line("# role: backfill_worker", "SET ROLE for data statements"),
        _line(f"# lock_timeout: {format_duration(defaults['lock_timeout_s'])}", "give way after waiting so long"),
    ]


def _line(text: str, comment: str) -> str:
    return f"{text:<{_COMMENT_COLUMN}} # {comment}" if comment else text


def _mapping(pairs: dict[str, str]) -> list[str]:
    return [f"  {_quoted(column)}: {_quoted(expression)}" for column, expression in pairs.items()]


def _expression(column: str) -> str:
    """The column itself as SQL: always quoted, since a bare ``order`` or ``user`` would mean something else."""
    return '"' + column.replace('"', '""') + '"'


def _quoted(text: str) -> str:
    """``text`` as a YAML scalar in one line: bare where that is plainly the same text, else in quotes."""
    if _PLAIN.match(text) and yaml.safe_load(text) == text:
        return text
    style = "'" if '"' in text and text.isprintable() else '"'
    scalar = yaml.ScalarNode(
        "tag:yaml.org,2002:str", text, style=style
    )  # a node: `dump` obeys whoever changed its styles
    return yaml.serialize(scalar, Dumper=yaml.SafeDumper, allow_unicode=True, width=_ENDLESS).rstrip("\n")
