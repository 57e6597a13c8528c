"""The gate before the *contract* step: may the old column or table be given up?

Every condition is looked at now, in the ledger, the catalogue and the server; what cannot be known counts as no.  The
gate proves nothing itself: it says whether what was proved still holds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from engine.db.fingerprint import differences, fingerprint
from engine.errors import PreflightRefused
from engine.flow import dual_write, opening
from engine.flow.dual_write import DualWrite
from engine.flow.dual_write_change import prepared_for_change
from engine.flow.prepare import Inspection, Prepared
from engine.flow.shared import Sides, of_side
from engine.ledger.records import JobRecord, Verification
from engine.ledger.store import Ledger
from engine.model import JobState, Mode, Side

DECLARED: Final = "DUAL_WRITE_MISSING"
"""The finding by whose acceptance a person declares that the application writes both sides."""

_SECTIONS: Final = ("table", "columns", "indexes", "collations")
"""Of the schema, what must be as it was planned.  Triggers have a check of their own, and a rewritten file is for the
verification to judge."""

_PLAN_ANEW: Final = "see that the job is still right; a new job is planned for the tables as they are"


@dataclass(frozen=True, slots=True)
class Check:
    """One condition."""

    name: str  # done | verified | schema | dual_write | quarantine | server
    ok: bool
    detail: str  # what was seen
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Gate:
    """All conditions, in the order in which one would deal with them."""

    job: str
    checks: tuple[Check, ...]
    mismatch: bool  # the last verification found rows that differ

    @property
    def ready(self) -> bool:
        """True when the old side may be given up."""
        return all(check.ok for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The object of ``gate --json``."""
        return {"job": self.job, "ready": self.ready, "checks": [asdict(check) for check in self.checks]}


def without_repair(job: str, *, in_place: bool, quarantined: int) -> str:
    """What to do about rows of a job with a transform that differ.  ``quarantined``: rows that are set aside, which are
    among them.
    """
    way = "a repair is SQL and cannot compute what a transform does: "
    if quarantined:
        way += (
            f"{_rows(quarantined)} of them may be set aside: backfill quarantine list {job}; mend them, then backfill"
            f" quarantine retry {job}; for all others "
        )
    if in_place:
        return f"{way}backfill restart {job} does what is not done"
    return f"{way}take these rows out of the target, and backfill restart {job} writes them again"


async def gate(seen: Inspection, ledger: Ledger, sides: Sides) -> Gate:
    """Look at every condition.  ``sides``: sessions of both databases.

    Raises ``SpecChanged`` when the spec means another job than the one of its name.
    """
    job = await ledger.job(seen.spec.name)
    last = None if job.verification_id is None else await ledger.verification(job.verification_id)
    passed = await ledger.last_passed(job.id)
    files = await _files(seen, sides)
    quarantined = await ledger.quarantined_count(job.id)
    no_repair = ""
    if seen.transform is not None:
        no_repair = without_repair(job.name, in_place=seen.mode is Mode.UPDATE, quarantined=quarantined)
    checks = (
        _done(job),
        _verified(job, last, files, no_repair),
        *await _tables(job, seen, sides),
        _quarantine(job, quarantined),
        _server(job, passed, sides[Side.TARGET].server.mark),
    )
    return Gate(job.name, checks, mismatch=last is not None and last.outcome == "mismatch")


async def _tables(job: JobRecord, seen: Inspection, sides: Sides) -> tuple[Check, Check]:
    """What is asked of the tables.  They may have changed so much that the job could not even be run any more."""
    try:
        prepared = prepared_for_change(seen)
    except PreflightRefused as refused:
        detail = f"the job could not be run on the tables as they are now: {refused}"
        return Check("schema", ok=False, detail=detail, remedy=_PLAN_ANEW), _dual_write(job, None, seen)
    now = json.loads(json.dumps(await opening.take_fingerprint(prepared, sides)))
    schema = _schema(job, now, prepared)
    if schema.ok:  # else what the spec means may have changed with the tables
        opening.check_identity(job, prepared)
    return schema, _dual_write(job, await dual_write.look(of_side(sides, Side.SOURCE), prepared), seen)


def _done(job: JobRecord) -> Check:
    if job.state is JobState.DONE:
        return Check("done", ok=True, detail="every row was moved")
    return Check("done", ok=False, detail=f"the job is {job.state}", remedy="backfill status says what it needs")


async def _files(seen: Inspection, sides: Sides) -> dict[str, int]:
    """The files of the table that the job writes, as ``opening.mark_of`` notes them; also where the tables have changed
    so much that nothing could be prepared.
    """
    try:
        return (await fingerprint(sides[Side.TARGET], seen.target or seen.source))["relfilenodes"]
    except LookupError:
        return {}  # it was dropped a moment ago: none of its files is there


