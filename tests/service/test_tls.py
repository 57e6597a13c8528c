"""TLS: what is spoken, who is known by a certificate, and certificates that change."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import warnings
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from engine.errors import UsageError
from engine.service.access import Peer
from engine.service.config import Config
from engine.service.crowd import RESERVE
from engine.service.transport import Front
from tests.support.front import GET, Application, opened, server_files, status, trusting
from tests.support.waiting import until


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


async def test_tls_is_for_tcp_and_a_unix_socket_beside_it_stays_plain(
    authority: trustme.CA, tmp_path: Path, folder: Path
) -> None:
    tls = server_files(authority, tmp_path / "tls")
    async with opened(f"unix://{folder}/s", "tcp://127.0.0.1:0", tls=tls) as front:
        assert front.urls[0] == f"unix://{folder}/s" and front.urls[1].startswith("https://127.0.0.1:")
        async with httpx.AsyncClient(base_url=front.urls[1], verify=trusting(authority)) as client:
            assert (await client.get("/")).status_code == 200
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=f"{folder}/s"), base_url="http://localhost"
        ) as client:
            assert (await client.get("/")).status_code == 200
        assert await front.raw(GET) == b""  # plain words to TLS
        assert front.application.peers[0].address == "127.0.0.1"
        assert front.application.peers[1].uid == os.geteuid()


async def test_versions_of_tls_before_1_2_are_refused(authority: trustme.CA, tmp_path: Path) -> None:
    async with opened(tls=server_files(authority, tmp_path / "tls")) as front:
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(authority)
            context.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = context.maximum_version = version
            asking = front.raw(
                b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", ssl=context, server_hostname="localhost"
            )
            if version >= ssl.TLSVersion.TLSv1_2:
                assert status(await asking) == 200
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await asking


async def test_a_client_certificate_is_known_by_its_common_name_when_our_authority_signed_it(
    authority: trustme.CA, tmp_path: Path
) -> None:
    tls = server_files(authority, tmp_path / "tls")
    clients = trustme.CA()
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    async with opened(tls=tls | {"client_ca": str(tmp_path / "clients.pem")}) as front:

        async def ask(made: trustme.LeafCert | None) -> bytes:
            context = trusting(authority)
            if made is not None:
                made.configure_cert(context)
            return await front.raw(
                b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", ssl=context, server_hostname="localhost"
            )

        assert status(await ask(clients.issue_cert("argo.internal", common_name="argo"))) == 200
        assert front.application.peers[-1] == Peer(certificate=("argo",), address="127.0.0.1")
        assert status(await ask(None)) == 200
        assert front.application.peers[-1] == Peer(address="127.0.0.1")
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert status(await ask(trustme.CA().issue_cert("argo.internal", common_name="argo"))) == 0
        assert len(front.application.peers) == 2


async def test_certificates_are_exchanged_without_a_restart_and_broken_ones_change_nothing(
    authority: trustme.CA, tmp_path: Path
) -> None:
    told: list[str] = []
    tls = server_files(authority, tmp_path / "tls")
    async with opened(tls=tls, told=told) as front:

        async def serial() -> str:
            _, writer = await front.connect(ssl=trusting(authority), server_hostname="localhost")
            found = writer.get_extra_info("peercert")["serialNumber"]
            writer.close()
            return str(found)

        reader, writer = await front.connect(ssl=trusting(authority), server_hostname="localhost")
        first = await serial()
        Path(tls["certificate"]).write_text("nonsense")
        await until(lambda: front.front.trouble is not None)
        assert not front.front.reload()
        assert len(told) == 1 and await serial() == first
        server_files(authority, tmp_path / "tls")
        await until(lambda: front.front.trouble is None)
        assert len(told) == 2 and await serial() != first
        server_files(authority, tmp_path / "tls")
        second = await serial()
        assert front.front.reload()  # SIGHUP
        assert await serial() not in (first, second)
        writer.write(GET)  # a connection of before is not disturbed
        assert b"ok" in await reader.read(1000)
        writer.close()


@pytest.mark.parametrize("broken", ["certificate", "key", "client_ca", "encrypted"])
def test_tls_files_that_cannot_be_used_are_told_before_anything_is_opened(
    authority: trustme.CA, tmp_path: Path, broken: str
) -> None:
    tls = server_files(authority, tmp_path / "tls") | {"client_ca": str(tmp_path / "ca.pem")}
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    if broken == "encrypted":
        key = serialization.load_pem_private_key(Path(tls["key"]).read_bytes(), None)
        sealed = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pass phrase"),
        )
        Path(tls["key"] + ".e").write_bytes(sealed)
        tls["key"] += ".e"
    else:
        tls[broken] = str(tmp_path / "none.pem")
    front = Front(
        Application(), Config.model_validate({"listen": ["tcp://127.0.0.1:0"], "connections": {"main": {}}, "tls": tls})
    )
    with pytest.raises(UsageError, match="TLS file"):
        front.open()


async def test_a_client_that_never_ends_its_handshake_has_no_more_time_than_for_a_head(
    authority: trustme.CA, tmp_path: Path
) -> None:
    tls = server_files(authority, tmp_path / "tls")
    async with opened(tls=tls, limits={"header_timeout": "2s", "connections": 4}) as front:
        silent = [await front.connect() for _ in range(30)]
        assert len(front.front._crowd) <= 4 + RESERVE  # a handshake takes a place as well
        async with httpx.AsyncClient(base_url=front.urls[0], verify=trusting(authority)) as client:
            assert (await client.get("/livez")).status_code == 200
        async with asyncio.timeout(30):
            for reader, writer in silent:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
        await until(lambda: len(front.front._crowd) == 0)
