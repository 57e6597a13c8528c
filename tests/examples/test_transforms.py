"""The worked examples of ``examples/transforms``: run as their README says, and compared row by row with their twins."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from engine.transform import Batch
from engine.transform.loading import load
from tests.operations.nursery import ADDRESS, Nursery
from tests.support.databases import FreshDatabase

FOLDER = Path(__file__).parents[2] / "examples" / "transforms"
KEY = "not a secret, but as long as one has to be"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where ``backfill`` comes from, without starting Python each time."""
    with Nursery() as started:
        yield started


@dataclass(frozen=True, slots=True)
class Ended:
    """A program that has ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Programs:
    """What somebody runs who stands in the examples' folder."""

    nursery: Nursery

    def run(self, *command: str, **variables: str) -> Ended:
        """Run a program to its end."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BACKFILL", "PG", "EMAIL"))}
        ours = {"NO_COLOR": "1", "BACKFILL_LOG_FORMAT": "human", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [*command],
            cwd=FOLDER, env={**kept, **ours, ADDRESS: self.nursery.address, **variables},
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    def backfill(self, *arguments: str, **variables: str) -> Ended:
        """A command of ours."""
        return self.run(str(self.nursery.programs / "backfill"), *arguments, **variables)

    def does(self, *arguments: str, **variables: str) -> str:
        """A command of ours that works; what it printed."""
        done = self.backfill(*arguments, **variables)
        assert done.code == 0, (arguments, done.out[-2000:], done.err[-2000:])
        return done.out

    def twin(self, name: str, **variables: str) -> None:
        """A twin, to its end."""
        done = self.run(sys.executable, name, **variables)
        assert done.code == 0, done.err


@pytest.fixture
def programs(nursery: Nursery) -> Programs:
    """``programs.backfill("run", "cents.yaml", SOURCE_DSN=…)``."""
    return Programs(nursery)


def quarantined(database: FreshDatabase) -> list[str]:
    """Key and reason of every row that was set aside."""
    rows = database.sql("SELECT key[1], sqlstate FROM backfill.quarantine ORDER BY key[1]::text")
    return rows.splitlines()


# -- numeric to cents, in place -----------------------------------------------------------------------------------------

ORDERS = """
CREATE TABLE orders (id bigint PRIMARY KEY, amount numeric(14,4), amount_cents bigint, note text);
INSERT INTO orders
SELECT g, CASE WHEN g % 7 = 0 THEN NULL ELSE (g * 7919 % 1000003 - 500000) / 100.0 END, NULL, 'note ' || g
  FROM generate_series(1, 3000) g;
