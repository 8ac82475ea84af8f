"""Events come out whole, however the bytes were cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import sse
from penstock.errors import EngineError

texts = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), min_size=1)


@given(st.lists(texts, min_size=1), st.data(), st.sampled_from(["\n", "\r\n"]))
def test_any_cut_gives_the_same_events(lines: list[str], data: st.DataObject, newline: str) -> None:
    events = [f"data: {line}{newline}{newline}".encode() for line in lines]
    stream = b"".join(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    splitter = sse.EventSplitter()
    assert [event for piece in pieces for event in splitter.feed(piece)] == events
    assert splitter.rest == b""


def test_an_unfinished_event_stays_in_the_rest() -> None:
    splitter = sse.EventSplitter()
    assert splitter.feed(b"data: 1\n\ndata") == [b"data: 1\n\n"]
    assert splitter.rest == b"data"


def test_an_event_without_an_end_is_given_up() -> None:
    splitter = sse.EventSplitter()
    with pytest.raises(EngineError, match="without an end"):
        splitter.feed(b"x" * (sse.MAX_EVENT_BYTES + 1))


def test_parsing_keeps_the_name_and_joins_the_data_lines() -> None:
    assert sse.parse(b": hello\nevent: ping\ndata: a\ndata:b\nid: 3\n\n") == sse.Event("ping", b"a\nb")
