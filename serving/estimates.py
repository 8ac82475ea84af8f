"""What a request may come to, in tokens, before anybody has counted it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.affinity import CHARS_PER_TOKEN, DEFAULT_OUTPUT_TOKENS
from engine.reading import STREAMING, choices_wanted
from serving.caps import how_many
from serving.media import characters

QUERIES = ("query", "queries", "text_1", "data_1")
ANSWERING = ("documents", "items", "text_2", "data_2")
MOST_RESERVED_TOKENS = 2**16
"""For an answer: who asks for more takes no more of a limit from others beforehand, and is counted as it comes."""


class Estimate(NamedTuple):
    """The tokens that a request may come to."""

    prompt: int
    output: int


def estimate(path: str, body: Mapping[str, Any], prompt_tokens: int) -> Estimate:
    """The most that the body allows, or what is usual where it does not say."""
    if path not in STREAMING:
        return Estimate(prompt_tokens + read_again(body), 0)
    most = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
    output = min(most, MOST_RESERVED_TOKENS) if type(most) is int and most > 0 else DEFAULT_OUTPUT_TOKENS
    return Estimate(prompt_tokens, output * choices_wanted(body))


def read_again(body: Mapping[str, Any]) -> int:
    """One query is read with each of the documents: the tokens of all times but the first, which is in the prompt."""
    query, others = (next((body[name] for name in names if body.get(name)), None) for names in (QUERIES, ANSWERING))
    if query is None or how_many(query) != 1:
        return 0
    return (how_many(others) - 1) * (characters(query) // CHARS_PER_TOKEN)
