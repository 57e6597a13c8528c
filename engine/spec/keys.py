"""Which keys a file may hold, and where: the first look at plain data, before anything is made of its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard, get_args

from engine.spec.base import SpecModel
from engine.spec.document import Document, Path, path_text
from engine.spec.misfit import nearest
from engine.spec.models import JobSpec
from engine.spec.pacing import Pace
from engine.spec.rules import NOT_AVAILABLE

EMPTY_HINT: Final = "give it a value, or leave the key out"
_NEVER_EMPTY: Final = (("set",), ("columns",))


def checked_keys(document: Document, data: Mapping[str, Any], model: type[SpecModel], path: Path) -> dict[str, Any]:
    """``data`` without the keys that were reported: unknown, not available, or left empty."""
    known = dict(_nested_models(model))
    checked: dict[str, Any] = {}
    for key, value in data.items():
        here = (*path, key)
        available = NOT_AVAILABLE.get(tuple(map(str, here)))
        if available is not None and (value is None or available[0](value)):
            document.report(here, "is not available yet", available[1], key=True)
        elif key not in known:
            document.report(here, "is not a key of the spec", _other_place(key, path, known), key=True)
        elif value is None or (value == {} and here in _NEVER_EMPTY and not document.has_problem(here)):
            document.report(here, "is empty", EMPTY_HINT, key=True)
        elif (nested := known[key]) is None:
            checked[key] = value
        elif isinstance(value, Mapping) and not nested.listed:
            checked[key] = checked_keys(document, value, nested.model, here)
        elif isinstance(value, list) and nested.listed:
            checked[key] = [
                _checked_entry(document, item, nested.model, (*here, number)) for number, item in enumerate(value)
            ]
        else:
            checked[key] = value
    return checked


def _checked_entry(document: Document, item: Any, model: type[SpecModel], path: Path) -> Any:
    """An entry of a list of mappings with one key each; None once something was reported of its key."""
    if item is None:
        document.report(path, "is empty", EMPTY_HINT)
        return None
    if not isinstance(item, Mapping):
        return item
    checked = checked_keys(document, item, model, path)
    if len(item) != 1:
        document.report(path, "must have exactly one key", "give each an entry (a dash) of its own")
    return checked if len(checked) == len(item) == 1 else None


@dataclass(frozen=True, slots=True)
class _Nested:
    """The model of a key's value, or of each entry of its list: the signals'."""

    own: type[SpecModel] | None

    @property
    def listed(self) -> bool:
        return self.own is None

    @property
    def model(self) -> type[SpecModel]:
        if self.own is not None:
            return self.own
        from engine.spec.signal_forms import SignalEntry  # fifteen models, for which most specs have no use

        return SignalEntry


def _nested_models(model: type[SpecModel]) -> Iterator[tuple[str, _Nested | None]]:
    """Each key of a model as the file spells it, with the model of its value if it has one."""
    for name, info in model.model_fields.items():
        kinds = [info.annotation, *get_args(info.annotation)]
        nested = next((_Nested(kind) for kind in kinds if _is_model(kind)), None)
        if (model, name) == (Pace, "listed"):
            nested = _Nested(None)
        yield str(info.validation_alias or name), nested


def _is_model(kind: Any) -> TypeGuard[type[SpecModel]]:
    return isinstance(kind, type) and issubclass(kind, SpecModel)


def _other_place(key: str, path: Path, known: Mapping[str, Any]) -> str:
    """A hint for an unknown key: where it belongs, or how it is spelled."""
    waiting = {place[-1] for place in NOT_AVAILABLE if place[:-1] == path}
    if guess := nearest(key, [*known, *waiting]):
        return f"did you mean {guess}?"
    listed = any(isinstance(part, int) for part in path)
    for place in () if listed else all_keys(JobSpec):
        if place[-1] == key:
            return f"it belongs under {path_text(place[:-1])}" if place[:-1] else "it belongs at the top level"
    return f"known here: {', '.join(known)}" if known else "write {}"


def all_keys(model: type[SpecModel], path: Path = ()) -> Iterator[Path]:
    """The path of every key that a file may hold below ``model``; entries of lists without their number."""
    for key, nested in _nested_models(model):
        yield (*path, key)
        if nested is not None:
            yield from all_keys(nested.model, (*path, key))
