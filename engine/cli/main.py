"""``backfill``: the group of commands, and the one place where errors become exit codes."""

from __future__ import annotations

import sys

try:  # a Ctrl-C while this is loaded is no reason for a traceback
    import difflib
    from collections.abc import Sequence
    from importlib import import_module
    from typing import Final

    import click

    from engine._version import __version__
    from engine.cli.terminal import StrayWords, Terminal, error_json, leave_stdout_quietly
    from engine.errors import BackfillError
except KeyboardInterrupt:
    sys.exit(130)

PROGRAM: Final = "backfill"
_INTERRUPTED: Final = 130

# Command -> where it is.  Loaded when used, so that `backfill status` does not wait for what only `run` needs.
COMMANDS: Final = {
    "init": "engine.cli.specs:init",
    "validate": "engine.cli.specs:validate",
    "schema": "engine.cli.specs:schema",
    "plan": "engine.cli.plan:plan",
    "rehearse": "engine.cli.rehearse:rehearse",
    "run": "engine.cli.run:run",
    "status": "engine.cli.status:status",
    "list": "engine.cli.status:list_jobs",
    "wait": "engine.cli.status:wait",
    "history": "engine.cli.history:history",
    "pause": "engine.cli.orders:pause",
    "resume": "engine.cli.orders:resume",
    "cancel": "engine.cli.orders:cancel",
    "pace": "engine.cli.pace:pace",
    "restart": "engine.cli.removal:restart",
    "cleanup": "engine.cli.removal:cleanup",
    "verify": "engine.cli.verify:verify",
    "quarantine": "engine.cli.quarantine:quarantine",
    "gate": "engine.cli.gate:gate",
    "worker": "engine.cli.worker:worker",
    "serve": "engine.cli.serve:serve",
    "token": "engine.cli.token:token",
    "health": "engine.cli.health:health",
    "grants": "engine.cli.grants:grants",
    "dualwrite": "engine.cli.dualwrite:dualwrite",
    "doctor": "engine.cli.doctor:doctor",
    "dashboards": "engine.cli.dashboards:dashboards",
    "demo": "engine.cli.demo:demo",
    "completion": "engine.cli.completion:completion",
}


class Commands(click.Group):
    """Commands by name, in the order of a job's life, each loaded when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """The command, or None."""
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names; a near miss is told what was probably meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"no such command: {args[0]}." + (f" Did you mean {close[0]}?" if close else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Backfill live PostgreSQL tables at full speed, politely, resumable to the row."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code.  Never raises for what a user can cause."""
    terminal = Terminal()
    with StrayWords(terminal).installed():
        return _main(terminal, arguments)


def _main(terminal: Terminal, arguments: Sequence[str] | None) -> int:
    try:
        code = cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False, obj=terminal)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        return _INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        leave_stdout_quietly()
        return 0
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: whatever it is becomes an exit code
        return _report(terminal, error)
    return code if isinstance(code, int) else 0


def _report(terminal: Terminal, error: Exception) -> int:
    known = error if isinstance(error, BackfillError) else _known(error)
    if known.code == "unauthenticated" and "Authorization:" in known.hint:  # in the words of the command line
        known.hint = "--token-file FILE, or BACKFILL_TOKEN"
    if terminal.as_json:
        terminal.json(error_json(known))
    terminal.error(known)
    if known is not error and terminal.verbosity:
        terminal.frames(type(error), error.__traceback__)
    elif known is not error and known.exit_code == 1 and terminal.log is None:
        terminal.err.print("  -v shows where it happened", style="dim")
    return known.exit_code


def _known(error: Exception) -> BackfillError:
    """An error that nobody expected as one of ours.  Its own text is not shown: it might hold a value of a row."""
    from engine.db.failures import Action, classify  # the driver is loaded only where a database is used
    from engine.errors import CannotConnect

    failure = classify(error)
    if failure.action in (Action.RECONNECT, Action.WAIT, Action.PAUSE):
        return CannotConnect(failure.message, hint=failure.hint, sqlstate=failure.sqlstate)
    if failure.sqlstate:
        return BackfillError(failure.message, hint=failure.hint, sqlstate=failure.sqlstate)
    return BackfillError(f"unexpected {type(error).__name__}", hint="this is a bug: please report it")
