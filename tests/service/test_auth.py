"""Who may come in: tokens, users of a Unix socket, certificates, and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import pwd
import re
import ssl
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from engine.errors import SpecError
from engine.service import auth, tokens, watched
from engine.service.access import ALL_SCOPES, Identity, Peer, Scope, TooManyTries, Unauthenticated
from engine.service.auth import Doorkeeper, Tries, Users
from engine.service.config import Config
from engine.service.tokens import digest, make_token
from engine.service.watched import Watched
from tests.support.daemon import client_for, running_daemon
from tests.support.databases import FreshDatabase

ARGO, OTHER = make_token(), make_token()
STRANGER = Peer(address="192.0.2.7")


def entry(token: str | list[str], *, name: str = "argo", scopes: str = '["read"]', more: str = "") -> str:
    hashes = [digest(one) for one in ([token] if isinstance(token, str) else token)]
    return f"[tokens.{name}]\nsha256 = {hashes}\nscopes = {scopes}\n{more}\n"


def write(path: Path, text: str) -> None:
    """As an operator's editor does: a new file over the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    write(path, entry(ARGO))
    return path


def keeper(file: Path | None = None, told: list[str] | None = None, **settings: Any) -> Doorkeeper:
    listed = {"tokens_file": str(file)} if file is not None else {}
    config = Config.model_validate({"connections": {"main": {}, "other": {}}, "auth": listed | settings})
    return Doorkeeper(config, tell=(told if told is not None else []).append)


def bearer(door: Doorkeeper, token: str, peer: Peer = STRANGER) -> Identity:
    return door.identify(peer, f"Bearer {token}")


# -- tokens


def test_a_token_is_who_the_file_says(file: Path) -> None:
    write(file, entry(ARGO, scopes='["read", "submit"]', more='connections = ["main"]'))
    identity = bearer(keeper(file), ARGO)
    assert identity == Identity("argo", "token", frozenset({Scope.READ, Scope.SUBMIT}), frozenset({"main"}))
    assert identity.may_use("main") and not identity.may_use("other")
    assert identity.signature == "token argo"


def test_a_token_that_names_no_connections_may_use_all(file: Path) -> None:
    assert bearer(keeper(file), ARGO).connections is None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {ARGO}",
        ARGO,
        f"Bearer {ARGO} more",
        f"Bearer {ARGO}x",
        f"Bearer {ARGO[:-1]}",
        f"Bearer {digest(ARGO)}",
        "Bearer \udcff",
        "Bearer " + "x" * 100_000,
    ],
    ids=count(),  # tokens are other ones in each process
)
def test_anything_else_is_nobody(file: Path, header: str) -> None:
    with pytest.raises(Unauthenticated) as error:
        keeper(file).identify(STRANGER, header)
    assert ARGO not in str(error.value) + error.value.hint


def test_the_scheme_is_known_in_any_case(file: Path) -> None:
    assert keeper(file).identify(STRANGER, f"bEARER   {ARGO}  ").name == "argo"


def test_nobody_comes_in_over_tcp_without_a_token(file: Path) -> None:
    for door in (keeper(file), keeper()):
        for peer in (STRANGER, Peer(address="127.0.0.1"), Peer()):
            with pytest.raises(Unauthenticated):
                door.identify(peer, None)
    with pytest.raises(Unauthenticated):
        bearer(keeper(), ARGO)


