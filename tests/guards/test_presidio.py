"""Presidio as a detector, with a stand-in; and itself, where it is installed (`pip install presidio-analyzer`)."""

import importlib.util
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.scripted import Scripted
from guards import presidio
from guards.hold_back import HoldBack
from guards.places import Presidio as Guard
from guards.presidio import Presidio, analyzer
from penstock.errors import ConfigError, StartError
from tests.guards.policies import behind
from tests.guards.streams import streamed, whole
from tests.prompting.conftest import Bench, asking, told

INSTALLED = importlib.util.find_spec("presidio_analyzer") is not None


@dataclass(frozen=True)
class Result:
    entity_type: str
    start: int
    end: int
    score: float


class Capitals:
    """An analyzer that takes every word with a capital for a person, surely if it is long."""

    asked = 0

    def get_supported_entities(self, language: str) -> list[str]:
        return ["PERSON"]

    def analyze(self, text: str, entities: Sequence[str], language: str) -> list[Result]:
        self.asked += 1
        words = [(at, word) for at, word in self._words(text) if word[0].isupper()]
        return [Result("PERSON", at, at + len(word), 0.9 if len(word) > 2 else 0.1) for at, word in reversed(words)]

    def _words(self, text: str) -> Any:
        at = 0
        for word in text.split(" "):
            if word:
                yield at, word
            at += len(word) + 1


def test_a_whole_text_is_analyzed_once_and_replaced_from_left_to_right() -> None:
    capitals = Capitals()
    detector = Presidio(capitals)
    text = "it was Ada and Grace of IT who met Alan"
    expected = "it was <person> and <person> of IT who met <person>"
    assert detector.kinds == ("person",)
    assert streamed([detector], list(text)) == expected
    assert capitals.asked == 1
    assert whole([detector], text) == expected


@pytest.mark.skipif(INSTALLED, reason="presidio-analyzer is installed")
def test_where_it_is_not_installed_that_is_told() -> None:
    with pytest.raises(ConfigError, match="pip install presidio-analyzer"):
        analyzer("en_core_web_sm")
    with pytest.raises(StartError, match="pip install presidio-analyzer"):
        Guard().detectors(Bench(Path(".")))


@pytest.mark.anyio
async def test_it_is_a_guard_of_requests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()

    class Watched(Capitals):
        def analyze(self, text: str, entities: Sequence[str], language: str) -> list[Result]:
            threads.add(threading.get_ident())
            assert list(entities) == ["PERSON"]
            return super().analyze(text, entities, language)

    monkeypatch.setattr(presidio, "analyzer", lambda model, language: Watched())
    for fail in ("open", "closed"):
        guard = Guard(entities=("PERSON",), fail=fail)
        engine = Scripted(["Hello <PERSON_1>"])
        turns = [{"role": "user", "content": text} for text in ("it was Grace and Ada", "Ada", "and Grace")]
        reply, _ = await told(behind(bench, engine, guard), asking(messages=turns))
        sent = [turn.text for turn in engine.calls[0].messages]
        assert sent == ["it was <PERSON_1> and <PERSON_2>", "<PERSON_2>", "and <PERSON_1>"]
        assert reply.message.text == "Hello <PERSON_1>"
    assert threading.get_ident() not in threads


def test_what_was_found_in_one_text_is_not_taken_for_another_that_ends_it() -> None:
    capitals = Capitals()
    filtered = HoldBack([Presidio(capitals)], lambda span, _: f"<{span.kind}>")
    said = [filtered.feed(text) + filtered.flush() for text in ("McAda", "Ada", "ada")]
    assert said == ["<person>", "<person>", "ada"]
    assert capitals.asked == 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A spaCy model that knows two persons."""
    pytest.importorskip("presidio_analyzer", reason="presidio-analyzer is not installed")
    import spacy

    folder = tmp_path_factory.mktemp("spacy")
    language = spacy.blank("en")
    persons = ("Ada Lovelace", "Grace")
    language.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": name} for name in persons])
    language.to_disk(folder)
    return str(folder)


@pytest.mark.anyio
async def test_presidio_itself_masks_names_and_cards(bench: Bench, model: str) -> None:
    guard = Guard(model=model, entities=("PERSON", "CREDIT_CARD"), unmask=True)
    engine = Scripted(["<PERSON_1> has paid"])
    text = "我 asked Ada Lovelace, who pays with 4111 1111 1111 1111, and Grace, who pays with 4111 1111 1111 1112"
    reply, _ = await told(behind(bench, engine, guard), asking(text))
    assert engine.calls[0].messages[0].text == (
        "我 asked <PERSON_1>, who pays with <CREDIT_CARD_1>, and <PERSON_2>, who pays with 4111 1111 1111 1112"
    )
    assert reply.message.text == "Ada Lovelace has paid"


def test_all_policies_share_an_analyzer_of_presidio(model: str) -> None:
    found = [Guard(model=model, entities=entities).detectors(Bench(Path("."))) for entities in (("PERSON",), ())]
    assert found[0][0].kinds == ("person",)
    assert {"person", "credit_card", "iban"} <= set(found[1][0].kinds)
    assert analyzer(model) is analyzer(model)


def test_what_presidio_does_not_know_is_told_at_the_start(model: str) -> None:
    with pytest.raises(ConfigError, match="no 'PERSN' in 'en', did you mean 'PERSON'"):
        Guard(model=model, entities=("PERSN",)).detectors(Bench(Path(".")))
    with pytest.raises(ConfigError, match="finds no spaCy model 'en_core_web_nope': install it"):
        Guard(model="en_core_web_nope").detectors(Bench(Path(".")))


def test_an_entity_that_an_analyzer_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'PERSON'"):
        Presidio(Capitals(), ("PERSONS",))
