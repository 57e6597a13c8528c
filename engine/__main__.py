"""``python -m engine``: the same as ``backfill``.

Python puts the working directory before everything else for ``-m``: what lies there would hide what is installed, and
run, in a daemon too.  ``backfill`` has none of that.
"""

from __future__ import annotations

import os
import sys

if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):  # noqa: PTH109 - imports nothing from there
    del sys.path[0]

from engine.cli.main import main

sys.exit(main())