def test_every_known_hash_is_compared_whole_however_early_one_fits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(file, entry([ARGO, make_token()]) + entry(OTHER, name="other") + entry(make_token(), name="third"))
    door, compared = keeper(file), []

    def compare(one: str, two: str) -> bool:
        compared.append((one, two))
        return hmac.compare_digest(one, two)

    monkeypatch.setattr(tokens, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    for shown in (ARGO, OTHER, make_token()):
        compared.clear()
        with contextlib.suppress(Unauthenticated):
            bearer(door, shown)
        assert len(compared) == 4
        assert all(len(one) == len(two) == 64 for one, two in compared)


def test_a_hash_is_known_in_any_case(file: Path) -> None:
    write(file, entry(ARGO).replace(digest(ARGO), digest(ARGO).upper()))
    door = keeper(file)
    assert door.still_knows(bearer(door, ARGO))


def test_the_file_holds_no_token(file: Path) -> None:
    assert ARGO not in file.read_text()
    assert len(ARGO) > 43 and ARGO.startswith("backfill_")


def test_an_expired_token_is_refused_and_one_that_is_not_yet_is_not(file: Path) -> None:
    door = keeper(file)
    for moment, valid in ((timedelta(hours=1), True), (timedelta(seconds=-1), False)):
        write(file, entry(ARGO, more=f"expires = {datetime.now(UTC) + moment:%Y-%m-%dT%H:%M:%SZ}"))
        if valid:
            identity = bearer(door, ARGO)
            assert door.still_knows(identity)
        else:
            with pytest.raises(Unauthenticated, match="expired"):
                bearer(door, ARGO)
            assert not door.still_knows(identity)


@pytest.mark.parametrize("moment", ["2001-01-01", "2001-01-01T00:00:00", "2001-01-01 00:00:00Z"])
def test_a_day_of_toml_is_one_of_utc(file: Path, moment: str) -> None:
    write(file, entry(ARGO, more=f"expires = {moment}"))
    with pytest.raises(Unauthenticated, match="expired"):
        bearer(keeper(file), ARGO)


# -- rotation


def test_a_token_that_was_taken_out_of_the_file_is_refused_at_once(file: Path) -> None:
    door = keeper(file)
    identity = bearer(door, ARGO)
    assert door.still_knows(identity)
    write(file, entry(OTHER))
    with pytest.raises(Unauthenticated):
        bearer(door, ARGO)
    assert bearer(door, OTHER).name == "argo"


def test_what_was_opened_with_a_token_ends_with_it(file: Path) -> None:
    door = keeper(file)
    identity = bearer(door, ARGO)
    for other in (entry(ARGO, scopes='["control"]'), entry(ARGO, name="twin"), entry(OTHER), "[tokens.argo"):
        assert door.still_knows(identity)
        write(file, other)
        assert door.still_knows(identity) is (other == "[tokens.argo")
        write(file, entry([OTHER, ARGO]))
    write(file, "")
    assert not door.still_knows(identity)
    assert door.still_knows(Identity("root", "peer", ALL_SCOPES))


def test_while_a_token_is_exchanged_the_old_and_the_new_one_are_valid(file: Path) -> None:
    door = keeper(file)
    write(file, entry([ARGO, OTHER]))
    assert bearer(door, ARGO) == bearer(door, OTHER)
    write(file, entry([OTHER]))
    assert bearer(door, OTHER).name == "argo"
    with pytest.raises(Unauthenticated):
        bearer(door, ARGO)


def test_a_file_that_is_edited_in_place_twice_in_one_moment_is_read_twice(file: Path) -> None:
    door = keeper(file)
    for one in (OTHER, ARGO) * 20:  # same size, same inode, within one tick of the clock
        file.write_text(entry(one))
        assert bearer(door, one).name == "argo"


def test_a_file_that_changed_just_now_is_looked_at_again_until_its_clock_has_moved_on(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the same tick of the file system's clock looks like none."""
    seen = Watched([file])
    assert seen.has_changed() and seen.has_changed()
    now = time.time() + 10
    monkeypatch.setattr(watched.time, "time", lambda: now)
    assert seen.has_changed() and not seen.has_changed()


def test_a_file_behind_a_link_that_is_swapped_is_read_again(tmp_path: Path) -> None:
    """As Kubernetes does with a mounted secret."""
    for name, token in (("one", ARGO), ("two", OTHER)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "tokens.toml", entry(token))
        os.utime(tmp_path / name / "tokens.toml", (1, 1))
    data = tmp_path / "..data"
    data.symlink_to("one")
    (tmp_path / "tokens.toml").symlink_to("..data/tokens.toml")
    door = keeper(tmp_path / "tokens.toml")
    assert bearer(door, ARGO).name == "argo"
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(data)
    assert bearer(door, OTHER).name == "argo"
    with pytest.raises(Unauthenticated):
        bearer(door, ARGO)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tokens.argo", "not TOML"),
        ("\xff\xfe", "not TOML"),
        ("token = 1", "token"),
        ('[tokens.argo]\nsha256 = "1234"\nscopes = ["read"]', "tokens.argo.sha256"),
        (f'[tokens.argo]\nsha256 = "{digest(ARGO)}"\nscopes = []', "tokens.argo.scopes"),
        (f'[tokens.argo]\nsha256 = "{digest(ARGO)}"\nscopes = ["root"]', "tokens.argo.scopes"),
        (f'[tokens.argo]\nsha256 = "{digest(ARGO)}"\nscopes = [["read"]]', "tokens.argo.scopes"),
        (f'[tokens.argo]\nsha256 = "{digest(ARGO)}"', "tokens.argo.scopes"),
        ('[tokens.argo]\nsha256 = []\nscopes = ["read"]', "tokens.argo.sha256"),
        (entry(ARGO, more='connections = ["mian"]'), "tokens.argo.connections"),
        (entry(ARGO, more="expires = 5"), "tokens.argo.expires"),
        (entry(ARGO, more="owner = 5"), "tokens.argo.owner"),
        (entry(ARGO, name='"Argo!"'), "Argo!"),
        (entry(ARGO) + entry(ARGO, name="twin"), "tokens.twin.sha256"),
        ("x = 1\n" * 300_000, "longer|not TOML"),
    ],
    ids=count(),
)
def test_a_broken_new_file_keeps_the_old_one_and_is_told_once(file: Path, text: str, words: str) -> None:
    told: list[str] = []
    door = keeper(file, told)
    assert door.trouble is None
    write(file, text)
    for _ in range(3):
        assert bearer(door, ARGO).name == "argo"
    assert door.trouble is not None
    assert re.search(words, door.trouble), door.trouble
    assert len(told) == 1 and digest(ARGO) not in told[0]
    write(file, entry(OTHER))
    assert bearer(door, OTHER).name == "argo"
    assert door.trouble is None and len(told) == 2
    with pytest.raises(SpecError):
        write(file, text)
        keeper(file)


