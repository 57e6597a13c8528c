"""Numeric amounts to whole cents, in place.

``amount`` is ``numeric(14,4)``, so it comes as integers that count ten-thousandths: exact, and as fast as any integers.
An amount with a fraction of a cent is nobody's to round silently: such a row is rejected, and waits in the quarantine.
"""

from __future__ import annotations

import numpy as np

from engine.transform import Batch, Column, transform


@transform(reads=["amount"], writes=["amount_cents"])
def cents(batch: Batch) -> dict[str, Column]:
    """The amount in cents; NULL stays NULL."""
    amount = batch["amount"]
    decimals = amount.scale or 0
    if decimals < 2:
        raise TypeError("amount should have two decimals or more, such as numeric(14,4)")
    whole, rest = np.divmod(amount.values, 10 ** (decimals - 2))
    batch.reject((rest != 0) & ~amount.null, "a fraction of a cent")
    return {"amount_cents": Column(whole, amount.null)}
