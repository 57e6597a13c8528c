from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine._native.rows import Encoded

_Bad: TypeAlias = list[tuple[int, str]]
_Words: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.uint64]
_Mask: TypeAlias = NDArray[np.uint8]

def encode_words(values: _Words, null: _Mask) -> Encoded: ...
def encode_blocks(values: NDArray[np.uint8], null: _Mask) -> Encoded: ...
def encode_scaled(
    values: NDArray[np.int64], null: _Mask, scale: int, precision: int | None = None, declared: int | None = None
) -> tuple[Encoded, _Bad]: ...
def encode_decimals(
    values: list[Any], null: _Mask, precision: int | None = None, declared: int | None = None
) -> tuple[Encoded, _Bad]: ...
def encode_texts(values: list[Any], null: _Mask, prefix: bytes = b"") -> tuple[Encoded, _Bad]: ...
def encode_bytes(values: list[Any], null: _Mask) -> tuple[Encoded, _Bad]: ...
def encode_lists(
    elements: Encoded, offsets: NDArray[np.int64], null: _Mask, lower: NDArray[np.int32], element_oid: int
) -> tuple[Encoded, _Bad]: ...