def test_a_connection_that_does_not_exist_is_told_with_the_one_that_was_meant(file: Path) -> None:
    write(file, entry(ARGO, more='connections = ["mian"]'))
    with pytest.raises(SpecError) as error:
        keeper(file)
    assert error.value.problems[0].hint == "did you mean main?"


def test_a_file_that_is_gone_changes_nothing_but_what_readiness_says(file: Path) -> None:
    told: list[str] = []
    door = keeper(file, told)
    text = file.read_text()
    file.unlink()
    assert bearer(door, ARGO).name == "argo"
    assert door.trouble is not None and len(told) == 1
    write(file, text)
    assert door.trouble is None and len(told) == 2


@pytest.mark.parametrize("mode", [stat.S_IWOTH, stat.S_IWGRP])
def test_a_file_that_others_can_write_is_not_believed(file: Path, mode: int) -> None:
    door = keeper(file)
    file.write_text(entry(OTHER))
    file.chmod(0o600 | mode)
    with pytest.raises(Unauthenticated):
        bearer(door, OTHER)
    assert "written by others" in (door.trouble or "")
    with pytest.raises(SpecError):
        keeper(file)
    file.chmod(0o600)
    assert bearer(door, OTHER).name == "argo"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_believed(file: Path) -> None:
    os.chown(file, 65534, 65534)
    with pytest.raises(SpecError):
        keeper(file)


def test_a_pipe_or_a_folder_in_the_place_of_the_file_is_not_waited_for(file: Path) -> None:
    door = keeper(file)
    file.unlink()
    os.mkfifo(file)
    assert bearer(door, ARGO).name == "argo" and "is no file" in (door.trouble or "")
    file.unlink()
    file.mkdir()
    assert bearer(door, ARGO).name == "argo" and door.trouble is not None


