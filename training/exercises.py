"""Documents that teach nothing but to look back: what a small model needs before it can copy and cite."""

from collections.abc import Sequence
from random import Random

from training.corpus import Document

SHARED_START = 3


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


def _alphabet(rng: Random, vocab_size: int) -> Sequence[int]:
    """Eight tokens or a few dozen, or now and then all."""
    size = rng.choice((8, 16, 32, 64, vocab_size))
    return range(vocab_size) if size >= vocab_size else rng.sample(range(vocab_size), size)