UPDATE orders SET amount = 9999999999.99 WHERE id = 1;
UPDATE orders SET amount = -9999999999.99 WHERE id = 2;
UPDATE orders SET amount = 12.3456 WHERE id IN (50, 2500);
ANALYZE orders;
"""


async def test_cents_in_place_are_those_of_the_sql_expression(
    programs: Programs, make_database: Callable[..., FreshDatabase]
) -> None:
    shop, twin = make_database(), make_database()
    for database in (shop, twin):
        database.sql(ORDERS)
    programs.does("run", "cents.yaml", "--json", SOURCE_DSN=shop.dsn)
    twin.sql((FOLDER / "cents_twin.sql").read_text())
    found = "SELECT * FROM orders WHERE id NOT IN (50, 2500) ORDER BY id"
    assert shop.sql(found) == twin.sql(found)
    assert quarantined(shop) == ["2500|BF010", "50|BF010"]
    assert shop.sql("SELECT count(*) FROM orders WHERE id IN (50, 2500) AND amount_cents IS NULL") == "2"

    shop.sql("UPDATE orders SET amount = round(amount, 2) WHERE id IN (50, 2500)")
    programs.does("quarantine", "retry", "cents.yaml", "--all", SOURCE_DSN=shop.dsn)
    assert quarantined(shop) == []
    assert shop.sql("SELECT amount_cents FROM orders WHERE id IN (50, 2500)") == "1235\n1235"


async def test_the_plan_shows_what_goes_in_and_what_comes_out(programs: Programs, database: FreshDatabase) -> None:
    database.sql(ORDERS)
    told = json.loads(
        programs.does("plan", "cents.yaml", "--show-rows", "--json", SOURCE_DSN=database.dsn).splitlines()[-1]
    )
    assert "9999999999.99" in json.dumps(told["sample"]) and "999999999999" in json.dumps(told["sample"])
    assert database.sql("SELECT count(amount_cents) FROM orders") == "0"


# -- keyed hashes, to another database ----------------------------------------------------------------------------------

PEOPLE = """
CREATE TABLE people (id bigint PRIMARY KEY, email text, country text, joined tstzrange, tags text[]);
INSERT INTO people
SELECT g, CASE g % 5 WHEN 0 THEN NULL WHEN 1 THEN ' Person' || g || '@Example.ORG ' WHEN 2 THEN 'ä' || g || '@bücher.example'
                     ELSE 'person' || g || '@example.org' END,
       CASE WHEN g % 3 = 0 THEN 'DE' END, tstzrange('2020-01-01', timestamptz '2020-01-01' + g * interval '1 h'),
       CASE WHEN g % 4 > 0 THEN ARRAY['a' || g, NULL, ''] END
  FROM generate_series(1, 3000) g;
UPDATE people SET email = '' WHERE id = 11;
UPDATE people SET email = 'nobody' WHERE id = 12;
UPDATE people SET email = 'two@at@signs' WHERE id = 2999;
UPDATE people SET email = repeat('x', 5000) || '@example.org' WHERE id = 13;
ANALYZE people;
"""
PEOPLE_THERE = (
    "CREATE TABLE people (id bigint PRIMARY KEY, email_hash bytea, country text, joined tstzrange, tags text[])"
)
NO_ADDRESSES = ["11|BF010", "12|BF010", "2999|BF010"]


async def test_hashes_in_another_database_are_those_of_the_loop(
    programs: Programs, make_database: Callable[..., FreshDatabase]
) -> None:
    source, target, twin = make_database(), make_database(), make_database()
    source.sql(PEOPLE)
    target.sql(PEOPLE_THERE)
    twin.sql(PEOPLE_THERE)
    said = programs.does(
        "run", "email_hash.yaml", "--json", SOURCE_DSN=source.dsn, TARGET_DSN=target.dsn, EMAIL_HASH_KEY=KEY
    )
    programs.twin("email_hash_twin.py", SOURCE_DSN=source.dsn, TARGET_DSN=twin.dsn, EMAIL_HASH_KEY=KEY)
    found = "SELECT * FROM people ORDER BY id"
    assert target.sql(found) == twin.sql(found)
    assert target.sql("SELECT count(*), count(email_hash), count(DISTINCT email_hash) FROM people") == "2997|2397|2397"
    assert quarantined(target) == NO_ADDRESSES
    assert "nobody" not in said and KEY not in said


async def test_without_its_key_nothing_is_written(
    programs: Programs, make_database: Callable[..., FreshDatabase]
) -> None:
    source, target = make_database(), make_database()
    source.sql(PEOPLE)
    target.sql(PEOPLE_THERE)
    refused = programs.backfill("run", "email_hash.yaml", SOURCE_DSN=source.dsn, TARGET_DSN=target.dsn)
    assert refused.code == 4, refused.err
    assert "TRANSFORM_FAILS" in refused.err and "LookupError at email_hash.py" in refused.err
    assert target.sql("SELECT count(*) FROM people") == "0"
    assert target.sql("SELECT to_regnamespace('backfill') IS NULL") == "t"


# -- geohashes, to another table ----------------------------------------------------------------------------------------

PLACES = """
CREATE TABLE places (id uuid PRIMARY KEY, name text NOT NULL, lat double precision, lon double precision,
                     opening int4range);
