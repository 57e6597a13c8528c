"""What a spec names without saying what it is: connections and signals of an operator, variables of the environment.

Where which of them works depends on who reads the spec; these checks say so, on plain data, with the place of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine.spec.document import Document, Path
from engine.spec.dsn import VARIABLE
from engine.spec.signals import is_signal_name

SIDES: Final = ("source", "target")
DSN_PATHS: Final = (("source", "dsn"), ("target", "dsn"))
_TO_DAEMON: Final = "give the job to a daemon: backfill run FILE --daemon URL"


def without_variables(document: Document, value: Any, path: Path = (), works_in: tuple[Path, ...] = DSN_PATHS) -> Any:
    """``value`` with None for each text that holds a ``${VAR}`` where nothing would replace it."""
    if isinstance(value, Mapping):
        return {key: without_variables(document, item, (*path, key), works_in) for key, item in value.items()}
    if isinstance(value, list):
        return [without_variables(document, item, (*path, n), works_in) for n, item in enumerate(value)]
    if isinstance(value, str) and VARIABLE.search(value) and path not in works_in and path not in DSN_PATHS:
        where = "works only in `dsn`" if works_in else "works only in files that are run by hand"
        document.report(path, f"holds a ${{VAR}}, which {where}", "write the value out; in SQL: '$' || '{…}'")
        return None
    return value


def names_of_operators(data: Mapping[str, Any]) -> bool:
    """True when the spec names a connection or a signal of an operator's."""
    named = any("connection" in endpoint for side in SIDES if isinstance(endpoint := data.get(side), Mapping))
    return named or any(map(_is_name, _signals(data)))


def without_references(document: Document, data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` without the names that only a daemon understands, each reported."""
    data = dict(data)
    for side in SIDES:
        endpoint = data.get(side)
        if isinstance(endpoint, Mapping) and "connection" in endpoint:
            hint = f"{_TO_DAEMON}; or write its `dsn`"
            document.report((side, "connection"), "names a connection of a daemon's operator", hint, key=True)
            data[side] = {key: value for key, value in endpoint.items() if key != "connection"}
    for number, entry in enumerate(_signals(data)):
        if _is_name(entry):
            hint = f"{_TO_DAEMON}; or write the signal itself: - prometheus: {{name: …, url: …, query: …}}"
            document.report(("pace", "signals", number), "names a signal of a daemon's operator", hint)
    if _signals(data):
        kept = [None if _is_name(entry) else entry for entry in _signals(data)]
        data["pace"] = {**data["pace"], "signals": kept}
    return data


def with_references(document: Document, data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with the connections that a daemon needs, and no connection string."""
    data = dict(data)
    for side in SIDES:
        endpoint = data.get(side)
        if isinstance(endpoint, Mapping) and "dsn" in endpoint:
            hint = "name a connection that the daemon's operator has configured: `connection`: main"
            document.report((side, "dsn"), "is a connection string, which a daemon takes from nobody", hint, key=True)
            data[side] = {key: value for key, value in endpoint.items() if key != "dsn"}
    source: Any = data.get("source")
    target: Any = data.get("target")
    if isinstance(source, Mapping) and "connection" not in source and not document.has_problem(("source", "dsn")):
        hint = "name the database as the daemon's operator has: `connection`: main"
        document.report(("source", "connection"), "is missing", hint, key=True)
    if isinstance(target, Mapping) and "connection" not in target and isinstance(source, Mapping):
        data["target"] = {**{key: source[key] for key in ("connection",) if key in source}, **target}
    return data


def _is_name(entry: object) -> bool:
    """True for the name of an operator's signal; whatever else is no entry of the list, the models refuse."""
    return isinstance(entry, str) and is_signal_name(entry)


def _signals(data: Mapping[str, Any]) -> list[Any]:
    pace = data.get("pace")
    signals = pace.get("signals") if isinstance(pace, Mapping) else None
    return signals if isinstance(signals, list) else []
