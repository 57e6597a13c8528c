"""``backfill token``: a new token for a daemon, and what its operator writes into the tokens file."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import click

from engine.cli.terminal import Terminal, output_options
from engine.errors import UsageError
from engine.service.access import Scope
from engine.service.tokens import NAME, digest, make_token
from engine.spec.fields import CONNECTION_PATTERN
from engine.spec.misfit import Misfit
from engine.spec.units import parse_duration


@click.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it allows; may be repeated.",
)
@click.option(
    "--connection", "connections", multiple=True, metavar="NAME", help="The only connections it may name; repeatable."
)
@click.option("--expires", metavar="DURATION", help="For how long it is valid, such as 90d. Left out: for ever.")
@output_options
def token(
    terminal: Terminal, name: str, scopes: tuple[str, ...], connections: tuple[str, ...], expires: str | None
) -> int:
    """Make a token for a daemon: the token on stdout, once; the entry of its tokens file on stderr.

    Nothing is written anywhere, and only the entry, which holds a hash, is to be kept by the operator.
    """
    if not re.fullmatch(NAME, name):
        raise UsageError("this is not a name for a token", hint="use up to 63 lower-case letters, digits, _ . and -")
    for one in connections:
        if not re.fullmatch(CONNECTION_PATTERN, one):
            raise UsageError(
                "this is not a name of a connection", hint="names stand in backfill.toml: [connections.NAME]"
            )
    made, until = make_token(), _until(expires)
    entry = _entry(name, digest(made), sorted(set(scopes)), list(dict.fromkeys(connections)), until)
    if terminal.as_json:
        terminal.json(
            {
                "event": "token.made",
                "name": name,
                "token": made,
                "sha256": digest(made),
                "expires": until.isoformat() if until is not None else None,
                "entry": entry,
            }
        )
        return 0
    terminal.data(made)
    terminal.say("# Write this into the daemon's tokens file (auth.tokens_file), which is read again by itself:\n")
    click.echo(entry, err=True)  # a result, though not for whoever gets the token: also when quiet
    return 0


def _until(expires: str | None) -> datetime | None:
    if expires is None:
        return None
    try:
        moment = datetime.now(UTC) + timedelta(seconds=parse_duration(expires))
    except Misfit as error:
        raise UsageError(f"--expires {error.message}", hint="write a number and a unit: 90d, 12h") from None
    except OverflowError:
        raise UsageError("--expires is too far away", hint="leave it out for a token that is valid for ever") from None
    return moment.replace(microsecond=0)


def _entry(name: str, sha256: str, scopes: list[str], connections: list[str], until: datetime | None) -> str:
    lines = [f"[tokens.{json.dumps(name)}]", f"sha256 = {json.dumps(sha256)}", f"scopes = {json.dumps(scopes)}"]
    if connections:
        lines.append(f"connections = {json.dumps(connections)}")
    if until is not None:
        lines.append(f"expires = {until:%Y-%m-%dT%H:%M:%SZ}")
    return "\n".join(lines)
