"""Jobs whose rows are hashed by a transform: in place, or into another table."""

from __future__ import annotations

from typing import Any, Final

from engine.model import Mode
from engine.spec import ChunkLimits, JobSpec
from tests.support.databases import TwoDatabases
from tests.support.hashing import HASHED_SQL, named
from tests.support.jobs import in_place, into, rows_of

SMALL: Final = ChunkLimits(min_rows=10, max_rows=400)
SOURCE: Final = "id bigint PRIMARY KEY, n int, v text, tags int4range, doc tsvector, h bigint"


class Stage:
    """A table of numbers and texts, and a job that hashes them: in place, or into a table called ``dst``."""

    def __init__(self, mode: Mode, databases: TwoDatabases, rows: int = 3000) -> None:
        self.mode = mode
        self.source = databases.source
        self.target = databases.target if mode is Mode.COPY else databases.source
        self.table = "src" if mode is Mode.UPDATE else "dst"
        self.source.sql(
            f"CREATE TABLE src ({SOURCE});"
            "INSERT INTO src SELECT g, nullif(g % 1000, 7), CASE WHEN g % 10 > 0 THEN repeat('x', g % 50) END,"
            f" int4range(g, g + 3), to_tsvector('simple', 'word ' || g) FROM generate_series(1, {rows}) g;"
            "ANALYZE src"
        )
        if mode is not Mode.UPDATE:
            self.target.sql(f"CREATE TABLE dst ({SOURCE})")

    def spec(self, function: str = "hashed", **settings: Any) -> JobSpec:
        settings = {"chunk": SMALL, "transform": named(function)} | settings
        if self.mode is Mode.UPDATE:
            return in_place(self.source, "src", settings.pop("set", {}), **settings)
        return into(self.source, "src", self.target, "dst", **settings)

    @property
    def wrong(self) -> int:
        """Rows of the written table whose hash is not that of what they hold."""
        return int(self.target.sql(f"SELECT count(*) FROM {self.table} WHERE h IS DISTINCT FROM {HASHED_SQL}"))

    @property
    def passed(self) -> bool:
        """Every row is there, and what the transform does not write is as it was."""
        columns = "id, n, v, tags, doc"
        return rows_of(self.source, f"SELECT {columns} FROM src") == rows_of(
            self.target, f"SELECT {columns} FROM {self.table}"
        )
