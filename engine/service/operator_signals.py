"""Signals that the operator names: from ``[signals.NAME]`` to what the specs' own models make of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import PlainValidator, TypeAdapter, ValidationInfo

from engine.spec import SignalSpec
from engine.spec.dsn import VARIABLE
from engine.spec.fields import Reading
from engine.spec.misfit import Misfit, nearest
from engine.spec.signals import NAMED, check_signal_name

KINDS: Final = tuple(sorted(kind.value for kind in NAMED))
_FORM: Final = "write one of sql, prometheus and http, as in a spec: prometheus = {url = …, query = …, target = 0.2}"


def read_signals(value: object, info: ValidationInfo) -> Mapping[str, SignalSpec]:
    """The signals by name.  Raises ``Misfit`` and pydantic's ``ValidationError``."""
    if not isinstance(value, Mapping):
        raise Misfit("must be tables", "write [signals.api_p99]")
    if all(isinstance(signal, SignalSpec) for signal in value.values()):
        return value
    context = info.context if isinstance(info.context, Reading) else Reading(os.environ)
    return _SIGNALS.validate_python({name: (name, body) for name, body in value.items()}, context=context)


def _read(named: Any, info: ValidationInfo) -> SignalSpec:
    name, body = named
    check_signal_name(name)
    if not isinstance(body, Mapping):
        raise Misfit("must be a table", _FORM)
    for key in body:
        if key not in KINDS:
            guess = nearest(str(key), KINDS)
            raise Misfit("is no signal of an operator's", f"did you mean {guess}?" if guess else _FORM)
    if len(body) != 1:
        raise Misfit("must say exactly one of sql, prometheus and http", _FORM)
    kind, form = next(iter(body.items()))
    if isinstance(form, Mapping):
        if "name" in form:
            raise Misfit("has its name from its table", "leave `name` out")
        assert isinstance(info.context, Reading), "the caller sees to it"
        form = {**form, "name": name} | _with_address(form, info.context.env)
    # Fifteen models, which most configurations do not need.
    from engine.spec.signal_forms import SignalEntry

    return replace(SignalEntry.model_validate({kind: form}, context=info.context).signal, of_operator=True)


def _with_address(form: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """The URL with what the environment says of it: what is secret in an address stands there."""
    url = form.get("url")
    if not isinstance(url, str):
        return {}
    missing = sorted({name for name in VARIABLE.findall(url) if not environment.get(name)})
    if missing:
        raise Misfit(f"its url needs the environment variable {missing[0]}, which is not set", f"export {missing[0]}")
    return {"url": VARIABLE.sub(lambda found: environment[found[1]], url)}


_SIGNALS: Final = TypeAdapter(dict[str, Annotated[SignalSpec, PlainValidator(_read)]])
