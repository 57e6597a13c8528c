"""The same row by row: the textbook's bisection, one value at a time.

``python geohash_twin.py`` with SOURCE_DSN as for ``geohash.yaml``.
"""

from __future__ import annotations

import asyncio
import os

import asyncpg

ALPHABET = "0123456789bcdefghjkmnpqrstuvwxyz"
CHARACTERS = 12
COLUMNS = ["id", "name", "lat", "lon", "opening", "geohash", "cell"]


def cell_of(lat: float, lon: float) -> int:
    """Sixty bits: is it in the eastern half, in the northern half of that, in the eastern half of that, …"""
    (west, east), (south, north) = (-180.0, 180.0), (-90.0, 90.0)
    cell = 0
    for _ in range(CHARACTERS * 5 // 2):
        middle = (west + east) / 2
        cell = cell << 1 | (lon >= middle)
        west, east = (middle, east) if lon >= middle else (west, middle)
        middle = (south + north) / 2
        cell = cell << 1 | (lat >= middle)
        south, north = (middle, north) if lat >= middle else (south, middle)
    return cell


def text_of(cell: int) -> str:
    """The number in base 32."""
    return "".join(ALPHABET[cell >> 5 * place & 31] for place in reversed(range(CHARACTERS)))


async def main() -> None:
    """Copy all of the table in one go; places that are not on earth are left out."""
    connection = await asyncpg.connect(os.environ["SOURCE_DSN"])
    records = []
    for row in await connection.fetch("SELECT id, name, lat, lon, opening FROM public.places"):
        lat, lon = row["lat"], row["lon"]
        if lat is None or lon is None:
            records.append((*row.values(), None, None))
        elif abs(lat) <= 90 and abs(lon) <= 180:
            cell = cell_of(lat, lon)
            records.append((*row.values(), text_of(cell), cell))
    await connection.copy_records_to_table("places_v2", schema_name="public", records=records, columns=COLUMNS)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
