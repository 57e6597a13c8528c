"""``python -m engine``: the same as ``backfill``."""

from __future__ import annotations

import sys

from engine.cli.main import main

sys.exit(main())
