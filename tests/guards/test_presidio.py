"""Presidio as a detector. Its own analyzer is asked where it is installed."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from guards.presidio import Presidio, analyzer
from penstock.errors import ConfigError
from tests.guards.streams import streamed, whole

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
