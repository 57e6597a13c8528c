"""Every code that preflight may report: how bad it is, and whether a person may accept it.

``docs/findings.md`` explains each code to people; a test holds the two together.  Codes are stable: scripts and
``accept:`` lists name them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from engine.model import Finding, Severity


class Code(StrEnum):
    """The stable names of findings."""

    # The key
    NO_KEY = "NO_KEY"
    KEY_NULLABLE = "KEY_NULLABLE"
    KEY_NOT_UNIQUE = "KEY_NOT_UNIQUE"
    KEY_INDEX_UNUSABLE = "KEY_INDEX_UNUSABLE"
    KEY_NOT_MAPPED = "KEY_NOT_MAPPED"
    KEY_CHANGES_VALUE = "KEY_CHANGES_VALUE"
    KEY_TYPE_OPAQUE = "KEY_TYPE_OPAQUE"
    KEY_UPDATABLE = "KEY_UPDATABLE"
    COLLATION_OUTDATED = "COLLATION_OUTDATED"
    # The tables
    TABLE_KIND = "TABLE_KIND"
    UNLOGGED_TARGET = "UNLOGGED_TARGET"
    TARGET_MISSING = "TARGET_MISSING"
    TARGET_IS_SOURCE = "TARGET_IS_SOURCE"
    TARGET_HAS_ROWS = "TARGET_HAS_ROWS"
    NO_ARBITER = "NO_ARBITER"
    SEVERAL_UNIQUE = "SEVERAL_UNIQUE"
    TRIGGERS_ON_SOURCE = "TRIGGERS_ON_SOURCE"
    TRIGGERS_ON_TARGET = "TRIGGERS_ON_TARGET"
    FOREIGN_KEYS = "FOREIGN_KEYS"
    FOREIGN_KEYS_UNINDEXED = "FOREIGN_KEYS_UNINDEXED"
    EXCLUSION_CONSTRAINTS = "EXCLUSION_CONSTRAINTS"
    CONSTRAINTS_NOT_VALID = "CONSTRAINTS_NOT_VALID"
    RULES = "RULES"
    ROW_SECURITY = "ROW_SECURITY"
    INHERITANCE = "INHERITANCE"
    PARTITION_ROW_MOVEMENT = "PARTITION_ROW_MOVEMENT"
    PARTITIONS_UNHEARD = "PARTITIONS_UNHEARD"
    NO_DEFAULT_PARTITION = "NO_DEFAULT_PARTITION"
    PUBLISHED = "PUBLISHED"
    REPLICA_IDENTITY = "REPLICA_IDENTITY"
    SUBSCRIBED = "SUBSCRIBED"
    # The columns
    COLUMN_MISSING = "COLUMN_MISSING"
    COLUMN_UNFILLED = "COLUMN_UNFILLED"
    COLUMNS_DEFAULTED = "COLUMNS_DEFAULTED"
    COLUMNS_LEFT_BEHIND = "COLUMNS_LEFT_BEHIND"
    SET_KEY_COLUMN = "SET_KEY_COLUMN"
    SET_GENERATED = "SET_GENERATED"
    TYPE_NARROWS = "TYPE_NARROWS"
    IDENTITY_ALWAYS = "IDENTITY_ALWAYS"
    SEQUENCE_BEHIND = "SEQUENCE_BEHIND"
    NEWEST_COLUMN = "NEWEST_COLUMN"
    NEWEST_NULLABLE = "NEWEST_NULLABLE"
    ENCODINGS_DIFFER = "ENCODINGS_DIFFER"
    # The expressions
    EXPRESSION_INVALID = "EXPRESSION_INVALID"
    EXPRESSION_TYPE = "EXPRESSION_TYPE"
    EXPRESSION_NOT_SCALAR = "EXPRESSION_NOT_SCALAR"
    EXPRESSION_VOLATILE = "EXPRESSION_VOLATILE"
    PREDICATE_VOLATILE = "PREDICATE_VOLATILE"
    DONE_REQUIRED = "DONE_REQUIRED"
    DONE_INVALID = "DONE_INVALID"
    DONE_SKIPS_DEFAULTS = "DONE_SKIPS_DEFAULTS"
    # The transform
    TRANSFORM_COLUMN_UNKNOWN = "TRANSFORM_COLUMN_UNKNOWN"
    TRANSFORM_TYPE_UNSUPPORTED = "TRANSFORM_TYPE_UNSUPPORTED"
    TRANSFORM_WRITES_KEY = "TRANSFORM_WRITES_KEY"
    TRANSFORM_WRITES_TWICE = "TRANSFORM_WRITES_TWICE"
    TRANSFORM_FAILS = "TRANSFORM_FAILS"
    TRANSFORM_REJECTS = "TRANSFORM_REJECTS"
    TRANSFORM_DROPS = "TRANSFORM_DROPS"
    # The application
    DUAL_WRITE_MISSING = "DUAL_WRITE_MISSING"
    DUAL_WRITE_OUTDATED = "DUAL_WRITE_OUTDATED"
    OVERWRITES_DUAL_WRITE = "OVERWRITES_DUAL_WRITE"
    DELETES_UNGUARDED = "DELETES_UNGUARDED"
    # The servers
    PRIVILEGES = "PRIVILEGES"
    SUPERUSER = "SUPERUSER"
    READ_ONLY_SERVER = "READ_ONLY_SERVER"
    SERVER_UNTESTED = "SERVER_UNTESTED"
    LONG_TRANSACTION = "LONG_TRANSACTION"
    CONNECTIONS_SHORT = "CONNECTIONS_SHORT"
    # What it will cost
    STATISTICS_MISSING = "STATISTICS_MISSING"
    PLAN_SCANS_TABLE = "PLAN_SCANS_TABLE"
    PLAN_FORCED = "PLAN_FORCED"
    COLLATIONS_DIFFER = "COLLATIONS_DIFFER"
    BINARY_COPY_IMPOSSIBLE = "BINARY_COPY_IMPOSSIBLE"
    HOT_UPDATES = "HOT_UPDATES"
    FILLFACTOR = "FILLFACTOR"
    GROWTH = "GROWTH"
    AUTOVACUUM_OFF = "AUTOVACUUM_OFF"
    WIDE_ROWS = "WIDE_ROWS"
    INDEXES_BEFORE_COPY = "INDEXES_BEFORE_COPY"
    DISK_ROOM = "DISK_ROOM"
    WAL_VOLUME = "WAL_VOLUME"
    SLOTS_RETAIN_WAL = "SLOTS_RETAIN_WAL"
    STANDBYS = "STANDBYS"
    # The pace
    SIGNAL_RIGHTS = "SIGNAL_RIGHTS"
    SIGNAL_WITHOUT_SUBJECT = "SIGNAL_WITHOUT_SUBJECT"
    PRESENCE_UNSEEN = "PRESENCE_UNSEEN"
    VACUUM_NOT_ALLOWED = "VACUUM_NOT_ALLOWED"
    VACUUM_HELD_BACK = "VACUUM_HELD_BACK"
    DEADLINE_UNREACHABLE = "DEADLINE_UNREACHABLE"
    WINDOW_CLOSED = "WINDOW_CLOSED"
    # The spec's own list
    ACCEPT_UNKNOWN = "ACCEPT_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Entry:
    """What holds for every finding of one code."""

    severity: Severity
    acceptable: bool = False  # ``accept`` in the spec decides it: a refusal becomes a warning, a warning is marked


_REFUSE: Final = Entry(Severity.REFUSE)
_DECIDE: Final = Entry(Severity.REFUSE, acceptable=True)
_WARN: Final = Entry(Severity.WARN)
_DECLARE: Final = Entry(Severity.WARN, acceptable=True)
_ADVISE: Final = Entry(Severity.ADVISE)

_DECISIONS: Final = frozenset(
    {
        Code.COLLATION_OUTDATED,
        Code.TRIGGERS_ON_SOURCE,
        Code.TRIGGERS_ON_TARGET,
        Code.FOREIGN_KEYS,
        Code.RULES,
        Code.INHERITANCE,
    }
)
_DECLARATIONS: Final = frozenset({Code.DUAL_WRITE_MISSING})
_WARNINGS: Final = frozenset(
    {
        Code.PARTITION_ROW_MOVEMENT,
        Code.PARTITIONS_UNHEARD,
        Code.PUBLISHED,
        Code.SUBSCRIBED,
        Code.FOREIGN_KEYS_UNINDEXED,
        Code.EXCLUSION_CONSTRAINTS,
        Code.CONSTRAINTS_NOT_VALID,
        Code.SEVERAL_UNIQUE,
        Code.COLUMNS_LEFT_BEHIND,
        Code.TYPE_NARROWS,
        Code.NEWEST_NULLABLE,
        Code.EXPRESSION_TYPE,
        Code.EXPRESSION_VOLATILE,
        Code.DONE_SKIPS_DEFAULTS,
        Code.TRANSFORM_REJECTS,
        Code.TRANSFORM_DROPS,
        Code.OVERWRITES_DUAL_WRITE,
        Code.ENCODINGS_DIFFER,
        Code.SUPERUSER,
        Code.LONG_TRANSACTION,
        Code.CONNECTIONS_SHORT,
        Code.AUTOVACUUM_OFF,
        Code.SLOTS_RETAIN_WAL,
        Code.SIGNAL_WITHOUT_SUBJECT,
        Code.VACUUM_HELD_BACK,
        Code.DEADLINE_UNREACHABLE,
        Code.ACCEPT_UNKNOWN,
    }
)
_ADVICE: Final = frozenset(
    {
        Code.KEY_TYPE_OPAQUE,
        Code.KEY_UPDATABLE,
        Code.TARGET_HAS_ROWS,
        Code.COLUMNS_DEFAULTED,
        Code.IDENTITY_ALWAYS,
        Code.SEQUENCE_BEHIND,
        Code.DELETES_UNGUARDED,
        Code.SERVER_UNTESTED,
        Code.STATISTICS_MISSING,
        Code.PLAN_FORCED,
        Code.COLLATIONS_DIFFER,
        Code.BINARY_COPY_IMPOSSIBLE,
        Code.HOT_UPDATES,
        Code.FILLFACTOR,
        Code.GROWTH,
        Code.NO_DEFAULT_PARTITION,
        Code.WIDE_ROWS,
        Code.INDEXES_BEFORE_COPY,
        Code.DISK_ROOM,
        Code.WAL_VOLUME,
        Code.STANDBYS,
        Code.PRESENCE_UNSEEN,
        Code.WINDOW_CLOSED,
    }
)


def _entry(code: Code) -> Entry:
    # A code in none of the sets refuses: whoever adds one and forgets to grade it errs on the safe side.
    if code in _DECISIONS:
        return _DECIDE
    if code in _DECLARATIONS:
        return _DECLARE
    if code in _WARNINGS:
        return _WARN
    return _ADVISE if code in _ADVICE else _REFUSE


CATALOGUE: Final = MappingProxyType({code: _entry(code) for code in Code})
"""Every code with its entry, in the order of ``docs/findings.md``."""

_RANK: Final = {Severity.REFUSE: 0, Severity.WARN: 1, Severity.ADVISE: 2}


def finding(code: Code, message: str, remedy: str) -> Finding:
    """A finding of that code, at its catalogue severity."""
    return Finding(code.value, CATALOGUE[code].severity, message, remedy)


def refusals(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Those findings that keep the job from starting."""
    return tuple(f for f in findings if f.severity is Severity.REFUSE)


