"""What users read about findings is what the program knows of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.model import Severity
from engine.plan.preflight import CATALOGUE, Code

DOCS = Path(__file__).parents[2] / "docs" / "findings.md"
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def test_every_code_is_documented_in_the_catalogues_order_and_none_is_stale():
    assert list(SECTIONS) == [code.value for code in Code]


@pytest.mark.parametrize("code", Code)
def test_the_documented_severity_is_the_real_one(code: Code):
    entry = CATALOGUE[code]
    stated = re.match(r"\*([a-z ,]+)\.\*", SECTIONS[code])
    assert stated is not None
    if entry.acceptable:
        how = " until accepted" if entry.severity is Severity.REFUSE else ", may be accepted"
    else:
        how = ""
    assert stated[1] == str(entry.severity) + how