INSERT INTO places
SELECT md5(g::text)::uuid, 'place ' || g, CASE WHEN g % 11 > 0 THEN sin(g) * 90 END,
       CASE WHEN g % 13 > 0 THEN cos(g * g) * 180 END, int4range(g, g + 8)
  FROM generate_series(1, 2000) g;
INSERT INTO places
SELECT md5('edge' || row_number() OVER ())::uuid, 'edge', lat, lon, NULL
  FROM unnest(ARRAY[-90, -0.0, 0, 1e-300, -1e-300, 45, 45.000000167638063, 89.99999999999999, 90]) lat,
       unnest(ARRAY[-180, -5e-324, 0, 0.000000335276126861572, 90, 179.99999999999997, 180]) lon;
INSERT INTO places VALUES
  ('00000000-0000-0000-0000-000000000001', 'mars', 91, 0, NULL),
  ('00000000-0000-0000-0000-000000000002', 'venus', 0, -180.00000000000003, NULL),
  ('00000000-0000-0000-0000-000000000003', 'limbo', 'NaN', 'Infinity', NULL);
CREATE TABLE places_v2 (id uuid PRIMARY KEY, name text NOT NULL, lat double precision, lon double precision,
                        opening int4range, geohash text, cell bigint);
ANALYZE;
"""


async def test_geohashes_in_another_table_are_those_of_the_textbook(
    programs: Programs,
    make_database: Callable[..., FreshDatabase],
) -> None:
    shop, twin = make_database(), make_database()
    for database in (shop, twin):
        database.sql(PLACES)
    programs.does("run", "geohash.yaml", "--json", SOURCE_DSN=shop.dsn)
    programs.twin("geohash_twin.py", SOURCE_DSN=twin.dsn)
    found = "SELECT * FROM places_v2 ORDER BY id"
    assert shop.sql(found) == twin.sql(found)
    assert int(shop.sql("SELECT count(geohash) FROM places_v2")) > 1700
    assert quarantined(shop) == [f"00000000-0000-0000-0000-00000000000{n}|BF010" for n in (1, 2, 3)]


def test_points_on_and_beside_the_edges_of_cells_are_those_of_the_textbook() -> None:
    geohash = load("geohash:geohash", {"geohash:geohash"}, search=FOLDER)
    textbook = runpy.run_path(str(FOLDER / "geohash_twin.py"))
    chosen = np.random.default_rng(7)
    lat, lon = (chosen.integers(0, 1 << 30, 900) * (2 * half / (1 << 30)) - half for half in (90.0, 180.0))
    for part, to in ((slice(300), -np.inf), (slice(300, 600), np.inf)):
        lat[part], lon[part] = np.nextafter(lat[part], to), np.nextafter(lon[part], to)
    lat, lon = np.clip(lat, -90, 90), np.clip(lon, -180, 180)
    written = geohash(Batch.of({"lat": lat, "lon": lon}))
    cells = [textbook["cell_of"](*point) for point in zip(lat.tolist(), lon.tolist(), strict=True)]
    assert written["cell"].values.tolist() == cells
    assert written["geohash"].values.tolist() == [textbook["text_of"](cell) for cell in cells]
    assert textbook["text_of"](textbook["cell_of"](57.64911, 10.40744)) == "u4pruydqqvj8"  # Wikipedia's


def test_every_spec_says_a_function_of_its_folder() -> None:
    import yaml

    for path in FOLDER.glob("*.yaml"):
        module, _, function = yaml.safe_load(path.read_text())["transform"].partition(":")
        assert f"def {function}(" in (FOLDER / f"{module}.py").read_text(), path.name


@pytest.mark.parametrize("name", ["cents", "email_hash", "geohash"])
def test_every_example_has_its_twin(name: str) -> None:
    assert len([*FOLDER.glob(f"{name}_twin.*")]) == 1
    assert f"{name}.yaml" in (FOLDER / "README.md").read_text()
