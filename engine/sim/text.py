"""The simulated model: the next word is a function of all the text before it, so any cut can be continued exactly."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from engine.sim.words import VOCABULARY, WORD, Word, encode


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stands before the answer. `given`: all that is settled. `open`: text that generation goes on with.

    In a chat `open` is what the assistant has said so far. Bare text is all open: its end cannot be told from what a
    model said before.
    """

    given: str
    open: str
    chat: bool
    choice: int = 0  # several answers to one prompt differ

    @property
    def ids(self) -> list[int]:
        return encode(self.given) + encode(self.open)


def words(prompt: Prompt, mean_tokens: int) -> Iterator[Word]:
    """The answer word by word, up to where it ends by itself.

    Where `open` ends inside a word that would have come there, its rest comes first. A turn of a chat has between half
    and one and a half of `mean_tokens`; bare text ends after each word with the same probability.
    """
    state = blake2b(prompt.given.encode(), digest_size=8, salt=b"%d" % prompt.choice)
    length = 0
    if prompt.chat:
        length = (mean_tokens + 1) // 2 + int.from_bytes(state.digest()) % (mean_tokens + 1)
    said = WORD.findall(prompt.open)
    count = len(said)
    before = prompt.open
    if said:
        partial = said[-1]
        begin = prompt.open[: -len(partial)]
        state.update(begin.encode())
        whole = word_after(begin, state.digest(), count - 1, length, mean_tokens)
        word = partial.lstrip()
        if not prompt.chat and word and not (whole and whole.text.startswith(partial)):
            blank = partial.removesuffix(word)  # a prompt's end: the word that came there has none of its own
            state.update(blank.encode())
            partial = word
            whole = word_after(begin + blank, state.digest(), count, length, mean_tokens)
        state.update(partial.encode())
        if whole and whole.text != partial and whole.text.startswith(partial):
            rest = whole.text[len(partial) :]
            state.update(rest.encode())
            before = rest
            yield word_of(rest)
    while word := word_after(before, state.digest(), count, length, mean_tokens):
        yield word
        state.update(word.raw)
        before = word.text
        count += 1


def word_after(before: str, digest: bytes, count: int, length: int, mean_tokens: int) -> Word | None:
    """The word that follows; None where the answer ends. `length` 0 is a bare text's."""
    number = int.from_bytes(digest)
    if count >= length if length else (number >> 32) * mean_tokens < 1 << 32:
        return None
    bare, spaced = VOCABULARY[number % len(VOCABULARY)]
    return bare if not before or before[-1].isspace() else spaced


def word_of(text: str) -> Word:
    return Word.of(text, encode(text)[0])
