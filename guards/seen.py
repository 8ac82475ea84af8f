"""How detectors see a text: one byte for each character, so that offsets stay what they are.

Decimal digits of every script are seen as ASCII digits, the dashes and spaces of Unicode as `-` and a space, full-width
forms as what they are wide forms of. Letters of Latin-1 stay; every other character is seen as `?`, half of a surrogate
pair too. What takes no room on the screen (a zero-width space between two digits) is seen as `?` like any other, and
what is written in another notation (`%40`, `&#64;`, base64, one letter per line) is not decoded: `injection.py` makes a
signal of some of it, and nothing finds all of it.
"""

import re
import unicodedata
from collections.abc import Mapping
from functools import cache

ENCODING = "latin-1"
BEYOND = 0x20000  # no digit, dash or space stands there or further on


@cache
def fold() -> Mapping[str, str]:
    """Characters that are seen as ASCII."""
    known = {}
    for character in map(chr, range(0xA0, BEYOND)):
        category = unicodedata.category(character)
        if category == "Nd":
            known[character] = str(unicodedata.decimal(character))
        elif category == "Pd" or character == "\N{MINUS SIGN}":
            known[character] = "-"
        elif category == "Zs":
            known[character] = " "
        elif "\uff01" <= character <= "\uff5e":
            known[character] = chr(ord(character) - 0xFEE0)
    return known


BEYOND_LATIN = re.compile("[^\x00-\x9f\xa1-\xff]+")


def seen(text: str) -> bytes:
    """`\\uff16\\uff12 \\u2013 \\uff16\\uff14` -> `62 - 64`; as many bytes as characters."""
    if text.isascii():
        return text.encode()
    return BEYOND_LATIN.sub(_fold, text).encode(ENCODING)


def _fold(found: re.Match[str]) -> str:
    known = fold()
    return "".join([known.get(character, "?") for character in found[0]])