# -- guessing


def test_who_guesses_is_slowed_and_his_neighbours_come_in(file: Path) -> None:
    door = keeper(file)
    answers = []
    for _ in range(60):
        with pytest.raises((Unauthenticated, TooManyTries)) as error:
            bearer(door, make_token())
        answers.append(error.value.http_status)
    assert answers[:20] == [401] * 20 and answers.count(429) >= 35
    with pytest.raises(Unauthenticated):
        bearer(door, "wrong", Peer(address="192.0.2.8"))
    assert bearer(door, ARGO).name == "argo"  # from the same address: a gateway is not locked out


def test_the_table_of_guessers_is_bounded(file: Path) -> None:
    tries = Tries(places=100)
    for number in range(10_000):
        tries.failed(f"place {number}")
    assert len(tries) == 100


def test_a_guesser_is_forgiven_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(auth.time, "monotonic", lambda: now)
    tries = Tries(burst=2, per_s=0.5)
    tries.failed("there")
    tries.failed("there")
    with pytest.raises(TooManyTries):
        tries.failed("there")
    now += 2.0
    tries.failed("there")
    with pytest.raises(TooManyTries):
        tries.failed("there")


# -- users of a Unix socket


def test_our_own_user_and_root_may_do_everything() -> None:
    for uid in {0, os.geteuid()}:
        identity = keeper().identify(Peer(uid=uid, gid=0), None)
        assert identity == Identity(pwd.getpwuid(uid).pw_name, "peer", ALL_SCOPES)


def test_another_user_is_nobody_until_he_is_listed() -> None:
    nobody = pwd.getpwnam("nobody")
    peer = Peer(uid=nobody.pw_uid, gid=nobody.pw_gid)
    for door in (keeper(), keeper(users={"daemon": ["read"]})):
        assert not door.admits(peer)
        with pytest.raises(Unauthenticated):
            door.identify(peer, None)
    for key in ("nobody", str(nobody.pw_uid)):
        door = keeper(users={key: ["read"]})
        assert door.admits(peer)
        assert door.identify(peer, None) == Identity("nobody", "peer", frozenset({Scope.READ}))


def test_a_valid_token_does_not_let_a_user_in_who_is_not_listed(file: Path) -> None:
    with pytest.raises(Unauthenticated):
        bearer(keeper(file), ARGO, Peer(uid=65534, gid=65534))


def test_a_listed_user_who_shows_a_token_is_the_token(file: Path) -> None:
    door = keeper(file, users={"65534": ["read", "control"]})
    assert bearer(door, ARGO, Peer(uid=65534, gid=65534)).signature == "token argo"
    with pytest.raises(Unauthenticated):  # and not more than nobody when it is wrong
        bearer(door, OTHER, Peer(uid=65534, gid=65534))
    with pytest.raises(Unauthenticated):
        bearer(door, OTHER, Peer(uid=os.geteuid(), gid=0))


def test_a_group_lets_in_by_the_process_and_by_the_user_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth.os, "getgrouplist", lambda name, gid: [gid, 4242] if name == "daemon" else [gid])
    daemon = pwd.getpwnam("daemon")
    users = Users({"@4242": frozenset({Scope.READ}), "@daemon": frozenset({Scope.CONTROL})}, keep_s=0)
    assert users.scopes(daemon.pw_uid, daemon.pw_gid) == {Scope.READ, Scope.CONTROL}
    assert users.scopes(daemon.pw_uid, 65533) == {Scope.READ, Scope.CONTROL}
    assert users.scopes(54321, daemon.pw_gid) == {Scope.CONTROL}  # a user without a name, whose process has the group
    assert users.scopes(54321, 65533) is None
    assert Users({"daemon": frozenset({Scope.READ})}).scopes(54321, daemon.pw_gid) is None  # a user's name is no group


