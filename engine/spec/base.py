"""What all models of a spec have in common."""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler


class SpecModel(BaseModel):
    """Base of the models: frozen, closed, and silent about its input in errors (it may hold a secret).

    The text below an attribute describes it in the JSON Schema.  It is read from the source when a schema is made:
    pydantic would do so whenever the models are imported (``use_attribute_docstrings``), a quarter of every start.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Pydantic's schema of the model, with descriptions of its properties."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in _descriptions(cls).items():
            shown = properties.get(cls.model_fields[name].validation_alias or name)
            if shown is not None:
                shown["description"] = text
        return schema


def _descriptions(model: type[SpecModel]) -> dict[str, str]:
    """The texts below a model's attributes, and those of the models it extends."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (issubclass(base, SpecModel) and base is not SpecModel):
            continue
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for above, below in pairwise(body.body):
            match above, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return found
