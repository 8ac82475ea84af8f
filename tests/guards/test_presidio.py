"""Presidio as a detector. Its own analyzer is asked where it is installed."""

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