def test_a_user_without_a_name_is_known_by_his_number() -> None:
    assert keeper(users={"54321": ["read"]}).identify(Peer(uid=54321, gid=54321), None).name == "54321"


# -- certificates and loopback


def test_a_certificate_is_who_the_operator_listed() -> None:
    door = keeper(certificates={"argo.internal": ["read", "submit"]})
    identity = door.identify(Peer(certificate=("argo.internal",), address="192.0.2.7"), None)
    assert identity == Identity("argo.internal", "certificate", frozenset({Scope.READ, Scope.SUBMIT}))
    for names in (("other.internal",), ("ARGO.internal",), ("argo.internal.evil",), ()):
        with pytest.raises(Unauthenticated):
            door.identify(Peer(certificate=names, address="192.0.2.7"), None)


def test_loopback_is_trusted_only_where_the_operator_says_so_and_only_from_there(file: Path) -> None:
    door = keeper(file, loopback=["read"])
    for address in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"):
        identity = door.identify(Peer(address=address), None)
        assert identity == Identity("loopback", "loopback", frozenset({Scope.READ}))
    for peer in (STRANGER, Peer(address="127.0.0.1.evil"), Peer(address=""), Peer(), Peer(address="::ffff:192.0.2.7")):
        with pytest.raises(Unauthenticated):
            door.identify(peer, None)
    assert bearer(door, ARGO, Peer(address="127.0.0.1")).kind == "token"
    with pytest.raises(Unauthenticated):  # a wrong token is not loopback's concern
        bearer(door, OTHER, Peer(address="127.0.0.1"))


# -- the whole daemon


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def settings(file: Path, dsn: str = "postgresql://nobody@127.0.0.1:1/nowhere", **more: Any) -> dict[str, Any]:
    """A daemon on TCP whose database need not be there."""
    main = {"dsn": dsn, "tables": ["*.*"]}
    return {
        "listen": "tcp://127.0.0.1:0",
        "connections": {"main": main, "other": main},
        "auth": {"tokens_file": str(file)},
    } | more


async def test_over_tcp_nobody_comes_in_without_a_token_and_exchanging_one_needs_no_restart(file: Path) -> None:
    write(file, entry(ARGO, more='connections = ["main"]') + entry(OTHER, name="other"))
    async with running_daemon(settings(file)) as daemon:
        refused = await daemon.client.get("/v1/me")
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Bearer")
        assert (await daemon.client.get("/livez")).status_code == 200
        async with client_for(daemon.url, token=ARGO) as argo, client_for(daemon.url, token=OTHER) as other:
            assert (await argo.get("/v1/me")).json() == {
                "name": "argo",
                "kind": "token",
                "scopes": ["read"],
                "connections": ["main"],
            }
            assert (await other.get("/v1/me")).json()["connections"] == ["main", "other"]
            write(file, entry(OTHER, name="other"))
            gone = await argo.get("/v1/me")  # on the connection that was let in before
            assert (gone.status_code, gone.json()["code"]) == (401, "unauthenticated")
            assert (await other.get("/v1/me")).status_code == 200
            write(file, "[tokens")
            assert (await other.get("/v1/me")).status_code == 200
            ready = await daemon.client.get("/readyz")
            assert ready.status_code == 503 and str(file) not in ready.text


async def test_a_page_of_another_site_reaches_nothing_but_what_is_public(file: Path) -> None:
    more = {"auth": {"loopback": ["read", "control", "submit"]}}
    async with running_daemon(settings(file, **more)) as daemon:
        assert (await daemon.client.get("/v1/me")).status_code == 200
        for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
            for method, path in (("GET", "/v1/me"), ("POST", "/v1/jobs"), ("DELETE", "/v1/jobs/orders")):
                answer = await daemon.client.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
                assert "access-control-allow-origin" not in answer.headers
            assert (await daemon.client.get("/livez", headers=headers)).status_code == 200
        rebound = await daemon.client.get("/v1/me", headers={"host": f"evil.example:{httpx.URL(daemon.url).port}"})
        assert (rebound.status_code, rebound.json()["code"]) == (421, "misdirected")
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert (await daemon.client.post("/v1/jobs", content="name=x", headers=form)).status_code == 415
        asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
        preflight = await daemon.client.options("/v1/jobs", headers=asked)
        assert not any(name.startswith("access-control") for name in preflight.headers)


