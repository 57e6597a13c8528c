"""Binary COPY streams for tests: a plain reading of the format, and right, cut and damaged streams to read."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from hypothesis import strategies as st

SIGNATURE = b"PGCOPY\n\xff\r\n\0"
HEADER = SIGNATURE + bytes(8)
TRAILER = struct.pack(">h", -1)
MAX_FIELD_BYTES = 2**30 - 1
MASK = 2**64 - 1

Row = tuple[bytes | None, ...]


@dataclass
class Reading:
    """What a reader of the whole stream sees; ``error_at`` is where it must stop, ``finish_at`` where the end is
    wrong (None: right)."""

    rows: int = 0
    bytes: int = 0
    largest: int = 0
    last_key: tuple[bytes | None, ...] | None = None
    digest: int = 0
    error_at: int | None = None
    finish_at: int | None = None
    values: list[Row] = field(default_factory=list, compare=False)  # of the complete rows


class End(Exception):
    pass


def fold(a: int, b: int) -> int:
    product = a * b
    return (product & MASK) ^ (product >> 64)


def row_hash(row: bytes) -> int:
    state = 0x9E3779B97F4A7C15
    padded = row + bytes(-len(row) % 16)
    for low, high in struct.iter_unpack("<QQ", padded):
        state = fold(low ^ 0xA0761D6478BD642F, high ^ state)
    return fold(state ^ 0xE7037ED1A0B428DB, len(row) ^ 0x9E3779B97F4A7C15)


def read_stream(stream: bytes, fields: int, key_fields: tuple[int, ...] = ()) -> Reading:
    """The oracle: slow, and as the format's description reads."""
    reading = Reading()
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        if at + count > len(stream):
            raise End
        at += count
        return stream[at - count : at]

    def number(form: str) -> int:
        return int(struct.unpack(form, take(struct.calcsize(form)))[0])

    def broken(offset: int) -> Reading:
        reading.bytes = reading.error_at = reading.finish_at = offset
        return reading

    try:
        for offset, (seen, expected) in enumerate(zip(stream, SIGNATURE, strict=False)):
            if seen != expected:
                return broken(offset)
        take(len(SIGNATURE))
        if number(">I") >> 16:
            return broken(at - 4)
        extension = number(">i")
        if extension < 0:
            return broken(at - 4)
        take(extension)
        while True:
            start = at
            count = number(">h")
            if count == -1:
                if at < len(stream):
                    return broken(at)
                reading.bytes = at
                return reading
            if count != fields:
                return broken(start)
            values: list[bytes | None] = []
            for _ in range(fields):
                length = number(">i")
                if length < -1 or length > MAX_FIELD_BYTES:
                    return broken(at - 4)
                values.append(None if length == -1 else take(length))
            row = stream[start:at]
            reading.values.append(tuple(values))
            reading.rows += 1
            reading.largest = max(reading.largest, len(row))
            reading.digest = (reading.digest + row_hash(row)) & MASK
            if key_fields:
                reading.last_key = tuple(values[field] for field in key_fields)
    except End:
        reading.bytes = reading.finish_at = len(stream)
        return reading


def encode(rows: list[Row], *, flags: int = 0, extension: bytes = b"", trailer: bytes = TRAILER) -> bytes:
    parts = [SIGNATURE, struct.pack(">Ii", flags, len(extension)), extension]
    for row in rows:
        parts.append(struct.pack(">h", len(row)))
        parts += [struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value for value in row]
    return b"".join(parts) + trailer


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, tuple[int, ...], bytes]:
    """Number of fields, key fields and a right stream."""
    fields = draw(st.integers(0, 5))
    value = st.none() | st.binary(max_size=40) | st.binary(min_size=1, max_size=3).map(lambda b: b * 50)
    rows = draw(st.lists(st.tuples(*[value] * fields), max_size=12))
    key_fields = tuple(draw(st.lists(st.integers(0, fields - 1), unique=True))) if fields else ()
    stream = encode(rows, flags=draw(st.integers(0, 0xFFFF)), extension=draw(st.binary(max_size=6)))
    return fields, key_fields, stream


def cut(data: st.DataObject, stream: bytes) -> list[bytes]:
    """The stream in pieces of any sizes, empty ones included."""
    size = data.draw(st.sampled_from([1, 2, 3, 7, 64, 1 << 16]), label="piece size")
    if data.draw(st.booleans(), label="even pieces"):
        return [stream[i : i + size] for i in range(0, len(stream), size)]
    edges = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12), label="edges"))
    return [stream[a:b] for a, b in zip([0, *edges], [*edges, len(stream)], strict=True)]


@st.composite
def damaged_tables(draw: st.DrawFn) -> tuple[int, tuple[int, ...], bytes]:
    """As ``tables``, with a stream that was right before bits of it turned, its end went and other bytes came."""
    fields, key_fields, stream = draw(tables())
    damaged = bytearray(stream)
    for position in draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=4)):
        damaged[position] ^= 1 << draw(st.integers(0, 7))
    del damaged[draw(st.integers(0, len(damaged))) :]
    return fields, key_fields, bytes(damaged + draw(st.binary(max_size=3)))
