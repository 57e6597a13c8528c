"""A certificate authority for one test session, made with the openssl program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.embedded import EmbeddedServer


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files.  The server's certificate names localhost and 127.0.0.1."""

    authority: Path  # for clients: sslrootcert
    certificate: Path
    key: Path


def make_certificates(server: EmbeddedServer) -> Certificates:
    """Make an authority and a server certificate, and install them in the server's folder.

    Skips the test when there is no openssl program.
    """
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program on this machine: apt-get install openssl")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)

        def openssl(*arguments: str) -> None:
            subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True, timeout=60)

        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2")
        openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=backfill test authority")
        openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
        (place / "names").write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
        signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", "server.csr", "-out", "server.crt", *signing)
        return Certificates(
            authority=server.install("ca.crt", (place / "ca.crt").read_bytes()),
            certificate=server.install("server.crt", (place / "server.crt").read_bytes()),
            key=server.install("server.key", (place / "server.key").read_bytes()),
        )
