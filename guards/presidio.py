"""Presidio beside our own patterns, for whole texts: names and places, where it has a model for them.

It is no part of what Penstock installs (`pip install presidio-analyzer`, and a spaCy model), takes a hundred times the
CPU, and needs all of a text: in a stream everything is held until the end. The last text is kept until the next.
"""

import sys
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from guards.spans import Span
from penstock.config import nearest
from penstock.errors import ConfigError

# As personal.py calls them; others keep Presidio's name, in lower case.
KINDS = {"EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "PHONE_NUMBER": "phone"}
LEAST_SCORE = 0.4


class Presidio:
    """Finds what an analyzer does, an `AnalyzerEngine`; of its results those from `least_score` on count."""

    longest = sys.maxsize

    def __init__(
        self, analyzer: Any, entities: Sequence[str] = (), *, language: str = "en", least_score: float = LEAST_SCORE
    ) -> None:
        self._analyzer = analyzer
        known = analyzer.get_supported_entities(language=language)
        for entity in entities:
            if entity not in known:  # it would fail with every text
                raise ConfigError(f"presidio knows no {entity!r} in {language!r}{nearest(entity, known)}")
        self._entities = list(entities) or known
        self._language = language
        self._least_score = least_score
        self.kinds = tuple(KINDS.get(entity, entity.lower()) for entity in self._entities)
        self._text = ""
        self._spans: list[Span] = []

    def fresh(self) -> "Presidio":
        """One that knows no text yet, as each text has its own."""
        other = copy(self)
        other._text, other._spans = "", []
        return other

    def search(self, text: str, start: int = 0) -> Span | None:
        """Of a text that is the end of the one before, what was found in that: a filter drops what it has passed."""
        if not self._text.endswith(text):
            self._text, self._spans = text, self._found(text)
        before = len(self._text) - len(text)
        return next((span.moved(-before) for span in self._spans if span.start >= before + start), None)

    def alive(self, text: str) -> int:
        return 0

    def _found(self, text: str) -> list[Span]:
        results = self._analyzer.analyze(text, entities=self._entities, language=self._language)
        spans = [
            Span(result.start, result.end, KINDS.get(result.entity_type, result.entity_type.lower()))
            for result in results
            if result.score >= self._least_score
        ]
        return sorted(spans, key=lambda span: (span.start, -span.end))


class OneAtATime:
    """An analyzer for all policies that have it: it does not say that several threads may ask it."""

    def __init__(self, analyzer: Any) -> None:
        self._analyzer = analyzer
        self._lock = Lock()  # on `analyze`

    def get_supported_entities(self, language: str) -> list[str]:
        known: list[str] = self._analyzer.get_supported_entities(language=language)
        return known

    def analyze(self, text: str, entities: Sequence[str], language: str) -> Any:
        with self._lock:
            return self._analyzer.analyze(text, entities=list(entities), language=language)


@lru_cache(maxsize=4)
def analyzer(model: str, language: str = "en") -> Any:
    """With this spaCy model, a package's name or a directory. Raises ConfigError if it or Presidio is not there."""
    try:
        import presidio_analyzer
        import spacy
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError as error:
        raise ConfigError(f"presidio needs `pip install presidio-analyzer` in this environment: {error}") from error
    if not spacy.util.is_package(model) and not Path(model).is_dir():  # Presidio would download and install it
        raise ConfigError(
            f"presidio finds no spaCy model {model!r}: install it in this environment (`python -m spacy download "
            "NAME`), or name a directory that has one"
        )
    configuration = {"nlp_engine_name": "spacy", "models": [{"lang_code": language, "model_name": model}]}
    try:
        engine = NlpEngineProvider(nlp_configuration=configuration).create_engine()
    except (OSError, ValueError, SystemExit) as error:
        raise ConfigError(f"presidio cannot load the spaCy model {model!r}: {error}") from error
    return OneAtATime(presidio_analyzer.AnalyzerEngine(nlp_engine=engine, supported_languages=[language]))
