"""Speaking to a daemon from Python: ``Client``, and ``AsyncClient`` for those who run in an event loop.

::

    from engine.client import Client

    with Client("unix:///run/backfill/backfill.sock") as daemon:
        job = daemon.submit(spec)
        for told in daemon.follow(job.job):
            ...
        assert daemon.gate(job.job).ready

Owns addresses and credentials, what may be repeated, and how an answer of the daemon becomes a value or one of our
errors.  Refuses to know how the daemon does its work (``engine.service``) and what people are shown (``engine.cli``).

What is said, and when it is said again, is decided once, in ``talk``, as plans that do no input and output; the two
faces only carry them out.

Invariants:

* A request that may have been carried out is repeated only where doing it twice does nothing more.
* A token is in one header and nowhere else: in no URL, ``repr`` or error; over the clear only to this host.
"""

from __future__ import annotations

from engine.client.address import Credentials
from engine.client.faces import AsyncClient, Client
from engine.client.failures import AnswerLost, DaemonError, NotAllowed
from engine.client.talk import Followed
from engine.wire.shapes import Trouble

__all__ = ["AnswerLost", "AsyncClient", "Client", "Credentials", "DaemonError", "Followed", "NotAllowed", "Trouble"]
