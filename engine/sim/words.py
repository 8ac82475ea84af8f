"""The simulated model's vocabulary: what strains parsers stands among ordinary words, and any text can be encoded."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson

# Beside plain words: several bytes a character, characters of several code points, quotes, back slashes, line ends of
# every kind, and the marks that a careless parser looks for in the bytes of a stream.
ORDINARY = """
    the a an this that its every some no one two three river water gate pipe wheel valley stone bridge night morning
    winter light engine turbine pressure channel keeper lake storm cloud shadow paper letter number word answer question
    flows falls turns opens closes rises waits carries holds breaks runs stands keeps brings finds knows says asks and
    but so then when where while until under over through between before after slowly quickly always never again still
    here there up down cold clear deep old small great quiet narrow long open wide. home. far. soon. today. twice. it,
    yes, well, 1,024 3.14 -5 NaN e=mc² C:\\gates\\new "so" "error" 'quiet' data: [DONE] {"id": <b> &amp; 100% #7
    Überlauf Schütz Größe Zürich naïve façade Łódź crème Ωmega Привет שלום سلام नमस्ते ไทย 水 川の流れ 발전소 門 「水」
    🌊 👩‍🔧 🇨🇭 é̂ ﷽ 𐍈 — …
""".split()
BROKEN_LINES = ("\nThen", "\n\nBut", "\r\nNow", "\tand", "\u2028later", "  twofold")

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
END = "<|end|>"
MARKS = (END, *(f"<|{role}|>" for role in ROLES))

WORD = re.compile(r"\s*\S+|\s+")
MARK = re.compile("(" + "|".join(map(re.escape, MARKS)) + ")")

FIRST_WORD_ID = 1024  # between the marks and pieces of one byte below, pieces of two bytes above
PIECE_BYTES = 6  # with its marker a piece stays below 2**53, which every JSON reader keeps exact


class Word(NamedTuple):
    """A token: its text, its id, its bytes, and its text as JSON inside an event."""

    text: str
    id: int
    raw: bytes
    json: bytes

    @classmethod
    def of(cls, text: str, number: int) -> "Word":
        return cls(text, number, text.encode(), orjson.dumps(text))


def _vocabulary() -> list[tuple[Word, Word]]:
    texts = [(text, f" {text}") for text in ORDINARY] + [(text.strip(), text) for text in BROKEN_LINES]
    ids: dict[str, int] = {}
    for text in (text for pair in texts for text in pair):
        ids.setdefault(text, FIRST_WORD_ID + len(ids))
    return [(Word.of(bare, ids[bare]), Word.of(spaced, ids[spaced])) for bare, spaced in texts]


# Each word without and with the white space before it.
VOCABULARY: Sequence[tuple[Word, Word]] = _vocabulary()
_IDS = {mark: number for number, mark in enumerate(MARKS)} | {
    word.text: word.id for pair in VOCABULARY for word in pair
}
_BYTES = {number: text.encode() for text, number in _IDS.items()}


def encode(text: str) -> list[int]:
    """The ids of a text: a mark or a word of the vocabulary with its white space is one token, other words are cut
    into pieces of six bytes. `decode(encode(text)) == text` for any text without lone surrogates."""
    ids: list[int] = []
    for part in MARK.split(text):
        if part in _IDS:
            ids.append(_IDS[part])
            continue
        for word in WORD.findall(part):
            known = _IDS.get(word)
            if known is None:
                ids += _pieces(word.encode())
            else:
                ids.append(known)
    return ids


def decode(ids: Iterable[int]) -> str:
    """The text of ids; those that stand for nothing become U+FFFD."""
    return b"".join(map(_bytes_of, ids)).decode(errors="replace")


def _pieces(word: bytes) -> Iterable[int]:
    """A leading 1 keeps the zeros: b"\\x00a" -> 0x010061."""
    for start in range(0, len(word), PIECE_BYTES):
        yield int.from_bytes(b"\x01" + word[start : start + PIECE_BYTES])


def _bytes_of(number: int) -> bytes:
    known = _BYTES.get(number)
    if known is not None:
        return known
    size = (number.bit_length() - 1) // 8
    piece = number - (1 << (8 * size)) if 0 < size <= PIECE_BYTES else -1
    return piece.to_bytes(size) if 0 <= piece < 1 << (8 * size) else b"\xef\xbf\xbd"
