"""Guards that look for what has a place in a text, and so can be masked: personal data, secrets, terms."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from guards import presidio
from guards.guard import Action, Masking
from guards.personal import KINDS, personal
from guards.presidio import LEAST_SCORE
from guards.secrets import RULES, secrets
from guards.spans import Detector
from guards.terms import Terms as Automaton
from guards.terms import terms_of
from penstock.config import nearest
from penstock.steps import Parts

ACTION = "block: the request is refused, or the answer ends; mask: placeholders such as <EMAIL_1>; flag: only logged"


class Pii(Masking):
    """Personal data with a form of its own: cards, accounts, phone numbers, addresses of mail and of machines."""

    action: Action = Field("mask", description=ACTION)
    kinds: tuple[str, ...] = Field(KINDS, min_length=1, description="what is looked for")

    @field_validator("kinds")
    @classmethod
    def kinds_are_known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"unknown kind {kind!r}{nearest(kind, list(KINDS))}; there are {', '.join(KINDS)}")
        return kinds

    def detectors(self, parts: Parts) -> Sequence[Detector]:
        return of_kinds(self.kinds)


class Secrets(Masking):
    """Keys, tokens and passwords, by rules in gitleaks' format."""

    operators: ClassVar[frozenset[str]] = frozenset({"rules"})

    action: Action = Field("block", description=ACTION)
    rules: str | None = Field(None, description="a file of rules, such as gitleaks' own [default: those of Penstock]")

    def files(self, folder: Path) -> Sequence[Path]:
        return [folder / self.rules] if self.rules else []

    def detectors(self, parts: Parts) -> Sequence[Detector]:
        rules = Path(parts.folder) / self.rules if self.rules else RULES
        return of_rules(rules, stamp(rules))


class Terms(Masking):
    """Words and phrases that stand in a list, in upper or lower case."""

    operators: ClassVar[frozenset[str]] = frozenset({"file"})

    action: Action = Field("block", description=ACTION)
    kind: str = Field("term", pattern=r"^[a-z][a-z0-9_]{0,31}$", description="what the list is of, as logs name it")
    terms: tuple[str, ...] = Field((), description="the list itself")
    file: str | None = Field(None, description="a file with a term on each line; # begins a comment")
    words: bool = Field(True, description="whole words only")

    @model_validator(mode="after")
    def has_a_list(self) -> "Terms":
        if not self.terms and not self.file:
            raise ValueError("a list is needed: `terms: [...]` or `file: PATH`")
        return self

    def files(self, folder: Path) -> Sequence[Path]:
        return [folder / self.file] if self.file else []

    def detectors(self, parts: Parts) -> Sequence[Detector]:
        listed = terms_of(Path(parts.folder) / self.file) if self.file else []
        return [Automaton(self.kind, [*self.terms, *listed], words=self.words)]


class Presidio(Masking):
    """Names and places, as a spaCy model finds them: needs `pip install presidio-analyzer` and that model."""

    operators: ClassVar[frozenset[str]] = frozenset({"model"})

    action: Action = Field("mask", description=ACTION)
    on: Literal["input"] = Field("input", description="there is no other way: it needs all of a text")
    model: str = Field("en_core_web_sm", min_length=1, description="the spaCy model, a package's name or a directory")
    language: str = Field("en", pattern="^[a-z]{2,3}$", description="the model's language")
    entities: tuple[str, ...] = Field(
        ("PERSON", "LOCATION"), description="what is looked for, by Presidio's names [(): all that it knows]"
    )
    least_score: float = Field(LEAST_SCORE, ge=0, le=1, description="how sure it must be, of 1")

    def detectors(self, parts: Parts) -> Sequence[Detector]:
        found = presidio.analyzer(self.model, self.language)
        return [presidio.Presidio(found, self.entities, language=self.language, least_score=self.least_score)]


@lru_cache(maxsize=16)
def of_kinds(kinds: tuple[str, ...]) -> Sequence[Detector]:
    """Detectors know nothing of the texts before, and take a while to be made: all policies share them."""
    return personal(kinds)


@lru_cache(maxsize=16)
def of_rules(rules: Path, stamp: object) -> Sequence[Detector]:
    return secrets(rules)


def stamp(file: Path) -> tuple[int, int] | None:
    """Another one whenever the file is another."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
