"""``python -m tests.faults.mutations [NAME …]``: take one piece of the safety out, and see the suite go red.

Each mutation changes one place in a copy of the source tree and runs the tests that should notice (which are green
without it: that is what ``make test`` is for).  Prints a table: what was taken out, and which test saw it; ends with 1
when something went unnoticed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
LEDGER: Final = "engine/ledger/migrations/001_ledger.sql"
QUERIES: Final = "engine/ledger/queries.sql"
TIMEOUT_S: Final = 240

CONFORMANCE: Final = "tests/conformance/test_ledger.py"
ONCE: Final = "tests/faults/test_exactly_once.py"
CRASHES: Final = "tests/faults/test_crash_points.py"
FROZEN: Final = "tests/faults/test_frozen.py"
PROOF: Final = "engine/ledger/migrations/003_proof.sql"
TOMBSTONES: Final = "tests/integration/test_tombstones.py"
OVER: Final = "tests/faults/test_verification_over.py"
VERIFYING: Final = "tests/faults/test_verify_faults.py"
BARRIER: Final = "tests/faults/test_barrier.py"
DAMAGE: Final = "tests/faults/test_ledger_damage.py"
RACES: Final = "tests/faults/test_transform_races.py"
TRANSFORMS: Final = "tests/faults/test_transforms.py"


@dataclass(frozen=True, slots=True)
class Mutation:
    """``old`` becomes ``new`` in ``file`` (it must be there); ``tests`` are pytest's arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS: Final = (
    Mutation(
        "the fence does not compare the epoch",
        LEDGER, "AND epoch = p_epoch AND hi = p_hi", "AND hi = p_hi", (CONFORMANCE,),
    ),
    Mutation(
        "the fence does not compare the cursor",
        LEDGER, "       AND (cursor = p_cursor OR (cursor IS NULL AND p_cursor IS NULL));", ";", (CONFORMANCE,),
    ),
    Mutation(
        "the fence does not compare the upper bound",
        LEDGER, "AND epoch = p_epoch AND hi = p_hi", "AND epoch = p_epoch", (CONFORMANCE,),
    ),
    Mutation(
        "… nor cursor nor upper bound, seen from the wire",
        LEDGER,
        "AND epoch = p_epoch AND hi = p_hi\n       AND (cursor = p_cursor OR (cursor IS NULL AND p_cursor IS NULL));",
        "AND epoch = p_epoch;", (ONCE, "-k", "halved"),
    ),
    Mutation(
        "a refused chunk raises nothing",
        LEDGER,
        "RAISE EXCEPTION 'this chunk belongs to somebody else by now' USING ERRCODE = 'BF001';", "NULL;",
        (ONCE, "-k", "hangs or halved or late"),
    ),
    Mutation(
        "the copy commits its rows before the fence",
        "engine/flow/movers/streamed.py", '{fence}; COMMIT"', 'COMMIT; {fence}"', (CRASHES, FROZEN, ONCE, "-k", "copy or commit"),
    ),
    Mutation(
        "a chunk reaches beyond the frozen bound",
        "engine/flow/bounds.py", "min(start + rows, end)", "start + rows", (CRASHES, DAMAGE, "-k", "count or sound"),
    ),
    Mutation(
        "claiming does not raise the epoch",
        QUERIES, "SET epoch = s.epoch + 1, worker = $2", "SET epoch = s.epoch, worker = $2", (CONFORMANCE,),
    ),
    Mutation(
        "claiming again does not raise the epoch",
        QUERIES, "SET epoch = s.epoch + 1, backends = $5", "SET epoch = s.epoch, backends = $5", (CONFORMANCE,),
    ),
    Mutation(
        "a thief does not look where its victim stands",
        QUERIES, "AND hi = $4 AND cursor IS NOT DISTINCT FROM $3", "", (CONFORMANCE,),
    ),
    Mutation(
        "a lease that is too long counts as honest",
        QUERIES, "OR s.lease_until > clock_timestamp() + 2 * make_interval(secs => $4))\n     ORDER", ")\n     ORDER",
        (CONFORMANCE,),
    ),
    Mutation(
        "the successor does not end the former holder's sessions",
        "engine/flow/control.py",
        "        for side, database in ((Side.SOURCE, self._endpoints.source), (Side.TARGET, self._endpoints.target)):\n"
        "            of_side",
        "        for side, database in ():\n            of_side", (FROZEN, ONCE, "-k", "copy or ended"),
    ),
    Mutation(
        "no sweep",
        "engine/flow/prepare.py", "return self.target is not None and self.spec.deletes is Deletes.GUARDED", "return False",
        (BARRIER, CRASHES, "-k", "ghost or sweep"),
    ),
    Mutation(
        "the sweep takes rows of others for ours",
        "engine/sql/statements.py",
        '"EXISTS (SELECT FROM backfill.written AS w WHERE w.job_id = $1 AND w.xid = {row}.xmin::text::bigint)"',
        '"({row}.xmin IS NOT NULL AND $1::bigint > 0)"', ("tests/integration/test_movers.py", "-k", "swept"),
    ),
    Mutation(
        "nobody is waited for: no start barrier, no horizon",
        "engine/flow/barrier.py", "return json.dumps(running) if any(running.values()) else None", "return None", (BARRIER,),
    ),
    Mutation(
        "a column called n is taken for the counter of the sweep",
        "engine/sql/statements.py", "[{width} * backfill_listed.n + {i + 1}]", "[{width} * n + {i + 1}]",
        (BARRIER, "-k", "every_name"),
    ),
    Mutation(
        "spans are not seen to tile the key space",
        "engine/flow/opening.py", "await _check_tiling(spans, of_side(sides, through.side), through.key)", "pass", (DAMAGE,),
    ),
    Mutation(
        "the end of the key space is not looked at",
        "engine/flow/opening.py", "_chained(spans)[-1].hi != end", "False", (DAMAGE, "-k", "damaged"),
    ),
    Mutation(
        "the triggers bury nothing",
        PROOF, "    INSERT INTO backfill.tombstone (job, key) VALUES (p_job, p_key);", "    NULL;", (TOMBSTONES,),
    ),
    Mutation(
        "triggers that blinked count as if they had been there all the while",
        "engine/flow/phases.py", "and dual_write.still_holds(job.dual_write, now.evidence)", "and True", (TOMBSTONES,),
    ),
    Mutation(
        "one look is enough for a difference",
        "engine/flow/movers/confirm.py", "elif have_ended and marks.get(suspect.id) == seen:", "elif True:",
        (VERIFYING, "-k", "between_its_two_commits or never_still"),
    ),
    Mutation(
        "whoever works on a verification that is over is not fenced",
        QUERIES, "THEN $9::bigint ELSE -1 END", "THEN $9::bigint ELSE $9 END",
        (OVER, "-k", "ledger_fences"),
    ),
    Mutation(
        "a phase counts as finished before it was planned",
        "engine/ledger/proof.py", 'or state["phase"] != last or state["is_waiting"]:', 'or state["phase"] != last:',
        (OVER, "-k", "ledger_fences"),
    ),
    Mutation(
        "in place a transform's row is written whatever has become of it since it was read",
        "engine/sql/transformed.py", "parameter(2))}{same_reads} ", "parameter(2))} ", (RACES, "-k", "in_place"),
    ),
    Mutation(
        "rows that changed under a transform are not read again",
        "engine/flow/movers/filled.py", 'return row["unwritten"] or ()', "return ()", (RACES, "-k", "in_place"),
    ),
    Mutation(
        "in place a transform's rows, and those it rejects, are committed before the fence",
        "engine/flow/movers/filled.py", 'f"{aside}{fence}; COMMIT"', 'f"{aside}COMMIT; BEGIN; {fence}; COMMIT"',
        (TRANSFORMS, "-k", "count"),
    ),
)  # fmt: skip


def main() -> int:
    """Run the chosen mutations, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all when left out")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if not options.names or any(part in m.name for part in options.names)]
    survived = 0
    with tempfile.TemporaryDirectory(prefix="backfill-mutations-") as folder:
        for mutation in chosen:
            noticed = try_out(mutation, Path(folder) / "tree")
            survived += not noticed
            print(f"| {mutation.name} | {noticed or '**nobody noticed**'} |", flush=True)
    return 1 if survived else 0


def try_out(mutation: Mutation, tree: Path) -> str:
    """The test that noticed; empty when none did.  Raises when the place is not there or the tests cannot run."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in ("engine", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    place = tree / mutation.file
    text = place.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.name}: not found once in {mutation.file}"
    place.write_text(text.replace(mutation.old, mutation.new))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *mutation.tests],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    found = re.search(r"^FAILED (?:\S*::)?(\S+(?: [^-]\S*)*)", done.stdout, flags=re.MULTILINE)
    return f"`{found[1]}`" if found else ""


if __name__ == "__main__":
    sys.exit(main())
