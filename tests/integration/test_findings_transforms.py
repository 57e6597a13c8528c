"""What preflight finds about a job's transform, in situations made on a real server, and gone when they are mended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.findings import Situation
from tests.support.ground import Ground, noticed_and_gone
from tests.support.transform_situations import TRANSFORM_SITUATIONS


@pytest.mark.parametrize("situation", TRANSFORM_SITUATIONS.values(), ids=TRANSFORM_SITUATIONS.keys())
async def test_the_situation_is_noticed_and_its_end_too(grounds: Callable[[int], Ground], situation: Situation) -> None:
    await noticed_and_gone(grounds(situation.major), situation)
