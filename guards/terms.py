"""Lists of terms: thousands of words or phrases, found in one pass (Aho and Corasick 1975).

Upper and lower case are one, and so are all single white spaces. `ass` in `class` is no match where terms are words.
"""

from collections.abc import Sequence
from pathlib import Path

import ahocorasick

from guards.spans import Span
from penstock.errors import ConfigError

SPACES = dict.fromkeys(map(ord, "\t\n\r\u00a0\u202f"), " ")


class Terms:
    """Finds any of these. `words`: only where no letter, digit or underscore stands before or behind."""

    def __init__(self, kind: str, terms: Sequence[str], *, words: bool = True) -> None:
        known = {folded(term.strip()) for term in terms} - {""}
        if not known:
            raise ConfigError(f"the list of terms {kind!r} is empty")
        self.kinds = (kind,)
        self.longest = max(map(len, known)) + words
        self._words = words
        self._terms = ahocorasick.Automaton(ahocorasick.STORE_LENGTH)
        for term in known:
            self._terms.add_word(term)
        self._terms.make_automaton()

    def search(self, text: str, start: int = 0) -> Span | None:
        seen = folded(text)
        best: Span | None = None
        for end, length in self._terms.iter(seen, start):
            span = Span(end + 1 - length, end + 1, self.kinds[0])
            if best and end + 1 - self.longest > best.start:
                break
            if (not best or (span.start, -span.end) < (best.start, -best.end)) and self._stands_alone(seen, span):
                best = span
        return best

    def alive(self, text: str) -> int:
        seen = folded(text)
        for start in range(max(0, len(seen) - self.longest), len(seen)):
            if self._words and start and inside(seen, start):
                continue
            if self._terms.match(seen[start:]):
                return start
        return len(seen)

    def _stands_alone(self, seen: str, span: Span) -> bool:
        return not self._words or not (inside(seen, span.start) or inside(seen, span.end))


def inside(text: str, at: int) -> bool:
    """Whether a word goes on from the character before to the one after."""
    return 0 < at < len(text) and in_word(text[at - 1]) and in_word(text[at])


def in_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def folded(text: str) -> str:
    """With as many characters as before: `STRASSE` and `strasse` are one, `Straße` is not."""
    seen = text.casefold()
    if len(seen) != len(text):
        seen = "".join(one if len(one := character.casefold()) == 1 else character for character in text)
    return seen.translate(SPACES)


def terms_of(file: Path) -> list[str]:
    """One on each line; empty lines and those that begin with # do not count. Raises ConfigError."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the list of terms {file} cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
