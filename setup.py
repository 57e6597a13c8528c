"""Builds the Cython kernels of ``engine/_native``; everything else about the package is in ``pyproject.toml``.

``BACKFILL_DEBUG=1`` builds them with bounds, initialisation and overflow checks and without optimisation, which is
what ``make test-debug`` tests.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("BACKFILL_DEBUG", "") not in ("", "0")
KERNELS = Path("engine/_native")

DIRECTIVES: dict[str, object] = {
    "language_level": 3,
    "embedsignature": True,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "overflowcheck": DEBUG,
    "nonecheck": DEBUG,
    # Kernels index from zero and divide non-negative numbers: Python's rules for the rest would be paid in every loop.
    "wraparound": False,
    "cdivision": True,
}


def kernels() -> list[Extension]:
    """One extension per ``.pyx`` file."""
    optimisation = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    return [
        Extension(
            f"engine._native.{source.stem}",
            [str(source)],
            include_dirs=[np.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
            extra_compile_args=[*optimisation, "-std=c11", "-Wall", "-Wno-unused-function"],
        )
        for source in sorted(KERNELS.glob("*.pyx"))
    ]


setup(
    ext_modules=cythonize(
        kernels(),
        compiler_directives=DIRECTIVES,
        # Directives are no input that Cython watches: without a folder each, one kind would pass for the other.
        build_dir=f"build/cython-{'debug' if DEBUG else 'release'}",
    )
)
