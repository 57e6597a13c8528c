"""Key columns as numbers: one codec for each kind of type.

A codec maps the server's text of a value to a *code*, an unsigned 128-bit integer (kernels take arrays of shape
``(n, 2)``, ``uint64``), so that codes rise with the server's order as well as this side can tell, and so that equal
steps between two codes mean equal steps between values: that is what makes interpolation sensible.  Codes are
estimates.  Nothing here decides which of two keys is greater; the source server does.

A codec is fitted to values that are known to exist (``known``, in the server's order): they tell the range of an
unbounded type, where infinities have to sit, which characters a text is made of, and which of several ways to sort
text the server's collation resembles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import MAX_EMAX, MIN_EMIN, ROUND_FLOOR, Context, Decimal
from typing import Final, Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from engine._native import keyspace as kernel
from engine.model import Column, KeyColumn
from engine.plan import dates
from engine.plan.texts import Alphabet, common_beginning

Codes = NDArray[np.uint64]
"""Codes as the kernels take them: shape ``(n, 2)``, the high half first."""

CODE_BITS: Final = 128
_SIGN_BIT: Final = 1 << 63
_SPARE_BITS: Final = 2  # room above the widest finite range for infinity and NaN

# pg_type.oid of the built-in types, which never change.
_KINDS: Final = {
    16: "bool",
    17: "bytea",
    18: "text",  # "char"
    19: "text",  # name
    20: "int",
    21: "int",
    23: "int",
    25: "text",
    26: "int",  # oid
    700: "float",
    701: "float",
    1042: "text",  # bpchar
    1043: "text",
    1082: "date",
    1114: "timestamp",
    1184: "timestamptz",
    1700: "numeric",
    2950: "uuid",
}


def kind_of(column: Column) -> str:
    """How a column's values are placed: int, uuid, text, bytea, numeric, date, timestamp, timestamptz, enum, bool,
    float; ``opaque`` for every other type, whose order only the server knows.
    """
    return "enum" if column.enum_labels else _KINDS.get(column.category_oid, "opaque")


def is_endless(column: KeyColumn, text: str) -> bool:
    """True for infinities and NaN: values that stand apart from all others and tell nothing of their range."""
    return column.kind not in ("text", "enum", "opaque") and text.lstrip("-").lower() in ("infinity", "nan")


class Codec(Protocol):
    """Values of one column as codes, and back."""

    def encode(self, texts: Sequence[str]) -> Codes:
        """The code of each value; a value outside the known range gets the nearer end of it."""
        ...

    def decode(self, codes: Codes) -> list[str]:
        """A value at or just before each code, as text that the column's type accepts."""
        ...


def codec_for(column: KeyColumn, known: Sequence[str], others: Sequence[str] = ()) -> Codec:
    """The codec of a key column, fitted to ``known`` values in the server's order, and ``others`` in any."""
    every = [*known, *others]
    match column.kind:
        case "int":
            return IntCodec()
        case "bool":
            return LabelCodec(("false", "true"), synonyms={"f": "false", "t": "true"})
        case "enum":
            return LabelCodec(column.enum_labels)
        case "uuid":
            return UuidCodec()
        case "bytea":
            return ByteaCodec(every)
        case "text":
            return TextCodec(known, others, padded=column.type_name in ("bpchar", "character"))
        case "numeric":
            return RangeCodec(DecimalUnits(every), every, usual=(0, 1), infinity="Infinity")
        case "float":
            return RangeCodec(FloatUnits(every), every, usual=(0, 1), infinity="Infinity")
        case "date":
            return RangeCodec(Days(), every, usual=dates.USUAL_DAYS, infinity="infinity")
        case "timestamp" | "timestamptz":
            scale = Microseconds("+00" if column.kind == "timestamptz" else "")
            return RangeCodec(scale, every, usual=dates.USUAL_MICROSECONDS, infinity="infinity")
        case _:
            return LabelCodec(tuple(dict.fromkeys(every)))


