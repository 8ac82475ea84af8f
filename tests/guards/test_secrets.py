"""Secrets drawn by the providers' formats, rules in gitleaks' format, and files that cannot be used."""

import math
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.guards import in_prose, is_gone
from benchmarks.made_secrets import BASE64, MADE, NEGATIVES, drawn, pem
from guards.hold_back import HoldBack, found
from guards.patterns import detectors
from guards.personal import PATTERNS
from guards.secrets import entropy, patterns, secrets
from guards.terms import Terms
from penstock.errors import ConfigError
from tests.guards.streams import pieces_of, streamed, whole

OWN = secrets()
EVERYTHING = [*detectors([*PATTERNS, *patterns()]), Terms("topic", ["turbine", "water gate"])]


@pytest.mark.parametrize("name", MADE)
def test_secrets_of_every_format_are_masked(name: str) -> None:
    assert all(is_gone(OWN, MADE[name](Random(seed))) for seed in range(5))


@pytest.mark.parametrize("name", NEGATIVES)
def test_what_only_looks_like_one_is_not(name: str) -> None:
    assert not any(found(OWN, in_prose(NEGATIVES[name](Random(seed)))) for seed in range(10))


NOISE = st.sampled_from(
    ["The turbine", " key: ", "a@b.de", "4111 1111 1111 1111", "\u6f22\u00e9", "sk-", "eyJ", "\n", "-", "=9"]
)
SECRET = st.builds(lambda name, seed: MADE[name](Random(seed)), st.sampled_from([*MADE]), st.integers(0, 9))
MIXED = st.lists(st.one_of(NOISE, SECRET), max_size=6).map("".join)


@given(MIXED, st.lists(st.integers(0, 10**6), max_size=40))
def test_every_split_of_any_text_gives_what_the_whole_gives(text: str, cuts: list[int]) -> None:
    assert streamed(EVERYTHING, pieces_of(text, cuts)) == streamed(EVERYTHING, [text]) == whole(EVERYTHING, text)


@given(st.sampled_from([*MADE]), st.integers(0, 10**6), st.integers(1, 4))
@example("Linear key", 0, 1)  # `api` begins a rule of its own, and stands in `lin_api_`
def test_no_beginning_of_a_secret_is_ever_sent(name: str, seed: int, step: int) -> None:
    secret = MADE[name](Random(seed))
    assert is_gone(OWN, secret)
    filtered = HoldBack(OWN, lambda span, text: f"[{span.kind}]")
    sent = "".join(filtered.feed(secret[i : i + step]) for i in range(0, len(secret), step))  # and then it is cut off
    span, *_ = found(OWN, secret)
    assert sent in secret[: span.start] + f"[{span.kind}]" + secret[span.end :]
    assert not sent[span.start :] or sent[span.start :].startswith("[")


def test_a_private_key_is_masked_to_its_end_and_no_further() -> None:
    key = pem(Random(1))
    masked = streamed(OWN, list(f"Keep it:\n{key}\nThen deploy."))
    assert masked == "Keep it:\n<private_key>END RSA PRIVATE KEY-----\nThen deploy."
    quoted = "".join(f"> {line}\n" for line in key.splitlines())
    assert streamed(OWN, list(f"{quoted}Hm.")) == "> <private_key>END RSA PRIVATE KEY-----\nHm."
    lines = "\n".join(f'    "{line}\\\\n" +' for line in key.splitlines())
    assert streamed(OWN, list(f"{lines};")) == '    "<private_key>END RSA PRIVATE KEY-----\\\\n" +;'
    cut = key[: len(key) // 2]
    assert streamed(OWN, list(f"{cut}. Then deploy.")) == "<private_key>. Then deploy."


def test_rules_mean_what_they_mean_to_gitleaks(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(
        """
        [allowlist]
        regexes = ['''^allowed''']
        stopwords = ["nothing"]

        [[rules]]
        id = "acme-token"
        regex = '''(?i)[\\w.-]{0,50}?(?:acme)(?:[ \\t\\w.-]{0,20})['"\\s]{0,3}(?:=|:)['"\\s]{0,5}([a-z0-9]{12})\\b'''
        entropy = 3
        keywords = ["acme"]
        [[rules.allowlists]]
        regexTarget = "match"
        regexes = ['''acme_test''']

        [[rules]]
        id = "pair"
        regex = '''pair-([a-z]+)-([a-z]+)'''
        secretGroup = 2

        [[rules]]
        id = "named"
        regex = '''named-[a-z]{4}|[0-9]{6}'''
        keywords = ["Named"]

        [[rules]]
        id = "of-files"
        regex = '''plain'''
        path = '''\\.xml$'''
        """
    )

    def masked(text: str) -> str:
        filters = secrets(file)
        assert streamed(filters, list(text)) == streamed(filters, [text])
        return streamed(filters, [text])

    assert masked("my.ACME_key = 'q1w2e3r4t5y6';") == "my.ACME_key = '<acme_token>';"
    assert masked("acme = aaaaaaaaaaaa ") == "acme = aaaaaaaaaaaa "  # too plain
    assert masked("acme = allowed12345 ") == "acme = allowed12345 "
    assert masked("acme = x1nothing2y3 ") == "acme = x1nothing2y3 "
    assert masked("acme_test = q1w2e3r4t5y6 ") == "acme_test = q1w2e3r4t5y6 "
    assert masked("pair-one-two!") == "pair-one-<pair>!"
    assert masked("plain") == "plain"
    assert masked("named: 123456, NAMED-abcd named-abcd") == "named: 123456, NAMED-abcd <named>"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[[rules]\n", "cannot be read"),
        ("title = 'x'\n", "no [[rules]] with a regex"),
        ("[[rules]]\nid = 'a'\nregex = '(?=x)'\n", "rule 'a'"),
        ("[[rules]]\nid = 'a'\nregex = 'x{2000}'\n", "rule 'a'"),
        ("[[rules]]\nregex = 'xy'\n", "rule '?'"),
        ("[[rules]]\nid = 'a'\nregex = '[0-9]*'\n", "empty text"),
        ("[[rules]]\nid = 'a'\nregex = '\u6f22'\n", "rule 'a'"),
        ("[[rules]]\nid = 'a'\nregex = '(?:[a-z]{500}){3}'\n", "rule 'a'"),
        ("[[rules]]\nid = 'a'\nregex = 'x(y)'\nsecretGroup = 2\n", "secretGroup is 2"),
        ("[[rules]]\nid = 'a'\nregex = 'xy'\n[[rules.allowlists]]\nregexes = ['(']\n", "rule 'a'"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=str(file)) as raised:
        secrets(file)
    assert told in raised.value.message


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        secrets(tmp_path / "none.toml")


def test_entropy_is_shannons() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abab") == 1
    assert math.isclose(entropy("0123456789abcdef"), 4)
    assert 5 < entropy(drawn(Random(0), BASE64, 200)) < 6
