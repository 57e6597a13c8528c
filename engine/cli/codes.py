"""Exit codes of a job that has ended; those of errors are theirs (``engine.errors``)."""

from __future__ import annotations

from typing import Final

from engine.errors import Busy, HeldByOperator, Stopped, VerificationMismatch
from engine.model import JobState

CODES: Final = {
    JobState.DONE: 0,
    JobState.FAILED: Stopped.exit_code,
    JobState.CANCELLED: HeldByOperator.exit_code,
    JobState.PAUSED: HeldByOperator.exit_code,
}
TRY_AGAIN: Final = Busy.exit_code


def code_when_done(verified: bool | None) -> int:
    """The exit code of a job that is done: of more use than 0 where its last verification found differences."""
    return VerificationMismatch.exit_code if verified is False else 0
