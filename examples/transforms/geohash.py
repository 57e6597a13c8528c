"""Geohashes of latitude and longitude: much arithmetic for every row, all of it in numpy.

A geohash of twelve characters is a number of 60 bits, which alternate between longitude and latitude, written in base
32 (https://en.wikipedia.org/wiki/Geohash).  Both forms are written: the text, and the number, which sorts the same way.
"""

from __future__ import annotations

import numpy as np

from engine.transform import Batch, Column, transform

ALPHABET = np.array([ord(character) for character in "0123456789bcdefghjkmnpqrstuvwxyz"], dtype=np.uint32)
CHARACTERS = 12
BITS_PER_CHARACTER = 5
BITS = CHARACTERS * BITS_PER_CHARACTER // 2  # of each of the two
CELLS = 1 << BITS

SPREAD = ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F), (2, 0x3333333333333333),
          (1, 0x5555555555555555))  # fmt: skip
"""Shifts and masks that put a zero before every bit (Hacker's Delight, 7-2)."""


def cells(degrees: np.ndarray, half: float) -> np.ndarray:
    """Which of the 2^30 equal parts of [-half, half] each value is in, as uint64 (n,).

    The product is rounded, so it may name a neighbour of the right part; the parts' edges are exact, and settle it.
    """
    width = 2 * half / CELLS
    found = np.floor((degrees + half) / width)
    found -= degrees < found * width - half
    found += degrees >= (found + 1) * width - half
    return np.clip(found, 0, CELLS - 1).astype(np.uint64)


def spread(numbers: np.ndarray) -> np.ndarray:
    """The bits of each number, with a zero before each."""
    for shift, mask in SPREAD:
        numbers = (numbers | (numbers << np.uint64(shift))) & np.uint64(mask)
    return numbers


@transform(reads=["lat", "lon"], writes=["geohash", "cell"])
def geohash(batch: Batch) -> dict[str, Column]:
    """The geohash as text and as a number; NULL where either coordinate is NULL."""
    lat, lon = batch["lat"], batch["lon"]
    null = lat.null | lon.null
    on_earth = (np.abs(lat.values) <= 90) & (np.abs(lon.values) <= 180)  # False for NaN
    batch.reject(~on_earth & ~null, "not on earth")
    y = cells(np.where(on_earth, lat.values, 0.0), 90.0)
    x = cells(np.where(on_earth, lon.values, 0.0), 180.0)
    cell = (spread(x) << np.uint64(1)) | spread(y)
    shifts = np.arange((CHARACTERS - 1) * BITS_PER_CHARACTER, -1, -BITS_PER_CHARACTER, dtype=np.uint64)
    characters = ALPHABET[(cell[:, None] >> shifts) & np.uint64(31)]
    text = np.ascontiguousarray(characters).view(f"U{CHARACTERS}")[:, 0]
    return {"geohash": Column(text, null), "cell": Column(cell.astype(np.int64), null)}
