"""Comparing two forms of a spec: what makes a job another job, or its settings other settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What differs between two meanings (or two settings): ``(path, old text, new text)`` in the order of the keys.

    A missing key equals None; the text of an absent value is ``(none)``.
    """
    before, after = _flat(old), _flat(new)
    return [
        (path, _shown(before.get(path)), _shown(after.get(path)))
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, Mapping):  # an entry of a list
        return ", ".join(f"{key}: {_inside(item)}" for key, item in value.items())
    return ", ".join(map(_shown, value)) if isinstance(value, (list, tuple)) else str(value)


def _inside(value: Any) -> str:
    return f"{{{_shown(value)}}}" if isinstance(value, Mapping) else _shown(value)
