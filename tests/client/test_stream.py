"""Server-sent events, however the network cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.client import stream
from engine.client.stream import EventReader, ServerEvent, TooLong

TEXT = (
    'retry: 2500\r\n\r\n: a comment\n\nid: 1\nevent: history\ndata: {"a": 1}\n\n'
    "event:status\r\ndata:größe\r\ndata: two lines\r\n\r\ndata\r\rid: 2\nevent: end\n\nnonsense: x\ndata: unfinished"
)
EVENTS = [
    ServerEvent("history", '{"a": 1}', "1"),
    ServerEvent("status", "größe\ntwo lines", "1"),
    ServerEvent("message", "", "1"),
    ServerEvent("end", "", "2"),
]


@given(st.lists(st.integers(min_value=1, max_value=12), max_size=200))
def test_events_are_the_same_in_pieces_of_any_size(sizes: list[int]) -> None:
    raw, reader, found = TEXT.encode(), EventReader(), []
    place = 0
    for size in [*sizes, len(raw)]:
        found += reader.feed(raw[place : place + size])
        place += size
    assert found == EVENTS
    assert reader.retry_s == 2.5
    assert reader.last_id == "2"


@given(st.binary(max_size=300))
def test_whatever_comes_it_does_not_fall_over(raw: bytes) -> None:
    reader = EventReader("9")
    for event in reader.feed(raw):
        assert isinstance(event.data, str)


def test_an_event_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MOST_CHARACTERS", 1000)
    with pytest.raises(TooLong):
        list(EventReader().feed(b"data: " + b"x" * 2000))
    reader = EventReader()
    with pytest.raises(TooLong):
        for _ in range(2000):
            list(reader.feed(b"data: x\n"))


def test_a_reader_begins_with_the_last_id_of_the_stream_before() -> None:
    (event,) = EventReader("41").feed(b"event: status\ndata: x\n\n")
    assert event.id == "41"
