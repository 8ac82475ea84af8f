"""How detectors see a text: one byte for each character, so that offsets stay what they are.

Decimal digits of every script are seen as ASCII digits, the dashes and spaces of Unicode as `-` and a space, full-width
forms as what they are wide forms of. Letters of Latin-1 stay; every other character is seen as `?`, half of a surrogate
pair too. What takes no room on the screen (a zero-width space between two digits) is seen as `?` like any other, and
what is written in another notation (`%40`, `&#64;`, base64, one letter per line) is not decoded: `injection.py` makes a
signal of some of it, and nothing finds all of it.
"""

import sys
import unicodedata

ENCODING = "latin-1"


def _folded() -> dict[int, str]:
    fold = {}
    for code in range(0xA0, sys.maxunicode + 1):
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Nd":
            fold[code] = str(unicodedata.decimal(character))
        elif category == "Pd" or code == 0x2212:
            fold[code] = "-"
        elif category == "Zs":
            fold[code] = " "
        elif 0xFF01 <= code <= 0xFF5E:
            fold[code] = chr(code - 0xFEE0)
    return fold


FOLD: dict[int, str] = {}  # made when the first text comes that is not ASCII: it takes a quarter of a second


def seen(text: str) -> bytes:
    """`６２ – ６４` -> `62 - 64`; as many bytes as characters."""
    if text.isascii():
        return text.encode()
    if not FOLD:
        FOLD.update(_folded())
    return text.translate(FOLD).encode(ENCODING, "replace")
