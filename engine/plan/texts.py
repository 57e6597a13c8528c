"""Text as digits: an alphabet fitted to known values, so that interpolation between two texts gives a likely one.

How a server sorts text depends on a collation that this side neither knows nor could imitate.  It does not have to:
known values come in the server's order, and of three ways to read them (as they are; without case and accents; and
without punctuation too) the one under which they rise most steadily is taken.  Of each value only what follows the
beginning that all have in common is read, and only characters of the kinds that occur there become digits, so that
128 bits reach far: twenty characters of letters, thirty of hexadecimal.
"""

from __future__ import annotations

import itertools
import math
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import AnyStr, Final

_BITS: Final = 128
_LARGEST_ALPHABET: Final = 254  # with "no more characters" and one to spare, a digit fits into a byte
_ENOUGH_SAMPLES: Final = 20  # from so many values on, the characters seen are taken for all there are
_HEX_LETTERS: Final = frozenset("abcdef")
_ENOUGH_HEX: Final = 8  # so many hexadecimal characters in a row of values are no words


def common_beginning(values: Sequence[AnyStr]) -> AnyStr:
    """What all values (at least one) begin with."""
    # What the least and the greatest have in common, all between them have too.
    first, last = min(values), max(values)
    differences = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(differences, min(len(first), len(last)))]


def _as_it_is(text: str) -> str:
    return text


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _letters_and_digits(text: str) -> str:
    return "".join(c for c in _folded(text) if c.isalnum())


_READINGS: Final[tuple[Callable[[str], str], ...]] = (_as_it_is, _folded, _letters_and_digits)


def _natural(character: str) -> tuple[int, str]:
    """Punctuation before digits before letters, as natural-language collations have it."""
    return (2 if character.isalpha() else 1 if character.isalnum() else 0), character


@dataclass(frozen=True)
class Alphabet:
    """How to read a text as digits.  ``characters`` are in sorting order; digit 0 means "no more characters"."""

    reading: Callable[[str], str]
    natural: bool
    prefix: str  # as read
    spelled_prefix: str  # as it is written in known values
    characters: tuple[str, ...]

    @classmethod
    def fitted(cls, known: Sequence[str], others: Sequence[str] = ()) -> Alphabet:
        """The alphabet of all values that suits the order of the ``known`` ones, which is the server's, best."""
        every = [*known, *others]
        candidates = [cls._of(reading, every) for reading in _READINGS]
        return min(candidates, key=lambda alphabet: _falls([alphabet.digits_of(text) for text in known]))

    @classmethod
    def _of(cls, reading: Callable[[str], str], known: Sequence[str]) -> Alphabet:
        natural = reading is not _as_it_is
        read = [reading(text) for text in known]
        prefix = common_beginning(read)
        spelled = common_beginning(known)
        if reading(spelled) != prefix:  # values agree only in what is read of them; any spelling will do
            spelled = prefix
        seen = set(itertools.chain.from_iterable(text[len(prefix) :] for text in read))
        characters = _completed(seen, few=len(read) < _ENOUGH_SAMPLES, length=sum(map(len, read)))
        ordered = sorted(characters, key=_natural if natural else None)
        if len(ordered) > _LARGEST_ALPHABET:
            step = len(ordered) / _LARGEST_ALPHABET
            ordered = [ordered[int(i * step)] for i in range(_LARGEST_ALPHABET)]
        return cls(reading, natural, prefix, spelled, tuple(ordered))

    @property
    def base(self) -> int:
        """Digits are below it."""
        return len(self.characters) + 1

    @cached_property
    def length(self) -> int:
        """How many characters fit into a code."""
        digits = int(_BITS / math.log2(self.base))
        return digits if self.base**digits <= 1 << _BITS else digits - 1

    @cached_property
    def _digit_of(self) -> _Digits:
        return _Digits(self.characters, natural=self.natural)

    def digits_of(self, text: str) -> bytes:
        """The digits of a text, one a byte, at most ``length``; without the common beginning, the nearer end."""
        read = self.reading(text)
        if read.startswith(self.prefix):
            start = len(self.prefix)
            return read[start : start + self.length].translate(self._digit_of).encode("latin-1")
        return b"" if self._sort_key(read) < self._sort_key(self.prefix) else bytes([self.base - 1]) * self.length

    def text_of(self, digits: bytes) -> str:
        """The text of digits, up to the first 0."""
        return self.spelled_prefix + "".join(self.characters[digit - 1] for digit in digits.partition(b"\0")[0])

    def _sort_key(self, text: str) -> list[tuple[int, str]]:
        return [_natural(c) if self.natural else (0, c) for c in text]


def _falls(placed: Sequence[bytes]) -> int:
    """How often a value is placed before the one it follows."""
    return sum(a > b for a, b in itertools.pairwise(placed))


class _Digits(dict[int, str]):
    """For ``str.translate``: a character's digit, that of the nearest character before it for one not in the alphabet
    (the first one's where there is none: 0 would end the text).
    """

    def __init__(self, characters: Sequence[str], *, natural: bool) -> None:
        super().__init__({ord(c): chr(i) for i, c in enumerate(characters, start=1)})
        self._key = _natural if natural else lambda character: (0, character)
        self._sorted = [self._key(c) for c in characters]

    def __missing__(self, code_point: int) -> str:
        key = self._key(chr(code_point))
        digit = chr(max(1, sum(other <= key for other in self._sorted)))
        self[code_point] = digit
        return digit


def _completed(seen: set[str], *, few: bool, length: int) -> set[str]:
    """Characters that occur, and those of their kind that must be expected between them."""
    result = set(seen)
    letters_are_hex = length >= _ENOUGH_HEX and {c.lower() for c in seen if c.isascii() and c.isalpha()} <= _HEX_LETTERS
    for every in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
        of_kind = seen.intersection(every)
        if not of_kind:
            continue
        if every is string.digits or (few and not letters_are_hex):
            result.update(every)
        elif letters_are_hex:
            result.update(every[: len(_HEX_LETTERS)])
        else:
            result.update(every[every.index(min(of_kind)) : every.index(max(of_kind)) + 1])
    return result or {"a"}
