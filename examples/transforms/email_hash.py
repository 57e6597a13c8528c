"""Keyed hashes of e-mail addresses, for a database where the addresses themselves must not be.

HMAC-SHA-256: who has no key can neither undo a hash nor try addresses.  The key is read once per worker, from the file
that EMAIL_HASH_KEY_FILE names or from EMAIL_HASH_KEY; a spec never holds it.
"""

from __future__ import annotations

import hmac
import os
import re
import unicodedata
from pathlib import Path

import numpy as np

from engine.transform import Batch, Column, transform

SHORTEST_KEY_BYTES = 32
ADDRESS = re.compile(r"[^@\s]+@[^@\s]+")


def read_key() -> bytes:
    """The secret.  Raises ``LookupError`` without one, ``ValueError`` when it is too short to be one."""
    if file := os.environ.get("EMAIL_HASH_KEY_FILE"):
        key = Path(file).read_bytes().strip()
    elif text := os.environ.get("EMAIL_HASH_KEY"):
        key = text.encode()
    else:
        raise LookupError("neither EMAIL_HASH_KEY_FILE nor EMAIL_HASH_KEY is set")
    if len(key) < SHORTEST_KEY_BYTES:
        raise ValueError(f"the key is shorter than {SHORTEST_KEY_BYTES} bytes")
    return key


def normal(address: str) -> str:
    """One spelling for what people write in several."""
    return unicodedata.normalize("NFC", address.strip()).lower()


@transform(reads=["email"], writes=["email_hash"], setup=read_key)
def email_hash(batch: Batch) -> dict[str, Column]:
    """The hash of the address, 32 bytes; NULL stays NULL, and what is no address is rejected."""
    key, email = batch.state, batch["email"]
    hashes = np.empty(batch.rows, dtype=object)
    wrong = []
    for row in np.flatnonzero(~email.null).tolist():
        address = normal(email.values[row])
        if ADDRESS.fullmatch(address):
            hashes[row] = hmac.digest(key, address.encode(), "sha256")
        else:
            wrong.append(row)
    batch.reject(wrong, "no e-mail address")
    return {"email_hash": Column(hashes, email.null)}