async def test_a_client_certificate_is_an_identity_and_without_one_there_is_none(
    file: Path, tmp_path: Path, authority: trustme.CA
) -> None:
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    made.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    names = {"certificate": "certificate.pem", "key": "key.pem", "client_ca": "ca.pem"}
    more = {
        "tls": {key: str(tmp_path / name) for key, name in names.items()},
        "auth": {"certificates": {"argo": ["read"]}},
    }

    def context(name: str | None) -> ssl.SSLContext:
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        if name is not None:
            authority.issue_cert("client.internal", common_name=name).configure_cert(trusting)
        return trusting

    async with running_daemon(settings(file, **more), verify=context(None)) as daemon:
        assert daemon.url.startswith("https://")
        assert (await daemon.client.get("/v1/me")).status_code == 401
        async with client_for(daemon.url, verify=context("argo")) as argo:
            assert (await argo.get("/v1/me")).json()["kind"] == "certificate"
        async with client_for(daemon.url, verify=context("mallory")) as mallory:
            assert (await mallory.get("/v1/me")).status_code == 401


async def test_no_token_is_ever_written_or_answered(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen, told = [], []
    async with running_daemon(settings(file), tell=told.append) as daemon, client_for(daemon.url, token=ARGO) as argo:
        for path in ("/v1/me", "/v1/jobs", "/v1/connections", "/metrics", f"/v1/jobs/{ARGO.lower()}", f"/{ARGO}"):
            seen.append((await argo.get(path)).text if ARGO not in path else "")
        seen.append((await argo.post("/v1/jobs", json={})).text)
    # Who asked is told, and what he said is not.
    assert any(entry.event == "audit" and "token argo" in repr(entry) for entry in told), told
    seen += map(repr, told)
    seen += capfd.readouterr()
    assert all(ARGO not in text and digest(ARGO) not in text for text in seen)


async def test_a_stream_ends_when_its_token_is_taken_out_of_the_file(
    file: Path, tmp_path: Path, make_database: Callable[..., FreshDatabase]
) -> None:
    database = make_database()
    connection = await database.connect()
    await connection.execute("CREATE TABLE orders (id bigint PRIMARY KEY, cents bigint)")
    more = {
        "listen": [f"unix://{tmp_path}/run/s", "tcp://127.0.0.1:0"],
        "connections": {"main": {"dsn": database.dsn, "tables": ["*.*"]}},
        "allow": {"expressions": True},
    }
    async with (
        running_daemon(settings(file, **more)) as daemon,
        client_for(daemon.urls[1], token=ARGO) as argo,
        client_for(daemon.urls[1], token=ARGO) as late,
    ):
        source = {"connection": "main", "table": "public.orders"}
        made = await daemon.client.post("/v1/jobs", json={"name": "orders", "source": source, "set": {"cents": "1"}})
        assert made.status_code == 201, made.text

        async def keep_changing() -> None:
            while True:  # a stream with news all the time, as of a job that runs
                for order in ("pause", "resume"):
                    (await daemon.client.post(f"/v1/jobs/orders/{order}", json={})).raise_for_status()

        async with argo.stream("GET", "/v1/jobs/orders/events") as stream:
            pieces = stream.aiter_text()
            assert "retry" in await anext(pieces)
            changing = asyncio.create_task(keep_changing())
            try:
                write(file, entry(OTHER))
                async with asyncio.timeout(60):
                    told = "".join([piece async for piece in pieces])
            finally:
                assert changing.cancel(), changing.exception()
        assert "who may look has changed" in told and "event: end" not in told
        assert (await late.get("/v1/jobs/orders")).status_code == 401