def to_codes(numbers: Sequence[int]) -> Codes:
    """Python integers (0 ≤ n < 2**128) as codes."""
    raw = b"".join(number.to_bytes(CODE_BITS // 8, "big") for number in numbers)
    return np.frombuffer(raw, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def to_numbers(codes: Codes) -> list[int]:
    """Codes as Python integers."""
    return [(high << 64) | low for high, low in codes.tolist()]


class IntCodec:
    """Integers of up to 64 bits, exactly: the code is the distance from the lowest of them."""

    def encode(self, texts: Sequence[str]) -> Codes:
        """Offset binary, in the low half."""
        codes = np.zeros((len(texts), 2), dtype=np.uint64)
        codes[:, 1] = np.array([int(text) for text in texts], dtype=np.int64).view(np.uint64) ^ np.uint64(_SIGN_BIT)
        return codes

    def decode(self, codes: Codes) -> list[str]:
        """The integers, exactly."""
        values = (np.ascontiguousarray(codes[:, 1]) ^ np.uint64(_SIGN_BIT)).view(np.int64)
        return [str(value) for value in values.tolist()]


class UuidCodec:
    """UUIDs are 128-bit numbers already, and compare as such."""

    def encode(self, texts: Sequence[str]) -> Codes:
        """The number itself."""
        return to_codes([int(text.replace("-", ""), 16) for text in texts])

    def decode(self, codes: Codes) -> list[str]:
        """The usual form with hyphens."""
        return [str(UUID(int=number)) for number in to_numbers(codes)]


class LabelCodec:
    """Values that are known one by one: an enum's labels, booleans, or samples of an opaque type.

    A value not among them (an enum label added later, an opaque value that was no sample) gets the middle of the list:
    as good a guess as any.
    """

    def __init__(self, labels: Sequence[str], synonyms: dict[str, str] | None = None) -> None:
        self._labels = tuple(labels) or ("",)
        self._codes = {label: i for i, label in enumerate(self._labels)}
        for other, label in (synonyms or {}).items():
            self._codes[other] = self._codes[label]

    def encode(self, texts: Sequence[str]) -> Codes:
        """Places in the list."""
        middle = len(self._labels) // 2
        return to_codes([self._codes.get(text, middle) for text in texts])

    def decode(self, codes: Codes) -> list[str]:
        """The labels at these places."""
        last = len(self._labels) - 1
        return [self._labels[min(number, last)] for number in to_numbers(codes)]


class Scale(Protocol):
    """An unbounded type's finite values as whole units."""

    def parse(self, text: str) -> int | None:
        """A finite value in units, rounded down, or None for an infinity or NaN."""
        ...

    def format(self, number: int) -> str:
        """The text of that many units."""
        ...


class RangeCodec:
    """Numbers without practical bounds, measured from the least finite known value in units fine enough for all.

    Below all finite codes sits minus infinity, above them infinity and then NaN, each one unit away: a value that is
    never reached by interpolation must not stretch the scale.  ``usual`` is the range, in units, when no finite value
    is known; ``infinity`` is how the type spells it.
    """

    def __init__(self, scale: Scale, known: Sequence[str], *, usual: tuple[int, int], infinity: str) -> None:
        finite = [number for text in known if (number := scale.parse(text)) is not None]
        self._scale = scale
        self._infinity = infinity
        self._origin = min(finite, default=usual[0])
        self._width = max(finite, default=usual[1]) - self._origin

    def encode(self, texts: Sequence[str]) -> Codes:
        """Units above the origin, plus one."""
        return to_codes([self._encode(text) for text in texts])

    def decode(self, codes: Codes) -> list[str]:
        """The finite value at each code, or the special one beyond the finite ones."""
        return [self._decode(number) for number in to_numbers(codes)]

    def _encode(self, text: str) -> int:
        number = self._scale.parse(text)
        if number is not None:
            return 1 + min(max(number - self._origin, 0), self._width)
        if text.startswith("-"):
            return 0
        return self._width + (3 if text == "NaN" else 2)

    def _decode(self, code: int) -> str:
        if code == 0:
            return "-" + self._infinity
        if code > self._width + 1:
            return "NaN" if code > self._width + 2 else self._infinity
        return self._scale.format(self._origin + code - 1)


class Days:
    """Dates, in days since 2000-01-01."""

    def parse(self, text: str) -> int | None:
        """ISO, with BC where needed."""
        return None if text.endswith("infinity") else dates.parse_date(text)

    def format(self, number: int) -> str:
        """The inverse of ``parse``."""
        return dates.format_date(number)


class Microseconds:
    """Timestamps, in microseconds since 2000-01-01; ``zone`` is what the server writes after a time, +00 or nothing."""

    def __init__(self, zone: str) -> None:
        self._zone = zone

    def parse(self, text: str) -> int | None:
        """ISO, with BC where needed."""
        return None if text.endswith("infinity") else dates.parse_timestamp(text)

    def format(self, number: int) -> str:
        """The inverse of ``parse``."""
        return dates.format_timestamp(number, self._zone)


class DecimalUnits:
    """Decimal numbers of any size, in units of a power of ten that leaves room between the known ones."""

    FINER_DIGITS: Final = 6  # decimal places below the finest known one, while the range leaves room
    # Wide enough for every numeric: 131072 digits before the point, 16383 after it.
    _EXACT: Final = Context(prec=200_000, rounding=ROUND_FLOOR, Emax=MAX_EMAX, Emin=MIN_EMIN)

    def __init__(self, known: Sequence[str]) -> None:
        finite = [value for text in known if (value := Decimal(text)).is_finite()]
        finest = max((-_exponent(value) for value in finite), default=0)
        width = self._EXACT.subtract(max(finite), min(finite)) if finite else Decimal(0)
        span = width.adjusted() + 1 if width else 0  # digits before the point
        room = math.floor((CODE_BITS - _SPARE_BITS) * math.log10(2)) - 1
        self._places = min(finest + self.FINER_DIGITS, room - span)

    def parse(self, text: str) -> int | None:
        """Units of ``10 ** -places``, rounded down."""
        value = Decimal(text)
        if not value.is_finite():
            return None
        return int(self._EXACT.to_integral_value(self._EXACT.scaleb(value, self._places)))

    def format(self, number: int) -> str:
        """Plain decimal digits, never an exponent."""
        text = format(self._EXACT.scaleb(Decimal(number), -self._places), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text


class FloatUnits:
    """Binary floating point numbers, in units of a power of two; -0 is 0, as the server has it."""

    _FINEST_BITS: Final = 1074  # of a double: all doubles are whole multiples of 2**-1074

    def __init__(self, known: Sequence[str]) -> None:
        finite = [value for text in known if math.isfinite(value := float(text))]
        # Halves, since the difference of two doubles may be more than the largest of them.
        half_width = max(finite) / 2 - min(finite) / 2 if finite else 0.0
        exponent = math.frexp(half_width)[1] + 1 if half_width else -self._FINEST_BITS
        self._bits = min(CODE_BITS - _SPARE_BITS - 1 - exponent, self._FINEST_BITS)

    def parse(self, text: str) -> int | None:
        """Units of ``2 ** -bits``, rounded down."""
        value = float(text)
        if not math.isfinite(value):
            return None
        numerator, denominator = value.as_integer_ratio()
        if self._bits >= 0:
            return (numerator << self._bits) // denominator
        return numerator // (denominator << -self._bits)

    def format(self, number: int) -> str:
        """The shortest text of the nearest double."""
        return repr(number / (1 << self._bits) if self._bits >= 0 else float(number << -self._bits))


class ByteaCodec:
    """Byte strings: sixteen bytes after what all known ones have in common."""

    _DIGITS: Final = 16

    def __init__(self, known: Sequence[str]) -> None:
        values = [_bytes_of(text) for text in known]
        self._prefix = common_beginning(values)

    def encode(self, texts: Sequence[str]) -> Codes:
        """Sixteen bytes as a number; the ends of the range for values without the common beginning."""
        items = []
        for text in texts:
            value = _bytes_of(text)
            if value.startswith(self._prefix):
                items.append(value[len(self._prefix) : len(self._prefix) + self._DIGITS])
            else:
                items.append(b"" if value < self._prefix else b"\xff" * self._DIGITS)
        return _encode_items(items, 256, self._DIGITS)

    def decode(self, codes: Codes) -> list[str]:
        """Hexadecimal, without trailing zero bytes."""
        rows = kernel.decode_digits(codes, 256, self._DIGITS)
        return ["\\x" + (self._prefix + row.tobytes().rstrip(b"\0")).hex() for row in rows]


class TextCodec:
    """Text as a number whose digits are its characters, after what all known values have in common."""

    def __init__(self, known: Sequence[str], others: Sequence[str] = (), *, padded: bool = False) -> None:
        self._padded = padded
        self._alphabet = Alphabet.fitted([self._trimmed(t) for t in known], [self._trimmed(t) for t in others])

    def _trimmed(self, text: str) -> str:
        # char(n) ignores trailing blanks; some of its texts come with them and some without.
        return text.rstrip(" ") if self._padded else text

    def encode(self, texts: Sequence[str]) -> Codes:
        """One digit for each character, as far as 128 bits go."""
        alphabet = self._alphabet
        items = [alphabet.digits_of(self._trimmed(text)) for text in texts]
        return _encode_items(items, alphabet.base, alphabet.length)

    def decode(self, codes: Codes) -> list[str]:
        """The common beginning and the characters of the digits, up to the first missing one."""
        alphabet = self._alphabet
        return [alphabet.text_of(row.tobytes()) for row in kernel.decode_digits(codes, alphabet.base, alphabet.length)]


def _encode_items(items: Sequence[bytes], base: int, digits: int) -> Codes:
    offsets = np.zeros(len(items) + 1, dtype=np.int64)
    np.cumsum([len(item) for item in items], out=offsets[1:])
    return kernel.encode_digits(np.frombuffer(b"".join(items), dtype=np.uint8), offsets, base, digits)


def _exponent(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)  # finite
    return exponent


def _bytes_of(text: str) -> bytes:
    return bytes.fromhex(text[2:])