def settle(findings: Iterable[Finding], accepted: Sequence[str]) -> tuple[Finding, ...]:
    """Apply the spec's ``accept`` list, drop repetitions, and put the worst first.

    A refusal that asks for a decision becomes a warning once its code is accepted; until then its remedy says how to
    accept it.  A warning that asks for a declaration stays one, and says that it was given.  Names in ``accepted`` that
    can have no effect are reported themselves.
    """
    settled = [_decided(f, accepted) for f in dict.fromkeys(findings)]
    settled += [_useless(name) for name in dict.fromkeys(accepted) if not _may_accept(name)]
    return tuple(sorted(settled, key=lambda f: _RANK[f.severity]))


def _decided(found: Finding, accepted: Sequence[str]) -> Finding:
    if not CATALOGUE[Code(found.code)].acceptable:
        return found
    if found.code in accepted:
        return replace(found, severity=Severity.WARN, message=f"{found.message} (accepted by the spec)")
    return replace(found, remedy=f"{found.remedy}; if it is as you want it, write accept: [{found.code}]")


def _may_accept(name: str) -> bool:
    try:
        entry = CATALOGUE[Code(name)]
    except ValueError:
        return False
    return entry.acceptable or entry.severity is not Severity.REFUSE


def _useless(name: str) -> Finding:
    if name in Code.__members__:
        return finding(
            Code.ACCEPT_UNKNOWN,
            f"accept names {name}, which cannot be accepted: a job with that finding cannot be right",
            "take it out of accept, and mend what the finding says",
        )
    close = did_you_mean(name, [c.value for c in Code if CATALOGUE[c].acceptable])
    return finding(Code.ACCEPT_UNKNOWN, f"accept names {name}, which is no finding's code", f"take it out{close}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` with the closest known name, whatever its case; empty when nothing is close."""
    by_folded: dict[str, str] = {}
    for candidate in known:
        by_folded.setdefault(candidate.casefold(), candidate)
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f"; did you mean {by_folded[close[0]]}?" if close else ""
