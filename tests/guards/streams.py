"""What a filter must do, with all of the text at hand, and texts cut into pieces."""

import itertools
from collections.abc import Sequence

from guards.hold_back import HoldBack
from guards.spans import Detector


def whole(detectors: Sequence[Detector], text: str) -> str:
    """The contract of `HoldBack`, as it is written there."""
    out, at = "", 0
    while spans := [span for detector in detectors if (span := detector.search(text, at))]:
        span = min(spans, key=lambda span: (span.begins, -span.end))
        rest = text[span.end :]
        tail = rest[: len(rest) - len(rest.lstrip(span.tail))] if span.tail else ""
        if span.until in tail:
            tail = tail[: tail.index(span.until) + len(span.until)] if span.until else tail
        out += text[at : span.begins] + whole(detectors, text[span.begins : span.start]) + f"<{span.kind}>"
        at = span.end + len(tail)
    return out + text[at:]


def streamed(detectors: Sequence[Detector], pieces: Sequence[str]) -> str:
    filtered = HoldBack(detectors, lambda span, _: f"<{span.kind}>")
    return "".join(map(filtered.feed, pieces)) + filtered.flush()


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]
