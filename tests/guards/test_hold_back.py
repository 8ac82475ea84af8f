"""The filter on streams, beside a naive one that has the whole text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.hold_back import HoldBack, found
from guards.spans import Span
from tests.guards.streams import pieces_of, streamed, whole


class Words:
    """Finds these words. What may still become one is found by trying every end of the text."""

    def __init__(self, kind: str, *words: str, tail: str = "") -> None:
        self.kinds = (kind,)
        self.words = words
        self.tail = tail
        self.longest = max(map(len, words))

    def search(self, text: str, start: int = 0) -> Span | None:
        spans = [
            Span(at, at + len(word), self.kinds[0], tail=self.tail)
            for word in self.words
            if (at := text.find(word, start)) >= 0
        ]
        return min(spans, key=lambda span: (span.start, -span.end), default=None)

    def alive(self, text: str) -> int:
        ends = (at for at in range(len(text)) if any(word.startswith(text[at:]) for word in self.words))
        return next(ends, len(text))


WORD = st.text("ab", min_size=1, max_size=4)
DETECTORS = st.lists(
    st.builds(
        lambda kind, words, tail: Words(kind, *words, tail=tail),
        st.sampled_from("xyz"),
        st.lists(WORD, min_size=1, max_size=3),
        st.sampled_from(["", "", "a", "ab"]),
    ),
    max_size=3,
)


@given(DETECTORS, st.text("abc", max_size=24), st.lists(st.integers(0, 100), max_size=8))
def test_every_split_gives_what_the_whole_text_gives(detectors: list[Words], text: str, cuts: list[int]) -> None:
    assert streamed(detectors, pieces_of(text, cuts)) == whole(detectors, text)


@given(DETECTORS, st.text("abc", max_size=24), st.integers(0, 24), st.lists(st.integers(0, 100), max_size=8))
def test_what_is_out_already_does_not_come_out_again_and_a_match_may_begin_in_it(
    detectors: list[Words], text: str, at: int, cuts: list[int]
) -> None:
    sent, rest = text[:at], text[at:]
    filtered = HoldBack(detectors, lambda span, _: f"<{span.kind}>", sent)
    came = "".join([*map(filtered.feed, pieces_of(rest, cuts)), filtered.flush()])
    expected, end = "", len(sent)
    for span in found(detectors, text):
        if span.end > len(sent):
            expected += text[end : max(span.start, end)] + f"<{span.kind}>"
            end = span.end
    assert came == expected + text[end:]


@given(DETECTORS, st.text("abc", max_size=24))
def test_nothing_is_held_that_cannot_become_a_match_and_nothing_else_is_sent(detectors: list[Words], text: str) -> None:
    filtered = HoldBack(detectors, lambda span, _: "")
    for character in text:
        filtered.feed(character)
        if not filtered._swallowing:
            assert filtered.held <= filtered.longest


def test_a_match_goes_on_as_long_as_its_tail_does() -> None:
    seen: list[tuple[Span, str]] = []

    def star(span: Span, text: str) -> str:
        seen.append((span, text))
        return "*"

    filtered = HoldBack([Words("key", "sk-", tail="0123456789")], star)
    assert [filtered.feed(piece) for piece in ("my s", "k-", "12", "345", "6, 7")] == ["my ", "", "", "", "*, 7"]
    assert seen == [(Span(3, 12, "key"), "sk-123456")]


def test_what_is_replaced_by_none_stays() -> None:
    filtered = HoldBack([Words("w", "bad")], lambda span, _: None)
    assert filtered.feed("a bad b") + filtered.flush() == "a bad b"


@pytest.mark.parametrize("pieces", [["so bad it is"], list("so bad it is"), ["so b", "ad it", " is"]])
def test_an_answer_that_is_ended_keeps_what_stood_before(pieces: list[str]) -> None:
    class Blocked(Exception):
        pass

    def end(span: Span, text: str) -> str:
        raise Blocked

    filtered = HoldBack([Words("w", "bad")], end)
    out: list[str] = []
    with pytest.raises(Blocked):
        out.extend(map(filtered.feed, pieces))
    assert filtered.feed("more") == ""
    assert "".join(out) + filtered.flush() == "so "
    assert filtered.feed("next ") + filtered.flush() == "next "


def test_everything_found_in_a_long_text_has_its_place() -> None:
    text = "x" * 5000 + "bad" + "y" * 3000 + "bad"
    assert found([Words("w", "bad")], text) == [Span(5000, 5003, "w"), Span(8003, 8006, "w")]


class Evidence(Words):
    """A secret `x...` behind a word, which is its evidence."""

    def search(self, text: str, start: int = 0) -> Span | None:
        span = super().search(text, start)
        at = text.find("x", span.end) if span else -1
        return Span(at, at + 1, "secret", span.start) if span and at >= 0 else None

    def alive(self, text: str) -> int:
        return min(super().alive(text), at if (at := text.find(self.words[0])) >= 0 else len(text))


def test_evidence_is_a_text_of_its_own_and_offsets_are_those_of_the_whole() -> None:
    seen: list[tuple[int, int, str]] = []
    filtered = HoldBack(
        [Evidence("e", "key"), Words("w", "bad")], lambda span, text: seen.append((span.start, span.end, text))
    )
    text = "a key of bad x and bad"
    assert "".join(map(filtered.feed, text)) + filtered.flush() == text
    assert seen == [(9, 12, "bad"), (13, 14, "x"), (19, 22, "bad")]


@pytest.mark.parametrize("text", ["a key of bad x", "a key of ok x bad", "so bad"])
def test_what_stood_before_the_end_comes_out_wherever_it_ends(text: str) -> None:
    def end(span: Span, matched: str) -> None:
        if matched == "bad":
            raise InterruptedError

    filtered = HoldBack([Evidence("e", "key"), Words("w", "bad")], end)
    out: list[str] = []
    with pytest.raises(InterruptedError):
        out.extend(filtered.flush() if piece is None else filtered.feed(piece) for piece in (text[:-1], text[-1], None))
    assert "".join(out) + filtered.flush() == text[: text.index("bad")]
