"""Where a command's words go: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TextIO, TypeVar

import click
from rich.console import Console
from rich.text import Text

from engine.errors import BackfillError, PreflightRefused, SpecChanged, SpecError, UsageError
from engine.model import Finding, Severity

if TYPE_CHECKING:  # loaded when used: most commands write no log
    from engine.telemetry.entries import Entry
    from engine.telemetry.log import Log

Command = TypeVar("Command", bound=Callable[..., Any])

STYLES = {Severity.REFUSE: "bold red", Severity.WARN: "yellow", Severity.ADVISE: "cyan"}

_WEIGHTS: Final = {logging.WARNING: "yellow", logging.ERROR: "bold red"}
_FRAMES_SHOWN: Final = 6


class LogFormat(StrEnum):
    """How a long-running command writes what it has to say."""

    AUTO = "auto"  # for people on a terminal, else JSON
    HUMAN = "human"
    JSON = "json"


@dataclass
class Terminal:
    """The two streams of a command, and how much it may say.

    ``stdout`` is for results.  While a command runs, what others print (a function of somebody's, of the rows that it
    is given) goes to stderr: see ``output_options``.
    ``log_format`` is of long-running commands, whose stderr may be a log of JSON lines; all others speak to people.
    """

    as_json: bool = False
    quiet: bool = False
    verbosity: int = 0
    log_format: LogFormat = LogFormat.HUMAN
    stdout: TextIO = field(default_factory=lambda: sys.stdout)

    @cached_property
    def log(self) -> Log | None:
        """The log, where stderr is one and not a person's screen."""
        if self.log_format is LogFormat.HUMAN or (self.log_format is LogFormat.AUTO and sys.stderr.isatty()):
            return None
        from engine.telemetry.log import Log

        return Log(least=logging.ERROR if self.quiet else logging.DEBUG if self.verbosity else logging.INFO)

    @cached_property
    def err(self) -> Console:
        """Messages: colours only on a terminal, and never with NO_COLOR."""
        return Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

    @cached_property
    def out(self) -> Console:
        """Results for people: colours as on stderr."""
        return Console(file=self.stdout, highlight=False, soft_wrap=True, markup=False)

    @property
    def shows_progress(self) -> bool:
        """True where a display that repaints itself makes sense."""
        return self.err.is_terminal and not self.quiet and not self.as_json and self.log is None

    def data(self, text: str) -> None:
        """A result, to stdout."""
        click.echo(text, file=self.stdout)

    def heading(self, text: str) -> None:
        """The first line of a result for people."""
        self.out.print(text, style="bold")

    def details(self, lines: Sequence[tuple[str, str]]) -> None:
        """Labelled lines of a result for people; not wrapped, so that they can be grepped."""
        width = max((len(label) for label, _ in lines), default=0)
        for label, text in lines:
            self.out.print(Text.assemble((f"  {label:<{width}}", "dim"), f"  {text}".rstrip()))

    def json(self, item: Any) -> None:
        """A result as JSON, in one line, to stdout."""
        click.echo(json.dumps(item), file=self.stdout)

    def say(self, text: str, style: str = "") -> None:
        """A message, unless quiet."""
        if self.log is not None:
            self._write("message", text.strip(), logging.INFO, {})
        elif not self.quiet:
            self.err.print(text, style=style or None)

    def tell(self, entry: Entry) -> None:
        """What happened: a line of the log, or a sentence, unless quiet."""
        if self.log is not None:
            self.log.write(entry)
        elif entry.is_for_people:
            self.say(entry.message, _WEIGHTS.get(entry.weight, ""))

    def bind(self, **fields: Any) -> None:
        """What every line of the log tells from now on."""
        if self.log is not None:
            self.log.bind(**fields)

    def error(self, error: BackfillError) -> None:
        """An error with everything that it has to say, and what to do."""
        if self.log is not None:
            fields = error_json(error)
            self._write(fields.pop("event"), fields.pop("message"), logging.ERROR, fields)
            return
        match error:
            case SpecError():
                self._problems(error)
            case PreflightRefused():
                self.err.print("refused: the job cannot be run as it is", style="bold red")
                for finding in error.findings:
                    self.finding(finding)
            case SpecChanged():
                self.err.print(f"error: {error.message}", style="bold red")
                for path, before, after in error.differences:
                    self.err.print(f"  {path}: {before} -> {after}")
                self._hint(error.hint)
            case _:
                code = f" ({error.sqlstate})" if error.sqlstate else ""
                self.err.print(f"error: {error.message}{code}", style="bold red")
                self._hint(error.hint)

    def frames(self, kind: type[BaseException], trace: TracebackType | None) -> None:
        """Where something happened that nobody expected: files, lines and functions, without values."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        places = [f"{f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_tb(trace)[-_FRAMES_SHOWN:]]
        if self.log is not None:
            fields = {"exception": name, "frames": places}
            self._write("error.place", f"where {name} came from", logging.ERROR, fields)
            return
        for line in (*places, name):
            self.err.print(f"  {line}", style="dim")

    def stray(self, record: logging.LogRecord) -> None:
        """What a library had to say, without its words."""
        kind, _, trace = record.exc_info or (None, None, None)
        text = f"{record.name} reported {'a problem' if kind is None else kind.__name__}"
        if self.log is not None:
            level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.ERROR)
            self._write("library.message", text, level, {"logger": record.name})
        elif not self.quiet or record.levelno >= logging.ERROR:
            self.err.print(text, style=_WEIGHTS.get(record.levelno, ""))
        if kind is not None and self.verbosity:
            self.frames(kind, trace)

    def finding(self, finding: Finding) -> None:
        """One finding of preflight: code, what was seen, what to do."""
        self.err.print(f"{finding.severity.value:>8}  {finding.code}", style=STYLES[finding.severity], end=": ")
        self.err.print(finding.message)
        if finding.remedy:
            self.err.print(f"          {finding.remedy}", style="dim")

    def _write(self, event: str, text: str, level: int, fields: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.line(level, event, text, fields)

    def _problems(self, error: SpecError) -> None:
        is_only = len(error.problems) == 1
        for problem in error.problems:
            file = f"{error.file}: " if error.file else ""  # a daemon knows of no file
            place = f"{error.file}:{problem.line}:{problem.column}: " if problem.line else file
            path = f"{problem.path} " if problem.path else ""
            start = "error: " if is_only else ""
            self.err.print(f"{start}{place}{path}{problem.message}", style="bold red")
            self._hint(problem.hint)
        if not is_only:
            self.err.print(f"error: {error.message}")

    def _hint(self, hint: str) -> None:
        if hint:
            self.err.print(f"  hint: {hint}", style="dim")


def error_json(error: BackfillError) -> dict[str, Any]:
    """An error as ``--json`` shows it."""
    shown: dict[str, Any] = {
        "event": "error",
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "sqlstate": error.sqlstate,
        "exit_code": error.exit_code,
    }
    if isinstance(error, SpecError):
        shown["problems"] = [
            {"line": p.line, "column": p.column, "path": p.path, "message": p.message, "hint": p.hint}
            for p in error.problems
        ]
    if isinstance(error, PreflightRefused):
        shown["findings"] = [finding_json(f) for f in error.findings]
    if isinstance(error, SpecChanged):
        shown["differences"] = [{"path": p, "before": b, "after": a} for p, b, a in error.differences]
    return shown


def finding_json(finding: Finding) -> dict[str, str]:
    """A finding as ``--json`` shows it."""
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "message": finding.message,
        "remedy": finding.remedy,
    }


class StrayWords(logging.Handler):
    """What libraries log by themselves, such as an event loop about an exception that nobody awaited.

    Only who said it, how grave it is and the exception's class are told: the words might hold a value of a row.
    """

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Tell of one record."""
        self._terminal.stray(record)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hear what nobody else hears while the block runs."""
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)


def output_options(command: Command) -> Command:
    """Adds ``--json``, ``--quiet`` and ``-v``, and passes a ``Terminal`` as the command's first argument.

    Only that writes to stdout then: a transform's ``print`` would be in the midst of the JSON, with values of rows.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Print nothing but results and errors.")
    @click.option("-v", "--verbose", "verbosity", count=True, help="Say more; twice: everything.")
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, quiet: bool, verbosity: int, **options: Any) -> Any:
        terminal = click.get_current_context().ensure_object(Terminal)
        terminal.as_json, terminal.quiet, terminal.verbosity = as_json, quiet, verbosity
        with redirect_stdout(sys.stderr):
            return command(terminal, *args, **options)

    return wrapped  # type: ignore[return-value]  # click keeps the options on the function


def confirm(question: str, *, yes: bool) -> bool:
    """True when the person agrees, or has agreed by ``--yes``.  Raises ``UsageError`` without a terminal to ask on."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("this needs --yes: there is no terminal to ask on")
    return click.confirm(question, default=False, err=True)


def leave_stdout_quietly() -> None:
    """The reader of stdout is gone: let the interpreter's last flush go nowhere instead of failing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
