"""The mutations themselves: each still finds its place.  ``make faults`` runs them."""

from __future__ import annotations

import pytest

from tests.faults.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_it_takes_out_is_there_exactly_once(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert all((ROOT / test).exists() for test in mutation.tests if test.endswith(".py"))
