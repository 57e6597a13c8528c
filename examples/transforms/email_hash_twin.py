"""The same row by row: fetch, loop, ``copy_records_to_table``.

No chunks, no resuming, no quarantine; what is no address is left out.  ``python email_hash_twin.py`` with the variables
of ``email_hash.yaml``.
"""

from __future__ import annotations

import asyncio
import hmac
import os

import asyncpg
from email_hash import ADDRESS, normal, read_key

COLUMNS = ["id", "email_hash", "country", "joined", "tags"]


async def main() -> None:
    """Copy all of the table in one go."""
    key = read_key()
    source = await asyncpg.connect(os.environ["SOURCE_DSN"])
    target = await asyncpg.connect(os.environ["TARGET_DSN"])
    records = []
    for row in await source.fetch("SELECT id, email, country, joined, tags FROM public.people"):
        digest = None
        if row["email"] is not None:
            address = normal(row["email"])
            if not ADDRESS.fullmatch(address):
                continue
            digest = hmac.digest(key, address.encode(), "sha256")
        records.append((row["id"], digest, row["country"], row["joined"], row["tags"]))
    await target.copy_records_to_table("people", schema_name="public", records=records, columns=COLUMNS)
    await source.close()
    await target.close()


if __name__ == "__main__":
    asyncio.run(main())
