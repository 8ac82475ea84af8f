"""Skimming beside the hold-back that looks at every piece."""

from hypothesis import given, settings
from hypothesis import strategies as st

from guards.hold_back import HoldBack
from guards.personal import KINDS
from guards.places import of_kinds, of_rules, stamp
from guards.secrets import RULES
from guards.skimming import Lexicon, Skimming
from guards.spans import Span
from guards.terms import Terms
from guards.vault import Vault

DETECTORS = [
    *of_kinds(KINDS),
    *of_rules(RULES, stamp(RULES)),
    Terms("term", ["red river", "delta", " x y"]),
    Terms("part", ["ver", "r d"], words=False),
]
LEXICON = Lexicon(DETECTORS)
VAULT = Vault()
VAULT.placeholder("email", "ann@example.org", unmask=True)
WORD = st.sampled_from(
    """the river red Red delta deltas y x 4111 1111 41 a@ ann@example.org password is = hunter2hunter2 AKIA <EMAIL_1>
    <EMAIL_ 1> phone: +49 30 1234567 . , é 078-05-1120 DE89 3704 0044 0532 0130 00 ing er\n \n ^ ( ::1 1.2.3.4""".split(
        " "
    )
)
PIECE = st.one_of(WORD.map(" {}".format), WORD, st.text(max_size=3))


def marked(span: Span, text: str) -> str:
    return f"[{span.kind}]"


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(PIECE, max_size=25))
def test_what_is_skimmed_comes_out_as_what_is_looked_at(pieces: list[str]) -> None:
    detectors = [VAULT, *DETECTORS]
    whole = HoldBack(detectors, marked)
    skimmed = Skimming(detectors, marked, LEXICON)
    expected = whole.feed("".join(pieces)) + whole.flush()
    out = ""
    for piece in pieces:
        out += skimmed.feed(piece)
        assert expected.startswith(out)
    assert out + skimmed.flush() == expected
    again = Skimming(detectors, marked, LEXICON)  # every segment is known by now
    assert "".join([*map(again.feed, pieces), again.flush()]) == expected


def test_words_that_are_known_are_not_looked_at_again() -> None:
    skimmed = Skimming(DETECTORS, marked, LEXICON)
    words = [f" {word}" for word in ("once", "upon", "a", "time", "there", "was", "nothing", "else")] * 2
    passed = [skimmed.feed(word) for word in words]
    assert all(passed[2:])
    before = skimmed.seconds
    passed = [skimmed.feed(word) for word in words]
    assert passed[1:] == words[:-1]
    assert skimmed.seconds == before
    assert skimmed.feed(" 4") == " else"
    assert skimmed.feed("111 1111 1111 1111") == ""
    assert skimmed.flush() == " [credit_card]"


def test_what_may_go_on_is_held_and_passes_with_the_word_that_ends_it() -> None:
    skimmed = Skimming(DETECTORS, marked, LEXICON)
    passed = [skimmed.feed(piece) for piece in (" in", " autumn", " 2026", " was", " here")]
    assert passed[2:] == ["autumn", "", " 2026 was"]
    assert skimmed.flush() == " here"
