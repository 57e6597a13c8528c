"""One verification of a job in this process, from its beginning to its result."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar

from engine.errors import Busy, HeldByOperator, PreflightRefused, UsageError
from engine.events import Emit, VerificationFinished, ignore
from engine.fleet.local import LocalRun
from engine.flow import opening
from engine.flow.dual_write_change import prepared_for_change
from engine.flow.endpoints import endpoints_of
from engine.flow.prepare import Inspection, Prepared
from engine.flow.result import RunResult
from engine.flow.shared import SETTLE_S
from engine.ledger.records import Difference, JobRecord, Verification
from engine.ledger.store import Ledger
from engine.model import JobState, Side
from engine.plan.preflight import Code, required_privileges
from engine.plan.preflight.catalogue import finding
from engine.spec import JobSpec


class LocalVerification(LocalRun):
    """Verifies the job of ``spec``, which must be done, with workers in this process; ``await run.run()`` once.

    A verification that runs already, or was interrupted, is joined and brought to its end, as it was asked for then;
    ``joined`` hears of it before anything is compared.
    ``repair``: make the target (in place: the columns) equal to the source where they differ; rows that only the target
    holds are deleted only with ``delete_extra``.  ``settle_s``: between the two looks at a row that seems to differ.
    ``show``: so many keys of rows that differ are kept in ``differences``.  Afterwards ``verification`` holds what was
    found.
    """

    _tries: ClassVar[bool] = False

    def __init__(
        self,
        spec: JobSpec,
        *,
        repair: bool = False,
        delete_extra: bool = False,
        settle_s: float = SETTLE_S,
        show: int = 0,
        emit: Emit = ignore,
        signals: bool = False,
        joined: Callable[[Verification], None] = lambda _: None,
    ) -> None:
        if delete_extra and not repair:
            raise UsageError("--delete-extra is a part of --repair", hint="give both, or neither")
        super().__init__(spec, emit=emit, signals=signals)
        self.verification: Verification | None = None
        self.differences: tuple[Difference, ...] = ()
        self._repair = repair
        self._delete_extra = delete_extra
        self._settle_s = settle_s
        self._show = show
        self._joined = joined

    async def _run(self) -> RunResult:
        result = await super()._run()
        async with self._ledger() as ledger:
            number = (await ledger.job(self.spec.name)).verification_id
            if number is not None:
                self.verification = await ledger.verification(number)
                if self._show:
                    self.differences = await ledger.differences(number, self._show)
        return result

    def _prepared(self, seen: Inspection) -> Prepared:
        return prepared_for_change(seen)  # triggers that are not what they were are the gate's business

    async def _begin(self, prepared: Prepared) -> None:
        async with self._ledger() as ledger:
            joined = await begin(
                ledger,
                prepared,
                repair=self._repair,
                delete_extra=self._delete_extra,
                settle_s=self._settle_s,
            )
        if joined is not None:
            self._joined(joined)

    @asynccontextmanager
    async def _ledger(self) -> AsyncIterator[Ledger]:
        connection = await endpoints_of(self.spec)[1].connect("verify")
        try:
            yield Ledger(connection)
        finally:
            await connection.close()


async def begin(
    ledger: Ledger, prepared: Prepared, *, repair: bool, delete_extra: bool, settle_s: float = SETTLE_S
) -> Verification | None:
    """Begin to verify the job in its ledger, for whoever works there to do it.  Gives the verification that runs
    already, where there is one: it is joined, as it was asked for then.

    Raises ``UsageError`` and ``PreflightRefused`` for a repair that cannot be made, and ``Busy`` or ``HeldByOperator``
    for a job that is not done.
    """
    if repair and prepared.transform is not None:
        writes = ", ".join(prepared.transform.declaration.writes)
        raise UsageError(
            f"verify --repair cannot compute {writes}, which {prepared.transform.reference} does",
            hint="verify without --repair says what to do about rows that differ",
        )
    if repair and prepared.target is None and prepared.unrepeatable:
        names = ", ".join(sorted(prepared.unrepeatable))
        raise UsageError(
            f"{names} cannot be computed again, so it cannot be repaired",
            hint="verify without --repair tells which rows are not finished",
        )
    if repair:
        _refuse_powerless(prepared)
    if not await ledger.installed_version():
        await ledger.require()  # says that there is none; to look must not make one
    await ledger.ensure()
    job = await ledger.job(prepared.spec.name)
    if not _is_being_verified(job):
        begun = await ledger.begin_verification(
            job.id,
            repair=repair,
            delete_extra=delete_extra,
            settle_s=settle_s,
            not_compared=prepared.not_compared,
            target_mark=await opening.mark_of(prepared, {Side.TARGET: ledger.connection}),
        )
        if begun is not None:
            return None
        job = await ledger.job(prepared.spec.name)
        if not _is_being_verified(job):
            raise _not_yet(job)
    return None if job.verification_id is None else await ledger.verification(job.verification_id)


def finished_verification(job: str, found: Verification) -> VerificationFinished:
    """The last event of ``verify``."""
    return VerificationFinished(
        job=job,
        rows=found.rows,
        mismatched=found.mismatched,
        missing=found.missing,
        extra=found.extra,
        unsettled=found.unsettled,
        repaired=found.repaired,
        seconds=round(found.seconds, 3),
        verified=found.verified,
        columns=found.columns,
        not_compared=found.not_compared,
        truncated=found.truncated,
    )


def _refuse_powerless(prepared: Prepared) -> None:
    """What a repair takes beyond the job itself, asked for before a repair of the first row finds out."""
    table = prepared.target_table
    if table is None:
        return
    _, needed = required_privileges(prepared.spec, prepared.mode, repairs=True)
    missing = sorted(needed - table.privileges)
    if missing:
        role = f"role {prepared.spec.role}" if prepared.spec.role is not None else "our role"
        problem = f"to repair, {role} lacks {', '.join(missing)} on {table.name}"
        raise PreflightRefused([finding(Code.PRIVILEGES, problem, "`backfill grants --repair` prints what it takes")])


def _is_being_verified(job: JobRecord) -> bool:
    return job.phase is not None and job.phase.state is JobState.VERIFYING


def _not_yet(job: JobRecord) -> Busy | HeldByOperator:
    if job.state in (JobState.PLANNED, JobState.RUNNING):
        return Busy(f"job {job.name} is {job.state}: only a job that is done can be verified", hint="backfill wait")
    return HeldByOperator(
        f"job {job.name} is {job.state}: only a job that is done can be verified",
        state=job.state,
        hint="backfill status says what it needs",
    )
