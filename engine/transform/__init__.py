"""Python transforms: a function over numpy columns, fed from the binary COPY stream.

What a module of transforms imports::

    import numpy as np
    from engine.transform import Batch, Column, transform

    @transform(reads=["amount"], writes=["amount_cents"])
    def cents(batch: Batch):
        amount = batch["amount"]
        batch.reject(amount.values < 0, "a negative amount")
        return {"amount_cents": Column(amount.values, amount.null)}

The room decodes what a function reads, runs it in a thread of its own, and encodes what it gives back.  It knows numpy,
threads and loops; it refuses to know SQL, connections and jobs.  ``docs/transforms.md`` is for those who write them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.transform.batch import Batch
    from engine.transform.columns import INFINITY, Column, ListColumn
    from engine.transform.declare import Transform, transform

__all__ = ["INFINITY", "Batch", "Column", "ListColumn", "Transform", "transform"]

_HOMES = {
    "INFINITY": "engine.transform.columns",
    "Batch": "engine.transform.batch",
    "Column": "engine.transform.columns",
    "ListColumn": "engine.transform.columns",
    "Transform": "engine.transform.declare",
    "transform": "engine.transform.declare",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
