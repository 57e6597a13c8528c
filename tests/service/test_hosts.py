"""Whose name a request comes under, and whose page it comes from."""

from __future__ import annotations

import pytest

from engine.service.config import Address
from engine.service.hosts import CrossSite, Hosts
from engine.service.problems import Misdirected


def hosts(*listen: str, names: tuple[str, ...] = ()) -> Hosts:
    return Hosts([Address.parse(one) for one in listen], names)


UNIX, LOOPBACK, ANY = "unix:///run/backfill/backfill.sock", "tcp://127.0.0.1:8471", "tcp://0.0.0.0:8471"


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        (UNIX, "localhost"),
        (UNIX, "backfill"),
        (LOOPBACK, "127.0.0.1:8471"),
        (LOOPBACK, "localhost:8471"),
        (LOOPBACK, "LocalHost:8471"),
        (LOOPBACK, "[::1]:8471"),
        (ANY, "localhost:8471"),
        ("tcp://[::1]:8471", "[::1]:8471"),
        ("tcp://10.0.0.7:8471", "10.0.0.7:8471"),
        ("tcp://backfill.internal:443", "backfill.internal"),
        ("tcp://127.0.0.1:0", "127.0.0.1:40123"),
    ],
)
def test_the_addresses_that_are_listened_on_are_ours(listen: str, host: str) -> None:
    hosts(listen).check({"host": host})


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        (LOOPBACK, "evil.example"),
        (LOOPBACK, "evil.example:8471"),
        (LOOPBACK, "127.0.0.1"),
        (LOOPBACK, "127.0.0.1:8472"),
        (LOOPBACK, "127.0.0.1:8471.evil.example"),
        (LOOPBACK, "localhost.:8471"),
        (LOOPBACK, ""),
        (UNIX, "evil.example"),
        (UNIX, "localhost:80"),
        ("tcp://10.0.0.7:8471", "localhost:8471"),
        ("tcp://127.0.0.1:0", "evil.example:40123"),
        ("tcp://127.0.0.1:0", "127.0.0.1:40123:1"),
        ("tcp://127.0.0.1:0", "127.0.0.1:"),
    ],
)
def test_a_page_that_dns_points_here_speaks_under_its_own_name_and_is_refused(listen: str, host: str) -> None:
    with pytest.raises(Misdirected):
        hosts(listen).check({"host": host})


def test_a_request_without_a_host_is_refused() -> None:
    with pytest.raises(Misdirected):
        hosts(LOOPBACK).check({})


def test_the_operator_lists_other_names_with_a_port_or_for_any() -> None:
    listed = hosts(ANY, names=("backfill.example", "Other.example:443"))
    for host in ("backfill.example", "backfill.example:8471", "other.example:443"):
        listed.check({"host": host})
    for host in ("other.example", "other.example:8471", "notbackfill.example"):
        with pytest.raises(Misdirected):
            listed.check({"host": host})


@pytest.mark.parametrize(
    "headers",
    [
        {},  # no browser
        {"sec-fetch-site": "none"},  # the address was typed
        {"sec-fetch-site": "same-origin"},
        {"origin": "http://127.0.0.1:8471"},
        {"origin": "https://127.0.0.1:8471", "sec-fetch-site": "same-origin"},  # TLS ends in front of us
    ],
)
def test_our_own_page_and_other_clients_may_ask(headers: dict[str, str]) -> None:
    hosts(LOOPBACK).check_site({"host": "127.0.0.1:8471"} | headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},  # a sandboxed frame, or a file
        {"origin": ""},
        {"origin": "http://127.0.0.1:3000"},  # another program of this machine
        {"origin": "http://127.0.0.1:8471.evil.example"},
        {"origin": "ftp://127.0.0.1:8471"},
        {"origin": "http://127.0.0.1:8471", "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site"},  # a form, an image, a link
        {"sec-fetch-site": "same-site"},  # another port of localhost is the same site to a browser
        {"sec-fetch-site": "whatever comes next"},
    ],
)
def test_a_page_of_another_site_may_not_ask_with_its_visitors_browser(headers: dict[str, str]) -> None:
    with pytest.raises(CrossSite):
        hosts(LOOPBACK).check_site({"host": "127.0.0.1:8471"} | headers)
