"""Measurements, side by side: ours and the yardsticks, alternating in one run, on a server of the benchmark's own.

``python -m bench`` runs all of them, ``python -m bench.movers`` and its siblings one.  Every module prints a table and,
with ``--json``, writes one report of the schema in ``bench.report``.  ``--smoke`` runs everything once and small: it
shows that the benchmarks work, and its numbers mean nothing.  The method is in ``docs/benchmarks.md``.
"""
