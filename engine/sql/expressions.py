"""Reads a user's SQL expression far enough to know that it is exactly one expression, and which names it uses.

This is a lexer after PostgreSQL's own rules (``scan.l``; ``standard_conforming_strings = on``), not a parser: the
server parses.  It sees to it that a text which stands inside a statement of ours cannot reach out of its place by
accident: a quote or comment left open, a bracket too many, a ``;``, a comma that begins another column, a clause such
as ``WHERE``.  It is no defence against an attacker, because an expression may call any function its role may call.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Final

# Characters beyond ASCII are letters to PostgreSQL, spaces among them.
_TOKEN: Final = re.compile(
    r"""
      (?P<space>    [\ \t\n\r\f\v]+ )
    | (?P<line>     --[^\n\r]* )
    | (?P<block>    /\* )
    | (?P<escaped>  [eE]' )
    | (?P<string>   (?:[bBxXnN]|[uU]&)?' )
    | (?P<uname>    [uU]&" )
    | (?P<name>     " )
    | (?P<dollar>   \$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$ )
    | (?P<param>    \$[0-9]+ )
    | (?P<word>     [A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]* )
    | (?P<number>   (?:[0-9]|\.[0-9])[A-Za-z0-9_.]* )
    | (?P<cast>     :: )
    | (?P<open>     [(\[] )
    | (?P<close>    [)\]] )
    | (?P<mark>     [,;.:] )
    | (?P<operator> [-+*/<>=~!@\#%^&|`?] )
    """,
    re.VERBOSE,
)
_STRING_END: Final = re.compile(r"(?:[^']|'')*'")
_ESCAPED_END: Final = re.compile(r"(?:[^'\\]|''|\\.)*'", re.DOTALL)
_NAME_END: Final = re.compile(r'((?:[^"]|"")*)"')
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")
_UNICODE_ESCAPE: Final = re.compile(r"\\(?:\\|\+([0-9A-Fa-f]{6})|([0-9A-Fa-f]{4}))")

_CLOSES: Final = {")": "(", "]": "["}

# PostgreSQL's ASCII case folding of names that are not quoted (in multi-byte encodings nothing else is folded).
_FOLD: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

# Only the reserved ones: a column may be called "update".
_STATEMENT_WORDS: Final = frozenset(["select", "table", "with"])
# Reserved words that end an expression and begin a clause of the statement around it.
# fmt: off
_CLAUSE_WORDS: Final = frozenset([
    "as", "except", "fetch", "for", "from", "group", "having", "intersect", "into", "limit", "offset", "on", "order",
    "returning", "select", "union", "where", "window", "with",
])
# fmt: on
# Reserved words may follow these without beginning a clause: IS DISTINCT FROM, WITHIN GROUP (…).
_HARMLESS_AFTER: Final = {"from": "distinct", "group": "within"}


class ExpressionError(ValueError):
    """The text is not one SQL expression.  ``offset`` counts characters from 0, ``hint`` may be empty."""

    def __init__(self, message: str, *, offset: int, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Expression:
    """One SQL expression as the user wrote it, and the names in it.

    A superset in both cases: keywords count as identifiers, type modifiers such as ``numeric(12,2)`` as functions.
    """

    text: str  # as written
    sql: str  # without comments: safe to put between brackets on one line
    identifiers: frozenset[str]  # bare names folded to lower case, quoted names exactly
    functions: frozenset[str]  # last part of each name that an opening bracket follows


def read_expression(text: str) -> Expression:
    """Read ``text`` as exactly one expression; raises ``ExpressionError`` with the place where it is not."""
    return _Reader(text).read()


class _Reader:
    """One pass over the text.  ``_previous`` is the last token that was neither space nor comment."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._kept: list[str] = []
        self._open: list[tuple[str, int]] = []
        self._identifiers: set[str] = set()
        self._functions: set[str] = set()
        self._pending_name: str | None = None  # a name whose follower decides whether it is a function
        self._previous = ""

    def read(self) -> Expression:
        text = self._text
        nul = text.find("\0")
        if nul >= 0:
            raise ExpressionError("a NUL character cannot stand in SQL", offset=nul)
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise ExpressionError(
                    f"unexpected character {text[position]!r}",
                    offset=position,
                    hint="psql commands that begin with a backslash are not SQL" if text[position] == "\\" else "",
                )
            position = self._token(match.lastgroup, match)
        self._settle_name(followed_by="")
        if self._open:
            bracket, offset = self._open[-1]
            raise ExpressionError(f"{bracket!r} is never closed", offset=offset)
        if not self._previous:
            raise ExpressionError("the expression is empty", offset=0)
        if self._previous in (",", "."):
            raise ExpressionError(f"the expression ends with {self._previous!r}", offset=len(text))
        return Expression(text, "".join(self._kept).strip(), frozenset(self._identifiers), frozenset(self._functions))

    def _token(self, kind: str, match: re.Match[str]) -> int:
        """Take one token; gives the position behind it."""
        start, end = match.span()
        if kind in ("space", "line", "block"):
            if kind == "block":
                end = self._comment_end(start)
            self._kept.append(self._text[start:end] if kind == "space" else " ")
            return end
        token = match.group()
        if kind in ("string", "escaped", "name", "uname", "dollar"):
            end = self._quoted_end(kind, match)
        self._settle_name(followed_by=token)
        match kind:
            case "word":
                self._word(token, start)
            case "name":
                self._pending_name = self._text[match.end() : end - 1].replace('""', '"')
            case "uname":
                self._pending_name = _decode_unicode_name(self._text[match.end() : end - 1], start)
            case "open":
                self._open.append((token, start))
            case "close":
                self._close(token, start)
            case "mark":
                self._mark(token, start)
            case "param":
                raise ExpressionError(
                    f"a parameter such as {token} has no value here", offset=start, hint="write the value itself"
                )
        self._kept.append(self._text[start:end])
        self._previous = token.translate(_FOLD) if kind == "word" else token
        return end

    def _settle_name(self, *, followed_by: str) -> None:
        if self._pending_name is None:
            return
        (self._functions if followed_by == "(" else self._identifiers).add(self._pending_name)
        self._pending_name = None

    def _word(self, token: str, start: int) -> None:
        word = token.translate(_FOLD)
        if word == "uescape":
            raise ExpressionError("UESCAPE is not supported in an expression", offset=start)
        after_dot = self._previous == "."  # any word may be a column's name there
        if not after_dot and not self._open:
            if not self._previous and word in _STATEMENT_WORDS:
                raise ExpressionError(
                    f"{token.upper()} begins a statement, not an expression",
                    offset=start,
                    hint="put a subquery in brackets",
                )
            if word in _CLAUSE_WORDS and _HARMLESS_AFTER.get(word) != self._previous:
                raise ExpressionError(
                    f"{token.upper()} begins another clause",
                    offset=start,
                    hint='a column of that name is written in double quotes: "' + word + '"',
                )
        self._pending_name = word

    def _close(self, token: str, start: int) -> None:
        if not self._open or self._open[-1][0] != _CLOSES[token]:
            raise ExpressionError(f"{token!r} closes nothing", offset=start)
        self._open.pop()

    def _mark(self, mark: str, start: int) -> None:
        if mark == ";":
            raise ExpressionError("';' ends the expression", offset=start, hint="exactly one expression is allowed")
        if mark == "," and not self._open:
            raise ExpressionError("',' begins a second expression", offset=start, hint="exactly one is allowed")

    def _comment_end(self, start: int) -> int:
        """The position behind a block comment; they nest."""
        depth = 0
        for edge in _COMMENT_EDGE.finditer(self._text, start):
            depth += 1 if edge.group() == "/*" else -1
            if depth == 0:
                return edge.end()
        raise ExpressionError("a comment is never closed", offset=start)

    def _quoted_end(self, kind: str, match: re.Match[str]) -> int:
        start, end = match.span()
        if kind == "dollar":
            close = self._text.find(match.group(), end)
            if close < 0:
                raise ExpressionError(f"a {match.group()} string is never closed", offset=start)
            return close + len(match.group())
        pattern = {"string": _STRING_END, "escaped": _ESCAPED_END}.get(kind, _NAME_END)
        closing = pattern.match(self._text, end)
        if closing is None:
            what = "a quoted name" if pattern is _NAME_END else "a string"
            raise ExpressionError(f"{what} is never closed", offset=start)
        if pattern is _NAME_END and not closing.group(1):
            raise ExpressionError("a quoted name is empty", offset=start)
        return closing.end()


def _decode_unicode_name(body: str, start: int) -> str:
    r"""``U&"d\0061t\+000061"`` means ``data``."""

    def decoded(escape: re.Match[str]) -> str:
        digits = escape.group(1) or escape.group(2)
        return chr(int(digits, 16)) if digits else "\\"

    try:
        return _UNICODE_ESCAPE.sub(decoded, body.replace('""', '"'))
    except (ValueError, OverflowError):
        raise ExpressionError("invalid Unicode escape in a quoted name", offset=start) from None
