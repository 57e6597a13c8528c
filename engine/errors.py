"""The one tree of errors.

::

    BackfillError                 1  unexpected
    ├── UsageError                2  a flag or argument makes no sense
    ├── SpecError                 3  the spec is invalid; carries every problem with line, column and hint
    ├── SpecChanged               3  the spec differs from the job of the same name in what makes it that job
    ├── TransformNotAllowed       3  whoever runs this process has not allowed the Python function that a job names
    ├── TransformNotLoaded        3  the Python function that a job names cannot be imported, or is no transform
    ├── PreflightRefused          4  the tables cannot be backfilled safely as they are
    ├── CannotConnect             5  a server cannot be reached or will not let us in
    ├── VerificationMismatch      6  the two sides differ
    ├── Stopped                   7  a guard stopped the job; resumable
    │   ├── BadRow                   one row cannot be written
    │   ├── TooManyBadRows           more rows cannot be written than may be set aside
    │   ├── TransformFailed          a Python transform raised, hung or gave back something wrong
    │   ├── SchemaDrift              a table changed under the job
    │   └── LedgerDamaged            the ledger contradicts itself
    ├── HeldByOperator            8  paused or cancelled by a person
    └── Busy                     75  another runner holds it and we were told not to wait

Each error has a stable ``code`` (for scripts and the HTTP API), an exit code, an HTTP status and a ``hint`` that says
what to do; it keeps the server's SQLSTATE where there is one.  Messages hold no row values and no secrets: the DETAIL,
CONTEXT and WHERE fields of server errors are dropped where they are caught (``engine.db.failures``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from engine.model import Finding, JobState


class BackfillError(Exception):
    """Any error of this project.  ``code`` is stable; ``str()`` is for people."""

    code: ClassVar[str] = "unexpected"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str = "", sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.sqlstate = sqlstate


class UsageError(BackfillError):
    """A flag or argument makes no sense, or contradicts another."""

    code = "usage"
    exit_code = 2
    http_status = 400


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a spec.  ``line`` and ``column`` count from 1; 0 where the text has no place for it."""

    path: str  # e.g. chunk.max_rows
    message: str
    hint: str = ""
    line: int = 0
    column: int = 0
    pointer: str = field(default="", repr=False)  # the same path as a JSON pointer (RFC 6901); "": the whole document


class SpecError(BackfillError):
    """The spec is invalid.  All its problems at once, in the order of the file."""

    code = "spec_invalid"
    exit_code = 3
    http_status = 422

    def __init__(self, problems: Sequence[Problem], *, file: str = "") -> None:
        count = len(problems)
        where = f" in {file}" if file else ""
        super().__init__(f"{count} problem{'s' if count != 1 else ''}{where}")
        self.problems = tuple(problems)
        self.file = file


class SpecChanged(BackfillError):
    """The spec under this name means another job than the one in the ledger."""

    code = "spec_changed"
    exit_code = 3
    http_status = 409

    def __init__(self, job: str, differences: Sequence[tuple[str, str, str]]) -> None:
        places = {f"{side}_{what}" for side in ("source", "target") for what in ("oid", "system")}
        super().__init__(
            f"job {job!r} exists with another meaning: " + ", ".join(path for path, _, _ in differences),
            hint="a table was made anew, or restored elsewhere: what the job moved need not be there;"
            f" backfill cleanup {job} forgets the job, and the next run begins it anew"
            if {path for path, _, _ in differences} <= places
            else "give the new job another name, or finish with the old one: backfill cancel, then backfill cleanup",
        )
        self.job = job
        self.differences = tuple(differences)  # (path, in the ledger, in the spec)


class PreflightRefused(BackfillError):
    """The tables cannot be backfilled safely as they are."""

    code = "preflight_refused"
    exit_code = 4
    http_status = 409

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("; ".join(f"{f.code}: {f.message}" for f in findings))
        self.findings = tuple(findings)


class SuperuserRefused(BackfillError):
    """A session that moves rows would be a superuser's, which the daemon's operator has not allowed."""

    code = "superuser_refused"
    exit_code = 3
    http_status = 403


class TransformNotAllowed(BackfillError):
    """A job names a Python function that the operator of this process has not allowed.  Nothing was imported."""

    code = "transform_not_allowed"
    exit_code = 3
    http_status = 403


class TransformNotLoaded(BackfillError):
    """The Python function that a job names cannot be imported, or is no transform."""

    code = "transform_not_loaded"
    exit_code = 3
    http_status = 422


class CannotConnect(BackfillError):
    """A server cannot be reached, or will not let us in."""

    code = "cannot_connect"
    exit_code = 5
    http_status = 503


class VerificationMismatch(BackfillError):
    """Verification found rows that differ."""

    code = "verification_mismatch"
    exit_code = 6
    http_status = 409


class Stopped(BackfillError):
    """A guard stopped the job.  What was moved stays; after the cause is mended the job can be resumed."""

    code = "stopped"
    exit_code = 7
    http_status = 409
    resumable: ClassVar[bool] = True


class BadRow(Stopped):
    """One row (or the statement itself) fails in a way that repeating cannot mend."""

    code = "bad_row"


class TooManyBadRows(Stopped):
    """As many rows are set aside as ``errors.max_quarantined`` allows, and there is one more."""

    code = "too_many_bad_rows"


class TransformFailed(Stopped):
    """A Python transform raised, hung, or gave back something that its columns cannot hold.  The message shows the
    transform's own line, and never what an exception says: that may be a row's values.
    """

    code = "transform_failed"


class SchemaDrift(Stopped):
    """A table, its key or the server's collation changed since the job was planned."""

    code = "schema_drift"


class LedgerDamaged(Stopped):
    """The ledger contradicts itself or belongs to something else: refused, never guessed around."""

    code = "ledger_damaged"
    resumable = False


class HeldByOperator(BackfillError):
    """A person paused or cancelled the job, or it ended in a state that only a person can leave."""

    code = "held_by_operator"
    exit_code = 8
    http_status = 409

    def __init__(self, message: str, *, state: JobState, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.state = state


class Busy(BackfillError):
    """Another runner holds what we need and we were asked not to wait."""

    code = "busy"
    exit_code = 75
    http_status = 409


class UnknownJob(UsageError):
    """No job of that name in this ledger."""

    code = "unknown_job"
    http_status = 404
