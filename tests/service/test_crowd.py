"""How many may come at once, and who has to leave for whom."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from engine.service.access import Peer
from engine.service.crowd import RESERVE, Crowd, place_of
from tests.support.front import GET, fill, opened, problem, status
from tests.support.waiting import until


async def test_clients_that_only_connect_push_each_other_out_and_not_one_that_asks() -> None:
    async with opened(limits={"connections": 20, "header_timeout": "60s"}) as front:
        async with httpx.AsyncClient(base_url=front.urls[0]) as client:
            asking = asyncio.create_task(client.get("/wait"))
            await until(lambda: front.application.paths == ["/wait"])
            silent = await fill(front, 200, GET[:9])
            assert (await client.get("/")).status_code == 200
            assert len(front.front.state.connections) <= 12
            front.application.go_on.set()
            assert (await asking).status_code == 200
        for writer in silent:
            writer.close()


async def test_when_all_are_busy_whoever_asks_whether_we_live_finds_a_place() -> None:
    async with opened(limits={"connections": 4}) as front:
        busy = await fill(front, 2, b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")  # half of all are the most of one place
        await until(lambda: front.application.paths.count("/wait") == 2)
        for path, expected in (("/livez", 200), ("/readyz", 200), ("/v1/jobs", 503)) * 5:
            answer = await front.raw(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert status(answer) == expected and b"connection: close" in answer
        assert problem(answer)["code"] == "crowded" and b"retry-after" in answer
        silent = await fill(front, RESERVE * 3, b"GET ")  # in the reserve, too, the silent go first
        assert status(await front.raw(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")) == 200
        front.application.go_on.set()
        await until(lambda: len(front.front.state.connections) <= 2 + RESERVE)
        for writer in busy + silent:
            writer.close()


def test_one_place_never_has_more_than_half() -> None:
    crowd, evicted = Crowd(20, reserve=2), []

    class Guest:
        def __init__(self, place: str) -> None:
            self.ticket = crowd.enter(place)
            if self.ticket is not None:
                self.ticket.guest = self

        def evict(self) -> None:
            evicted.append(self)

    first = [Guest("a") for _ in range(10)]
    assert not evicted
    Guest("a")
    assert evicted == [first[0]]  # the one that was silent for the longest
    assert first[1].ticket is not None
    first[1].ticket.begins()
    Guest("a")
    assert evicted == [first[0], first[2]]
    first[1].ticket.rests()
    others = [Guest(f"place {number}") for number in range(10)]
    assert len(evicted) == 2 and all(one.ticket and not one.ticket.is_reserve for one in others)
    Guest("another")  # all is full now: the fullest place gives
    assert evicted[-1] is first[3]
    assert len(crowd) == 20


def test_a_busy_crowd_lets_newcomers_into_its_reserve_only() -> None:
    crowd = Crowd(4, reserve=2)
    inside = [crowd.enter(place) for place in ("a", "a", "b", "b")]
    for ticket in inside:
        assert ticket is not None
        ticket.begins()
    reserve = [crowd.enter("c"), crowd.enter("c")]
    for ticket in reserve:
        assert ticket is not None and ticket.is_reserve
        ticket.begins()
    assert crowd.enter("d") is None
    assert inside[0] is not None
    inside[0].leave()
    inside[0].leave()
    back = crowd.enter("d")
    assert back is not None and not back.is_reserve
    assert len(crowd) == 6


@pytest.mark.parametrize(
    ("peer", "place"),
    [
        (Peer(uid=7), "uid 7"),
        (Peer(address="192.0.2.7"), "192.0.2.7"),
        (Peer(address="::ffff:192.0.2.7"), "192.0.2.7"),
        (Peer(address="2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64"),
        (Peer(address="fe80::1%eth0"), "fe80::/64"),
        (Peer(address="::1"), "::1"),
        (Peer(address="no address"), "unknown"),
        (Peer(), "unknown"),
    ],
)
def test_where_somebody_sits(peer: Peer, place: str) -> None:
    assert place_of(peer) == place
