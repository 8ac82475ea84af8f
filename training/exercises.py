"""Documents that teach nothing but to look back: what a small model needs before it can copy and cite."""

from collections.abc import Sequence
from random import Random

from transformers import PreTrainedTokenizerFast

from training.corpus import Document, filler
from training.families import reading
from training.tokenizer import TURN_END, TURN_START

SHARED_START = 3
ANSWERED = f"{TURN_START}assistant\n"
SURROUNDINGS = (
    ("", "\n"),
    ("Context:\n", "\n"),
    (f"{TURN_START}user\nContext:\n", f"{TURN_END}\n{ANSWERED}"),
    (f"{TURN_START}user\nAnswer from the context.\n\nContext:\n", f"{TURN_END}\n{ANSWERED}"),
    (f"{TURN_START}system\nContext:\n", f"{TURN_END}\n{TURN_START}user\nWhich?{TURN_END}\n{ANSWERED}"),
)
"""What stands before the passages and before each snippet: bare, and as conversations have them."""


def repeated_sequence(rng: Random, vocab_size: int, longest: int) -> Document:
    """Random tokens said twice or more; only the repetitions weigh, for only they are knowable.

    Often they are few different ones, which is easier to begin with: what was said at all, then what
    followed.
    """
    alphabet = _alphabet(rng, vocab_size)
    segment = [rng.choice(alphabet) for _ in range(rng.randint(4, max(4, longest // 4)))]
    times = rng.randint(2, 3)
    return Document(segment * times, [0.0] * len(segment) + [1.0] * len(segment) * (times - 1))


def shuffled_sequences(rng: Random, vocab_size: int, longest: int) -> Document:
    """Random segments, said once and then again in another order.

    One token back is not enough to find the place, for each stands in several segments: this
    teaches to look for several tokens at once, as a name among similar names demands. Only what
    follows a segment's first `SHARED_START` tokens weighs.
    """
    alphabet = _alphabet(rng, vocab_size)
    size = rng.randint(SHARED_START + 2, 14)
    count = rng.randint(2, max(2, min(10, longest // (2 * size))))
    segments = [[rng.choice(alphabet) for _ in range(size)] for _ in range(count)]
    again = rng.sample(segments, count)
    tokens = [token for segment in segments + again for token in segment]
    repeated = [0.0] * SHARED_START + [1.0] * (size - SHARED_START)
    return Document(tokens, [0.0] * (size * count) + repeated * count)


def marked_passages(rng: Random, tokenizer: PreTrainedTokenizerFast) -> Document:
    """Numbered passages with their number here and there after a token; then snippets of them, each with its number.

    Only the numbers weigh. A model must know at every token in which passage it stands, and find by a
    snippet where that stood and what it knew there: two steps, and neither shows in an answer before
    the other is learned. Questions alone did not teach a model of six layers in 5 million tokens; with
    these one of eight had learned it after 2.
    """
    digits = [tokenizer.encode(str(digit))[-1] for digit in range(10)]
    tokens: list[int] = []
    weights: list[float] = []

    def say(said: Sequence[int], number: int, share: float = 0.0) -> None:
        for token in said:
            tokens.append(token)
            weights.append(0.0)
            if token not in digits and rng.random() < share:
                tokens.append(digits[number])
                weights.append(1.0)

    told = []
    share = rng.choice((0.0, 0.0, 0.0, 0.03, 0.1))
    before, between = rng.choice(SURROUNDINGS)
    numbers = list(range(1, rng.randint(3, 7))) if rng.random() < 0.7 else rng.sample(range(1, 10), rng.randint(2, 5))
    say(tokenizer.encode(before), 0)
    for number in numbers:
        say(tokenizer.encode(f"[{number}]"), number)
        for _ in range(rng.randint(1, 3)):
            sentence = reading.sentence(rng)
            say(tokenizer.encode(" " + sentence), number, share)
            told.append((tokenizer.encode(sentence if TURN_END in between else " " + sentence), number))
        say(tokenizer.encode("\n"), number)
    for _ in range(rng.randint(4, 9)):
        said, number = rng.choice(told)
        size = rng.choice((rng.randint(4, 10), len(said)))
        begin = rng.randint(0, max(0, len(said) - size))
        say(tokenizer.encode(between), number)
        *space, opening = tokenizer.encode(" [")
        say([*said[begin : begin + size], *space], number)
        say([opening], number, 1.0)
        say(tokenizer.encode("]"), number)
    return Document([*tokens, filler(tokenizer)], [*weights, 0.0])


def _alphabet(rng: Random, vocab_size: int) -> Sequence[int]:
    """Eight tokens or a few dozen, or now and then all."""
    size = rng.choice((8, 16, 32, 64, vocab_size))
    return range(vocab_size) if size >= vocab_size else rng.sample(range(vocab_size), size)
