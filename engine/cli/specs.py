"""Specs without running them: ``init``, ``validate``, ``schema``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from engine.cli.loop import run_async
from engine.cli.places import dsn_of
from engine.cli.terminal import Terminal, output_options
from engine.db import Database
from engine.db.inspect import inspect_table
from engine.errors import UsageError
from engine.model import Side, Table
from engine.plan.preflight import choose_key
from engine.spec import Dsn, Endpoint, JobSpec, Purpose, TableRef, TemplateFacts, json_schema, load_spec, template
from engine.spec.misfit import Misfit
from engine.spec.template import PLACEHOLDER

_PLACEHOLDER_DSN = "${SOURCE_DSN}"


@click.command()
@click.argument("table")
@click.option("--dsn", metavar="DSN", help="The source's database. Default: BACKFILL_DSN, else PG* variables.")
@click.option("--target", metavar="TABLE", help="The table to fill. Default: in place.")
@click.option("--target-dsn", metavar="DSN", help="The target's database. Default: the source's.")
@click.option("--set", "columns", multiple=True, metavar="COLUMN", help="In place: a column to fill.")
@click.option("--name", metavar="NAME", help="The job's name.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write to this file. Default: stdout.")
@output_options
def init(
    terminal: Terminal,
    table: str,
    dsn: str | None,
    target: str | None,
    target_dsn: str | None,
    columns: tuple[str, ...],
    name: str | None,
    output: str | None,
) -> int:
    """Write a first spec, with comments, by looking at TABLE.

    What only you can know is left as REPLACE_ME.
    """
    if target_dsn and not target:
        raise UsageError("--target-dsn without --target", hint="name the table to fill")
    if target and columns:
        raise UsageError("--set fills columns in place, and a --target is given", hint="give one of the two")
    facts = run_async(_look(table, dsn, target, target_dsn, columns, name))
    text = template(facts)
    if output is not None:
        _write_new(Path(output), text)
    if terminal.as_json:
        terminal.json({"file": output, "spec": text})
    elif output is None:
        terminal.data(text.rstrip("\n"))
    if output is not None:
        blanks = "fill in REPLACE_ME, then " if PLACEHOLDER in text else ""
        terminal.say(f"wrote {output}; next: {blanks}backfill plan {output}")
    return 0


async def _look(
    table: str, dsn: str | None, target: str | None, target_dsn: str | None, columns: tuple[str, ...], name: str | None
) -> TemplateFacts:
    source_ref, target_ref = _ref(table), _ref(target) if target else None
    source_dsn = dsn_of(dsn, "--dsn") if dsn else Dsn.from_environment(os.environ)
    source = await _inspect(source_dsn, source_ref, Side.SOURCE)
    key = choose_key(JobSpec(name="init", source=Endpoint(table=source_ref), set={"any": "null"}), source).key
    shared: tuple[str, ...] = columns
    missing: tuple[str, ...] = ()
    if target_ref is not None:
        other = dsn_of(target_dsn, "--target-dsn") if target_dsn else source_dsn
        shared, missing = _match(source, await _inspect(other, target_ref, Side.TARGET))
    else:
        for column in columns:
            if source.column(column) is None:
                raise UsageError(f"{source.name} has no column {column!r}")
    return TemplateFacts(
        source=TableRef(source.name.schema, source.name.name),
        target=target_ref,
        key=key.names if key else (),
        columns=shared,
        missing=missing,
        source_dsn=dsn or source_dsn.reference or _PLACEHOLDER_DSN,
        target_dsn=target_dsn,
        rows=source.rows,
        name=name,
    )


def _ref(text: str) -> TableRef:
    try:
        return TableRef.parse(text)
    except Misfit as error:
        raise UsageError(f"{text!r} {error.message}", hint=error.hint) from None


async def _inspect(dsn: Dsn, table: TableRef, side: Side) -> Table:
    connection = await Database(dsn, side=side).connect("init")
    try:
        return await inspect_table(connection, table)
    finally:
        await connection.close()


def _match(source: Table, target: Table) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns that both tables have, and columns of the target that somebody must say how to fill."""
    writable = [c for c in target.columns if not c.generated]
    shared = tuple(c.name for c in writable if source.column(c.name) is not None)
    missing = tuple(
        c.name
        for c in writable
        if source.column(c.name) is None and c.not_null and not c.has_default and not c.identity
    )
    return shared, missing


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists already", hint="give another --output, or remove it first") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


@click.command()
@click.argument("file")
@output_options
def validate(terminal: Terminal, file: str) -> int:
    """Check a spec file without any database; every problem at once, with line and column."""
    spec = load_spec(file, os.environ, purpose=Purpose.EITHER)
    if terminal.as_json:
        terminal.json({"valid": True, "job": spec.name, "spec": spec.for_ledger()})
    by = " --daemon URL, since it names what a daemon's operator has" if spec.needs_daemon else ""
    terminal.say(f"{file} is valid: job {spec.name}; next: backfill plan {file}{by}")
    return 0


@click.command()
def schema() -> int:
    """Print the JSON Schema of a spec, for editors."""
    click.echo(json.dumps(json_schema(), indent=2))
    return 0
