"""Jobs whose processes are killed: what each is about, and how one sees that it ended with exactly the right rows."""

from __future__ import annotations

from typing import Final

from engine.spec import ChunkLimits, JobSpec
from engine.spec.models import Errors
from tests.support import functions, hashing
from tests.support.databases import TwoDatabases
from tests.support.jobs import in_place, into, rows_of

ROWS: Final = 4000
CHUNK: Final = ChunkLimits(min_rows=10, max_rows=200)
BAD_ID: Final = 1234

SLOW_CHUNKS: Final = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.id % 100 = 0 THEN PERFORM pg_sleep(0.02); END IF; RETURN NEW; END $$;
CREATE TRIGGER wait BEFORE UPDATE ON src FOR EACH ROW EXECUTE FUNCTION wait();
"""


class Job:
    """Tables of one kind of job.

    ``count`` adds one to a counter whose ``done`` is never true; in ``bad count`` one row cannot be written; ``long
    count`` takes longer.  ``copy`` goes to another database, ``insert`` to another table.  ``transformed`` ones let
    Python compute a column, ``later`` ones in an ``async def``, and ``picky`` ones let it reject each thousandth row as
    well.
    """

    def __init__(self, kind: str, databases: TwoDatabases) -> None:
        words = kind.split()
        self.kind = words[-1]
        self.bad = BAD_ID if "bad" in words else None
        self.is_picky = "picky" in words
        self.is_later = "later" in words
        self.is_transformed = self.is_picky or "transformed" in words
        self.rows = 3 * ROWS if "long" in words else ROWS
        self.source = databases.source
        self.target = databases.target if self.kind == "copy" else databases.source
        self.source.sql(
            "CREATE TABLE src (id int PRIMARY KEY, v text, n int NOT NULL, counter int NOT NULL DEFAULT 0);"
            f"INSERT INTO src SELECT g, 'v' || g, g FROM generate_series(1, {self.rows}) g; ANALYZE src"
        )
        if "long" in words:
            self.source.sql(SLOW_CHUNKS)  # so that a thief finds the victim where it saw it
        if self.kind != "count":
            self.target.sql("CREATE TABLE dst (id int PRIMARY KEY, v text, h bigint)")

    @property
    def spec(self) -> JobSpec:
        errors = Errors(max_quarantined=1) if self.bad is not None else None
        if self.is_picky:
            errors = Errors(max_quarantined=10)
        more = {"errors": errors} if errors is not None else {}
        if self.kind == "count":
            if self.is_transformed:
                function = "one_more_or_no" if self.is_picky else "one_more"
                return in_place(
                    self.source, "src", {}, transform=functions.named(function), done="false", chunk=CHUNK, **more
                )
            return in_place(
                self.source,
                "src",
                {"counter": f"counter + 1 + 0 / (id - {self.bad or 0})"},
                done="false",
                chunk=CHUNK,
                accept=("TRIGGERS_ON_SOURCE",),
                **more,
            )
        columns = {"id": "id", "v": "v"}
        if self.is_transformed:
            function = "hashed_or_no" if self.is_picky else "hashed_later" if self.is_later else "hashed"
            more["transform"] = hashing.named(function)
        return into(self.source, "src", self.target, "dst", columns=columns, chunk=CHUNK, **more)

    @property
    def aside(self) -> list[int]:
        """The keys of the rows that belong in the quarantine."""
        if self.is_picky:
            return [key for key in range(1, self.rows + 1) if key % 1000 == hashing.MARK]
        return [self.bad] if self.bad is not None else []

    def check(self) -> None:
        """Every row is right, and was written once; every row that cannot be is set aside, once."""
        aside = self.aside
        without = ", ".join(map(str, aside)) or "0"
        if self.kind == "count":
            seen = self.source.sql(f"SELECT min(counter), max(counter), count(*) FROM src WHERE id NOT IN ({without})")
            assert seen == f"1|1|{self.rows - len(aside)}"
            assert self.source.sql(f"SELECT coalesce(sum(counter), 0) FROM src WHERE id IN ({without})") == "0"
        else:
            hashed = hashing.HASHED_SQL if self.is_transformed else "NULL"
            right = rows_of(self.source, f"SELECT id, v, {hashed} FROM src WHERE id NOT IN ({without})")
            assert right == rows_of(self.target, "SELECT id, v, h FROM dst")
        assert self.set_aside() == sorted(f"{{{key}}}|1" for key in aside)

    def set_aside(self) -> list[str]:
        """Key and attempts of each row in the quarantine."""
        return rows_of(self.target, "SELECT key, attempts FROM backfill.quarantine")
