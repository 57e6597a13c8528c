"""Cython kernels: the few loops that would be the bottleneck in Python.

Owns: ``keyspace`` (typed keys to positions and back) and ``copybin`` (the frames of a binary COPY stream).

Refuses to know: databases, event loops, specs, files.  A kernel takes bytes, typed memoryviews and plain integers, and
releases the GIL where it loops.

Invariants: every kernel has a type stub beside it and an independent plain-Python oracle in ``tests/native``; a
build with ``BACKFILL_DEBUG=1`` has bounds checks on; no kernel keeps a reference to a buffer it was handed.
"""
