"""The encoding of the feed: events survive a round trip, however the stream is split, and garbage is no event."""

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from revocation_client.claims import CLAIMS
from revocation_client.feed_events import (
    EVENT_MAX_BYTES,
    Change,
    Event,
    FeedError,
    Heartbeat,
    Parser,
    Reset,
    Snapshot,
    Synced,
    encode,
)
from revocation_client.revocation import Revocation

_TIMES = st.one_of(st.floats(0, 1e12), st.integers(0, 1 << 40).map(float))
_VALUES = st.text(st.characters(), max_size=40)  # lone surrogates and line ends too: foreign writers may use any key
_NONE = st.none()
_REVOCATIONS = st.builds(
    Revocation, st.sampled_from([*CLAIMS]), _VALUES, _NONE | _TIMES, _NONE, _NONE | _TIMES, _NONE, _NONE
)
_LISTS = st.lists(_REVOCATIONS, max_size=5)
_CURSORS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)
_EVENTS = st.one_of(
    st.builds(Snapshot, _LISTS),
    st.builds(Synced, _CURSORS, st.booleans(), st.floats(0, 1e9)),
    st.builds(Change, _CURSORS, _LISTS),
    st.builds(Heartbeat, st.floats(0, 1e9) | st.just(math.inf), _TIMES, st.booleans()),
    st.builds(Reset, st.sampled_from(["unknown_cursor", "too_slow", "shutdown", "lost"])),
)


def read(chunks: Iterable[bytes], parser: Parser | None = None) -> list[Event | None]:
    """Return the events in these chunks."""
    parser = parser or Parser()
    return [event for chunk in chunks for event, _unknown in parser.feed(chunk)]


def text_of(name: str, data: str, ident: str | None) -> bytes:
    """Return the text of an event with this data."""
    return f"event: {name}\nid: {ident}\ndata: {data}\n\n".replace("id: None\n", "").encode()


def cut(text: bytes, places: list[int]) -> list[bytes]:
    """Return the text in pieces, cut at these places. Some may be empty."""
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(_EVENTS, max_size=5), st.lists(st.integers(0, 1 << 16), max_size=20))
def test_what_is_written_is_what_is_read(events: list[Event], places: list[int]) -> None:
    """Encoded events are parsed back unchanged, with any text in them and wherever the stream is cut."""
    assert read(cut(b"".join(map(encode, events)), places)) == events


@given(_EVENTS, st.integers(1, 100))
def test_a_stream_that_ends_in_an_event_did_not_send_it(event: Event, missing: int) -> None:
    """An event without its final blank line is not yielded, even if all of its data arrived."""
    text = encode(event)
    assert read([text[: max(0, len(text) - missing)]]) == []


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_is_an_error_or_nothing(chunks: list[bytes]) -> None:
    """Bytes that are no feed yield no event, and raise no exception but FeedError."""
    with contextlib.suppress(FeedError):
        assert not any(read(chunks))


@given(
    st.sampled_from(["snapshot", "change", "synced", "heartbeat", "reset"]),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["revocations", "complete", "behind_seconds", "sent_at", "reason"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    ),
)
def test_wrong_forms_are_refused(name: str, form: Any) -> None:
    """Any JSON as the data of an event raises FeedError, or gives an event that survives a round trip."""
    try:
        (event,) = read([text_of(name, json.dumps(form), "1-1.n")])
    except FeedError:
        return
    assert event is not None
    assert read([encode(event)]) == [event]


@pytest.mark.parametrize(
    ("name", "data", "ident"),
    [
        ("snapshot", '{"revocations":[["jti","a",1]]}', None),
        ("snapshot", '{"revocations":[["jti",7,1,null]]}', None),
        ("snapshot", '{"revocations":[["jti","a","1",null]]}', None),
        ("snapshot", '{"revocations":[["jti","a",true,null]]}', None),
        ("snapshot", '{"revocations":[["jti","a",NaN,null]]}', None),
        ("snapshot", '{"revocations":[["jti","a",1e999,null]]}', None),
        ("snapshot", '{"revocations":[[["jti"],"a",1,null]]}', None),
        ("snapshot", '{"revocations":{"jti":1}}', None),
        ("snapshot", "[" * 100_000, None),
        ("snapshot", "", None),
        ("change", '{"revocations":[]}', None),
        ("change", '{"revocations":[]}', "two words"),
        ("change", '{"revocations":[]}', "1-1\r\nX-Header: 1"),
        ("change", '{"revocations":[]}', "x" * 201),
        ("synced", '{"complete":1,"clock_skew_seconds":60}', "1-1.n"),
        ("synced", '{"complete":true,"clock_skew_seconds":60}', None),
        ("synced", '{"complete":true}', "1-1.n"),
        ("synced", '{"complete":true,"clock_skew_seconds":-1}', "1-1.n"),
        ("heartbeat", '{"behind_seconds":-1,"sent_at":1,"complete":true}', None),
        ("heartbeat", '{"behind_seconds":0,"sent_at":null,"complete":true}', None),
        ("heartbeat", '{"behind_seconds":0,"sent_at":1e999,"complete":true}', None),
        ("heartbeat", '{"behind_seconds":0,"sent_at":1}', None),
    ],
)
def test_an_event_of_a_wrong_form_is_an_error(name: str, data: str, ident: str | None) -> None:
    """Missing members, wrong types, invalid numbers and cursors unfit for a header raise a FeedError."""
    with pytest.raises(FeedError, match=f"an event named {name}"):
        read([text_of(name, data, ident)])