def _verified(job: JobRecord, last: Verification | None, files: dict[str, int], no_repair: str) -> Check:
    again = f"backfill verify {job.name}"
    if last is None:
        return Check("verified", ok=False, detail="nobody has verified it", remedy=again)
    if last.outcome is None:
        return Check("verified", ok=False, detail="a verification is running", remedy=f"backfill wait {job.name}")
    if last.outcome == "mismatch":
        return _mismatch(last, again, no_repair, in_place=job.mode is Mode.UPDATE)
    if last.outcome == "cancelled":
        return Check("verified", ok=False, detail="the last verification was cancelled", remedy=again)
    if job.moved_at is None or last.started_at < job.moved_at:
        return Check(
            "verified", ok=False, detail="the job wrote to its tables after the verification began", remedy=again
        )
    then = (last.target_mark or {}).get("files")
    if then is None or not then.items() <= files.items():  # a partition that came since does no harm
        return Check("verified", ok=False, detail=_rewritten(then, files), remedy=again)
    rows = f"{last.rows:,} rows agree, verified from {last.started_at:%Y-%m-%d %H:%M:%S} UTC on"
    left_out = f"; not compared: {', '.join(last.not_compared)}" if last.not_compared else ""
    return Check("verified", ok=True, detail=rows + left_out)


def _mismatch(last: Verification, again: str, no_repair: str, *, in_place: bool) -> Check:
    """``no_repair``: what to do where a repair cannot help; empty where it can."""
    differing = last.mismatched + last.missing + last.extra - last.repaired
    if differing or last.truncated:
        least = "at least " if last.truncated else ""
        how = "not done" if no_repair and in_place else "differing"
        detail = f"the last verification found {least}{_rows(differing)} {how}"
        more = " (--delete-extra, if rows that only the target holds are nobody's)"
        remedy = f"{again} --repair{more if last.extra and not last.delete_extra else ''}, then {again}"
        if no_repair:
            remedy = f"{again} --show-rows names them; {no_repair}; then {again}"
    else:
        detail = f"the last verification found {_rows(last.unsettled)} that changed at every look"
        remedy = f"{again} when they are written less often, or with a longer --settle"
    return Check("verified", ok=False, detail=detail, remedy=remedy)


def _rewritten(then: dict[str, int] | None, files: dict[str, int]) -> str:
    if then is None:
        return "the last verification did not note the files that it read: they may have been emptied since"
    names = ", ".join(sorted(name for name in then if files.get(name) != then[name]))
    return f"emptied or rewritten (TRUNCATE, VACUUM FULL, …) or taken away since the verification began: {names}"


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number:,} rows"


def _schema(job: JobRecord, now: dict[str, Any], prepared: Prepared) -> Check:
    changed: list[str] = []
    for side, table in (("source", prepared.source_table), ("target", prepared.written_table)):
        before, after = job.fingerprint.get(side), now.get(side)
        if before is not None and after is not None:
            changed += [f"{table.name}: {what}" for what in differences(before, after, sections=_SECTIONS)]
    if changed:
        return Check(
            "schema",
            ok=False,
            detail="changed since the job was planned: " + "; ".join(changed),
            remedy=_PLAN_ANEW,
        )
    return Check("schema", ok=True, detail="both tables are as they were planned")


def _dual_write(job: JobRecord, now: DualWrite | None, seen: Inspection) -> Check:
    """``now`` None: it cannot be told what the triggers should be."""
    if job.dual_write is not None:
        if now is None:
            return Check(
                "dual_write",
                ok=False,
                detail="our triggers cannot be judged while the tables do not fit the job",
                remedy="first see to the schema",
            )
        if dual_write.same_triggers(job.dual_write, now.evidence) and now.intact:
            return Check("dual_write", ok=True, detail="our triggers are in place and have been all the while")
        problems = "; ".join(now.problems) or "they were switched off, or made anew, since the job began"
        return Check(
            "dual_write",
            ok=False,
            detail=f"our triggers are not what they were: {problems}",
            remedy="what was written meanwhile may be missing: install them again, then backfill restart",
        )
    if DECLARED in seen.spec.accept:
        return Check("dual_write", ok=True, detail="declared by accept: the application writes both sides")
    if seen.mode is Mode.COPY:
        remedy = f"if the application writes both databases, declare it: accept: [{DECLARED}]"
    elif seen.transform is not None:
        remedy = f"if the application writes what the transform computes, declare it: accept: [{DECLARED}]"
    else:
        remedy = f"backfill dualwrite --install before a job; or declare the application's: accept: [{DECLARED}]"
    return Check("dual_write", ok=False, detail="no triggers of ours since the job began", remedy=remedy)


def _quarantine(job: JobRecord, rows: int) -> Check:
    if rows == 0:
        return Check("quarantine", ok=True, detail="no row is set aside")
    return Check(
        "quarantine",
        ok=False,
        detail="1 row is set aside" if rows == 1 else f"{rows:,} rows are set aside",
        remedy=f"backfill quarantine list {job.name}; mend them, then retry, or drop them",
    )


def _server(job: JobRecord, passed: Verification | None, now: dict[str, Any]) -> Check:
    """A server that was restarted, or failed over, may have lost rows that were acknowledged."""
    if _same_server(job.target_mark, now):
        return Check("server", ok=True, detail="the target's server runs since before the job")
    if passed is not None and _same_server(passed.target_mark, now):
        return Check("server", ok=True, detail="verified since the target's server was started")
    return Check(
        "server",
        ok=False,
        detail="the target's server was restarted or replaced since: rows that it had acknowledged may be lost",
        remedy=f"backfill verify {job.name}",
    )


def _same_server(before: dict[str, Any] | None, now: dict[str, Any]) -> bool:
    """``before`` may hold more: the files that were verified."""
    return before is not None and all(before.get(name) == value for name, value in now.items())
