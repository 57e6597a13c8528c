"""The situations that preflight should notice about a job's transform (see ``tests.support.findings``)."""

from __future__ import annotations

from typing import Any

from engine.plan.preflight import Code
from tests.support.findings import Job, Situation
from tests.support.situation_transforms import named


def computed(function: str, **settings: Any) -> Job:
    """``cents`` of ``orders`` in place, by a transform."""
    return Job(sets=settings.pop("sets", {}), settings={"transform": named(function)} | settings)


def moved(function: str, *, is_copy: bool = False, **settings: Any) -> Job:
    """``orders`` into ``orders_v2``, ``cents`` by a transform."""
    return Job(target="orders_v2", is_copy=is_copy, settings={"transform": named(function)} | settings)


TRANSFORM_SITUATIONS = {
    "a transform that reads what is not there": Situation(
        code=Code.TRANSFORM_COLUMN_UNKNOWN,
        job=computed("reads_what_is_not_there"),
        words=("ammount", ":schema.orders", "amount?"),
        mend="ALTER TABLE orders ADD ammount numeric",
    ),
    "a transform that writes what is not there": Situation(
        code=Code.TRANSFORM_COLUMN_UNKNOWN,
        job=moved("writes_what_is_not_there"),
        words=("cent,", ":schema.orders_v2"),
        mend="ALTER TABLE orders_v2 ADD cent bigint",
    ),
    "a transform that reads a point": Situation(
        code=Code.TRANSFORM_TYPE_UNSUPPORTED,
        sql="ALTER TABLE orders ADD place point",
        job=computed("reads_a_point"),
        words=("reads place", "point"),
        mended=computed("good"),
    ),
    "an array of an enum beside a transform between two databases": Situation(
        code=Code.TRANSFORM_TYPE_UNSUPPORTED,
        sql="CREATE TYPE mood AS ENUM ('good', 'bad'); ALTER TABLE orders ADD moods mood[]",
        there="CREATE TYPE mood AS ENUM ('good', 'bad'); ALTER TABLE orders_v2 ADD moods mood[]",
        job=moved("good", is_copy=True),
        words=("moods is", "binary form that another database could read"),
        mended=moved("good", is_copy=True, columns={"id": "id", "amount": "amount"}),
    ),
    "a transform that writes the key": Situation(
        code=Code.TRANSFORM_WRITES_KEY, job=computed("writes_the_key"), words=("id",), mended=computed("good")
    ),
    "a transform that writes the key of the target": Situation(
        code=Code.TRANSFORM_WRITES_KEY, job=moved("writes_the_key"), words=("id",), mended=moved("good")
    ),
    "a column by SQL and by a transform": Situation(
        code=Code.TRANSFORM_WRITES_TWICE,
        job=computed("good", sets={"cents": "1", "note": "'x'"}),
        words=("cents", "set"),
        mended=computed("good", sets={"note": "'x'"}),
    ),
    "a transform that raises": Situation(
        code=Code.TRANSFORM_FAILS,
        job=computed("raises"),
        words=("KeyError", "situation_transforms.py:", "raises"),
        mended=computed("good"),
    ),
    "a transform that gives back another type": Situation(
        code=Code.TRANSFORM_FAILS,
        job=moved("writes_floats"),
        words=("cents", "float64", "bigint"),
        mended=moved("good"),
    ),
    "a transform that rejects rows": Situation(
        code=Code.TRANSFORM_REJECTS,
        job=moved("rejects_some", errors={"max_quarantined": 10}),
        words=("2 of a sample of 100 rows", "not today", "max_quarantined"),
        mended=moved("good"),
    ),
    "a transform that drops rows": Situation(
        code=Code.TRANSFORM_DROPS, job=moved("drops"), words=("missing",), mended=moved("good")
    ),
    "a transform that reads what it writes": Situation(
        code=Code.DONE_REQUIRED,
        job=computed("reads_its_own"),
        words=("reads cents",),
        mended=computed("reads_its_own", done="cents > 0"),
    ),
    "a transform's column that is full already": Situation(
        code=Code.DONE_REQUIRED,
        sql="UPDATE orders SET cents = 0; ALTER TABLE orders ALTER cents SET NOT NULL",
        job=computed("good"),
        words=("cents", "change nothing"),
        mend="ALTER TABLE orders ALTER cents DROP NOT NULL",
    ),
    "a transform's column that the table computes": Situation(
        code=Code.SET_GENERATED,
        sql="ALTER TABLE orders DROP cents, ADD cents bigint GENERATED ALWAYS AS (id) STORED",
        job=computed("good"),
        words=("cents",),
        mend="ALTER TABLE orders ALTER cents DROP EXPRESSION",
    ),
    "nobody computes new rows": Situation(
        code=Code.DUAL_WRITE_MISSING,
        job=computed("good"),
        words=("cents", "let the application fill them"),
        mend="CREATE TRIGGER cents BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION pass()",
    ),
    "no room to stage what a transform makes": Situation(
        code=Code.PRIVILEGES,
        sql="GRANT USAGE ON SCHEMA :schema TO :plain; GRANT ALL ON ALL TABLES IN SCHEMA :schema TO :plain;"
        "GRANT CREATE ON DATABASE :database TO :plain; REVOKE TEMPORARY ON DATABASE :database FROM PUBLIC",
        job=Job(user=":plain", sets={}, settings={"transform": named("good")}),
        words=("TEMPORARY", "backfill grants"),
        mend="GRANT TEMPORARY ON DATABASE :database TO PUBLIC",
        after="GRANT TEMPORARY ON DATABASE :database TO PUBLIC; REVOKE CREATE ON DATABASE :database FROM :plain",
    ),
}
