"""Reasoning and answer, parted at a marker."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.chat import Delta
from prompting.split import Split, overlap


def parted(pieces: list[str], *, reasoning: str = "", answering: bool = False) -> tuple[str, str, bool]:
    split = Split("Answer:", answering=answering)
    told = [split.take(Delta(reasoning=reasoning)), *(split.take(Delta(content=piece)) for piece in pieces)]
    told.append(split.rest())
    return "".join(delta.reasoning for delta in told), "".join(delta.content for delta in told), split.found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two and two.\nAnswer: 4", ("Two and two.\n", "4", True)),
        ("**Answer:** 4", ("**", "4", True)),
        ("Answer:\n\n* one\n* two", ("", "* one\n* two", True)),
        ("Answer: 4 Answer: 5", ("", "4 Answer: 5", True)),
        ("I cannot Answ", ("I cannot Answ", "", False)),
        ("", ("", "", False)),
    ],
)
def test_the_marker_parts_them(text: str, expected: tuple[str, str, bool]) -> None:
    assert parted([text]) == expected


def test_where_reasoning_came_by_itself_all_content_is_the_answer() -> None:
    assert parted(["It is 4, ", "Answer: 4"], reasoning="Hm.") == ("Hm.", "It is 4, Answer: 4", True)
    assert parted([" Answ", "er: 4"], reasoning="Hm.") == ("Hm.", "4", True)
    assert parted(["An"], answering=True) == ("", "An", True)


@given(
    st.lists(st.sampled_from(["Answer:", "Answer", "Ans", ":", "*", "**", " ", "\n", "4", "so"]), max_size=8),
    st.lists(st.integers(0, 40), max_size=6),
    st.booleans(),
)
def test_it_is_the_same_however_the_text_is_cut(words: list[str], cuts: list[int], answering: bool) -> None:
    text = "".join(words)
    places = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    whole = parted([text], answering=answering)
    assert parted(pieces, answering=answering) == whole
    assert parted(list(text), answering=answering) == whole


def test_only_what_may_be_the_marker_is_held_back() -> None:
    assert overlap("so An", "Answer:") == 2
    assert overlap("so", "Answer:") == 0
    assert overlap("aab", "aabaac") == 3