@pytest.mark.parametrize(
    ("text", "event", "unknown"),
    [
        (b"event: news\ndata: {}\n\n", None, "the event 'news'"),
        (b"data: x\n\n", None, "the event 'message'"),
        (b"event: " + b"x" * 500 + b"\ndata: {}\n\n", None, f"the event '{'x' * 39}"),
        (
            b'event: snapshot\ndata: {"revocations":[["device_id","a",1,null],["jti","b",1,null]]}\n\n',
            Snapshot([Revocation("jti", "b", 1, None)]),
            "a revocation by 'device_id'",
        ),
        (
            b'event: change\nid: 1\ndata: {"revocations":[["jti","a",1,null,"more"]]}\n\n',
            Change("1", [Revocation("jti", "a", 1, None)]),
            "a revocation by 'jti'",
        ),
        (
            b'event: heartbeat\ndata: {"behind_seconds":0,"sent_at":1,"complete":true,"load":2}\n\n',
            Heartbeat(0, 1, complete=True),
            "the member 'load'",
        ),
        (b'event: reset\ndata: {"reason":"tired"}\n\n', Reset("lost"), None),
        (b'event: reset\ndata: {"reason":["lost"]}\n\n', Reset("lost"), None),
    ],
)
def test_what_a_later_version_adds_is_named_and_no_error(text: bytes, event: Event | None, unknown: str | None) -> None:
    """An unknown event, claim, column or member is skipped and named. An unknown reset reason is read as `lost`."""
    assert list(Parser().feed(text)) == [(event, unknown)]


def test_other_fields_of_server_sent_events_are_ignored() -> None:
    """A `retry` field and an event without data are ignored (WHATWG HTML section 9.2.6)."""
    assert read([b"retry: 5\nevent\n\n"]) == []


@pytest.mark.parametrize("text", [b"data: " + b"x" * 2000, b":\n" * 2000, b"data: x\n" * 500, b"x" * 1000 + b"\n"])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_an_event_too_large_is_refused_before_it_is_kept(text: bytes, size: int) -> None:
    """A line or event without end raises FeedError, and the parser never holds more than the limit."""
    parser = Parser(max_bytes=999)
    pieces = (text[start : start + size] for start in range(0, len(text), size))
    most = 0

    def watched() -> Iterator[bytes]:
        nonlocal most
        for piece in pieces:
            yield piece
            most = max(most, len(parser._unfinished))

    with pytest.raises(FeedError, match="larger than 999 bytes"):
        read(watched(), parser)
    assert most <= 999


def test_many_small_events_are_not_one_large() -> None:
    """The size limit is for each event, not for the stream."""
    parser = Parser(max_bytes=200)
    text = encode(Heartbeat(0.0, 1.0, True))
    assert len(read([text] * 1000, parser)) == 1000


def test_the_largest_event_of_the_service_passes() -> None:
    """A change with 2,000 values of 256 characters, each escaped in twelve bytes, is within the size limit."""
    most = [Revocation("client_id", "\U0001f600" * 256, 1e12 + 0.123456, None, 1e12 + 0.123456)] * 2000
    text = encode(Change("1-1.n", most))
    assert len(text) < EVENT_MAX_BYTES
    assert read([text]) == [Change("1-1.n", most)]


@pytest.mark.parametrize("event", [Snapshot([Revocation("jti", "a", math.nan, None)]), Heartbeat(0.0, math.inf, True)])
def test_a_time_that_is_no_number_is_not_written(event: Event) -> None:
    """A time that is no finite number raises ValueError when it is encoded, so it ends no subscriber's stream."""
    with pytest.raises(ValueError, match="JSON compliant"):
        encode(event)


def test_reasons_and_actors_are_not_in_it() -> None:
    """The feed omits the reason and the actor of a revocation, which not every application may know."""
    text = encode(Snapshot([Revocation("sub", "alice", 9.0, 5.0, 4.0, reason="secret-reason", revoked_by="ops")]))
    assert text == b'event: snapshot\ndata: {"revocations":[["sub","alice",9,4]]}\n\n'
