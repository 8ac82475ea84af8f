"""Scripts and sizes: a light check that a text is written in letters that are expected.

A script is not a language: Latin letters are those of hundreds, and a text in transliteration passes. Letters are told
by the Unicode blocks of the common scripts; letters of others (Tamil among those known, Cherokee not) are `other`.
Digits, punctuation, symbols and marks belong to every script.
"""

import bisect
import difflib
from collections import Counter
from collections.abc import Collection

from guards.spans import Span
from penstock.errors import ConfigError

# The first character of each block or row of blocks, and its script (Unicode 16, Blocks.txt); "" where it is none's.
BLOCKS = (
    (0x0000, "latin"),
    (0x0300, ""),
    (0x0370, "greek"),
    (0x0400, "cyrillic"),
    (0x0530, "armenian"),
    (0x0590, "hebrew"),
    (0x0600, "arabic"),
    (0x0700, "other"),
    (0x0750, "arabic"),
    (0x0780, "other"),
    (0x0860, "arabic"),
    (0x0900, "devanagari"),
    (0x0980, "bengali"),
    (0x0A00, "gurmukhi"),
    (0x0A80, "gujarati"),
    (0x0B00, "other"),
    (0x0B80, "tamil"),
    (0x0C00, "telugu"),
    (0x0C80, "kannada"),
    (0x0D00, "malayalam"),
    (0x0D80, "sinhala"),
    (0x0E00, "thai"),
    (0x0E80, "other"),
    (0x10A0, "georgian"),
    (0x1100, "hangul"),
    (0x1200, "ethiopic"),
    (0x13A0, "other"),
    (0x1C80, "cyrillic"),
    (0x1C90, "georgian"),
    (0x1CC0, "other"),
    (0x1D00, "latin"),
    (0x1DC0, ""),
    (0x1E00, "latin"),
    (0x1F00, "greek"),
    (0x2000, ""),
    (0x2C00, "other"),
    (0x2C60, "latin"),
    (0x2C80, "other"),
    (0x2DE0, "cyrillic"),
    (0x2E00, ""),
    (0x2E80, "han"),
    (0x3000, ""),
    (0x3005, "han"),
    (0x3008, ""),
    (0x3040, "kana"),
    (0x3100, "han"),
    (0x3130, "hangul"),
    (0x3190, "han"),
    (0x31F0, "kana"),
    (0x3200, ""),
    (0x3400, "han"),
    (0xA000, "other"),
    (0xA640, "cyrillic"),
    (0xA6A0, "other"),
    (0xA720, "latin"),
    (0xA7FF, "other"),
    (0xA8E0, "devanagari"),
    (0xA900, "other"),
    (0xA960, "hangul"),
    (0xA980, "other"),
    (0xAB30, "latin"),
    (0xAB70, "other"),
    (0xAC00, "hangul"),
    (0xD800, ""),
    (0xF900, "han"),
    (0xFB00, "latin"),
    (0xFB13, "armenian"),
    (0xFB1D, "hebrew"),
    (0xFB50, "arabic"),
    (0xFE00, ""),
    (0xFE70, "arabic"),
    (0xFEFF, ""),
    (0xFF21, "latin"),
    (0xFF66, "kana"),
    (0xFFA0, "hangul"),
    (0xFFE0, ""),
    (0x10000, "other"),
    (0x1D400, ""),
    (0x1E000, "other"),
    (0x1F000, ""),
    (0x20000, "han"),
    (0x32000, ""),
)
STARTS = [start for start, _ in BLOCKS]
SCRIPTS = sorted({script for _, script in BLOCKS} - {""})
RUN = 64  # letters that are found together


def script_of(character: str) -> str:
    """`latin`, ..., `other` for a letter; nothing for what is none."""
    return BLOCKS[bisect.bisect_right(STARTS, ord(character)) - 1][1] if character.isalpha() else ""


def scripts(text: str) -> Counter[str]:
    """How many letters of each there are."""
    if text.isascii():
        return Counter({"latin": n} if (n := sum(map(str.isalpha, text))) else {})
    return Counter(script for character in text if (script := script_of(character)))


class ForeignLetters:
    """Finds runs of letters of other scripts than these, kind `script`."""

    kinds = ("script",)
    longest = RUN

    def __init__(self, allowed: Collection[str]) -> None:
        for script in allowed:
            if script not in SCRIPTS:
                close = difflib.get_close_matches(script, SCRIPTS, n=1)
                hint = f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(SCRIPTS)}"
                raise ConfigError(f"unknown script {script!r}{hint}")
        self._allowed = {*allowed, ""}

    def search(self, text: str, start: int = 0) -> Span | None:
        if text.isascii() and "latin" in self._allowed:
            return None
        first = next((at for at in range(start, len(text)) if self._foreign(text[at])), None)
        if first is None:
            return None
        end = first + 1
        while end < min(len(text), first + RUN) and self._foreign(text[end]):
            end += 1
        return Span(first, end, "script")

    def alive(self, text: str) -> int:
        at = len(text)
        while at > max(0, len(text) - RUN) and self._foreign(text[at - 1]):
            at -= 1
        return at

    def _foreign(self, character: str) -> bool:
        return script_of(character) not in self._allowed


def excess(text: str, most: int) -> int:
    """By how many characters it is too long."""
    return max(0, len(text) - most)
