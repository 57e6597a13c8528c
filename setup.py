"""Builds the Cython kernels of ``engine/_native``, and packs the files that ``backfill dashboards export`` writes;
everything else about the package is in ``pyproject.toml``.

``BACKFILL_DEBUG=1`` builds them with bounds, initialisation and overflow checks and without optimisation, which is
what ``make test-debug`` tests.  ``BACKFILL_SANITIZE=1`` builds them as they are, with every memory access and every
undefined operation of C checked as it happens: only a Python that was started with the sanitizer's library loads these,
as ``make test-sanitized`` does with a copy of the tree.
"""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

DEBUG = os.environ.get("BACKFILL_DEBUG", "") not in ("", "0")
SANITIZE = os.environ.get("BACKFILL_SANITIZE", "") not in ("", "0")
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
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
    optimisation = ["-O0", "-g1"] if SANITIZE else ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
    sanitizers = SANITIZERS if SANITIZE else []
    return [
        Extension(
            f"engine._native.{source.stem}",
            [str(source)],
            include_dirs=[np.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
            extra_compile_args=[*optimisation, *sanitizers, "-std=c11", "-Wall", "-Wno-unused-function"],
            extra_link_args=sanitizers,
        )
        for source in sorted(KERNELS.glob("*.pyx"))
    ]


class WithDashboards(build_py):
    """Puts the files for Grafana into the package; an editable install uses those of the checkout itself."""

    def run(self) -> None:
        """Build the modules, and add the files."""
        super().run()
        if not self.editable_mode:
            pack(Path(self.build_lib))


def pack(library: Path) -> None:
    """Copy the files to where ``engine.telemetry.boards`` looks for them first."""
    gathered = runpy.run_path("engine/telemetry/boards.py")["gathered"]
    target = library / "engine" / "telemetry" / "grafana"
    shutil.rmtree(target, ignore_errors=True)
    for name, content in gathered(Path()).items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


setup(
    cmdclass={"build_py": WithDashboards},
    ext_modules=cythonize(
        kernels(),
        compiler_directives=DIRECTIVES,
        # Directives are no input that Cython watches: without a folder each, one kind would pass for the other.
        build_dir=f"build/cython-{'debug' if DEBUG else 'release'}",
    ),
)
