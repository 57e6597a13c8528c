"""The COPY scanners on what real servers send."""

from __future__ import annotations

import struct

from engine._native.copybin import FrameScanner, TextScanner
from tests.support.databases import FreshDatabase, on_each_major

TABLE = """
    CREATE TABLE t (id bigint PRIMARY KEY, word text, price numeric(12, 2), tags int[], doc jsonb, at timestamptz);
    INSERT INTO t
    SELECT i * 7,
           CASE WHEN i % 5 > 0 THEN repeat('wørd' || E'\\n\\t', (i % 4)::int) END, i / 3.0, ARRAY[i, NULL]::int[],
           jsonb_build_object('i', i), CASE WHEN i % 9 = 0 THEN 'infinity' ELSE now() END
    FROM generate_series(1, 5000) i;
    INSERT INTO t (id, word) VALUES (40000, repeat('x', 3000000));
"""


@on_each_major
async def test_counts_what_a_server_copies_out(database: FreshDatabase) -> None:
    connection = await database.connect()
    await connection.execute(TABLE)
    for order in ("id", "id DESC"):
        query = f"SELECT * FROM t ORDER BY {order}"
        binary, text = FrameScanner(6, (0,), True), TextScanner()
        pieces: list[int] = []

        async def scan_binary(piece: bytes, scanner: FrameScanner = binary, sizes: list[int] = pieces) -> None:
            sizes.append(len(piece))
            scanner.feed(piece)

        async def scan_text(piece: bytes, scanner: TextScanner = text) -> None:
            scanner.feed(piece)

        await connection.copy_from_query(query, output=scan_binary, format="binary")
        await connection.copy_from_query(query, output=scan_text, format="text")
        binary.finish()
        text.finish()
        assert binary.rows == text.rows == 5001
        assert binary.bytes == sum(pieces)
        assert binary.largest_row_bytes > 3_000_000
        last = await connection.fetchval(f"SELECT id FROM ({query}) q OFFSET 5000")
        assert binary.last_key == (struct.pack(">q", last),)


async def test_the_digest_is_that_of_the_set_of_rows(database: FreshDatabase) -> None:
    connection = await database.connect()
    await connection.execute(TABLE)

    async def digest(query: str) -> int | None:
        scanner = FrameScanner(6, (), True)

        async def scan(piece: bytes) -> None:
            scanner.feed(piece)

        await connection.copy_from_query(query, output=scan, format="binary")
        scanner.finish()
        return scanner.digest

    before = await digest("SELECT * FROM t")
    assert await digest("SELECT * FROM t ORDER BY word DESC, id DESC") == before
    await connection.execute("UPDATE t SET price = price + 0.01 WHERE id = 7000")
    assert await digest("SELECT * FROM t") != before
    await connection.execute("UPDATE t SET price = price - 0.01 WHERE id = 7000")
    assert await digest("SELECT * FROM t") == before


async def test_a_table_without_columns_has_rows_without_fields(database: FreshDatabase) -> None:
    connection = await database.connect()
    await connection.execute("CREATE TABLE bare (); INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES")
    scanner = FrameScanner(0)

    async def scan(piece: bytes) -> None:
        scanner.feed(piece)

    await connection.copy_from_table("bare", output=scan, format="binary")
    scanner.finish()
    assert (scanner.rows, scanner.last_key) == (2, None)
