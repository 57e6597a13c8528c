"""Cython kernels: the few loops that would be the bottleneck in Python.

Owns: ``keyspace`` (typed keys to positions and back), ``copybin`` (the frames of a binary COPY stream), ``rows`` (its
rows in memory, and new ones put together), ``decode`` and ``encode`` (columns of them to numpy arrays and back).

Refuses to know: databases, event loops, specs, files.  What a kernel makes of bytes, typed memoryviews and plain
integers it makes in loops without the GIL; only where a value is a Python object (text, bytes, ``Decimal``, a key) does
a loop hold it.

Invariants: every kernel has a type stub beside it and an independent plain-Python oracle in ``tests/native``; a
build with ``BACKFILL_DEBUG=1`` has bounds checks on, one with ``BACKFILL_SANITIZE=1`` the address sanitizer; no kernel
keeps a reference to a buffer it was handed.
"""
