"""Chat bodies as applications send them: a shared system prompt, a question of one's own, every request another."""

import json
from collections.abc import Iterator
from typing import Any

NUMBER = "000000000000"  # where a request's own number is put, of the same length, so that no length changes

SYSTEMS = (
    "You are the assistant of a water company. Answer in plain words and briefly, and say so when you do not "
    "know. Never make up figures: customers plan their works by them, and the field teams read your answers at "
    "the gate.",
    "You help engineers to read logs. Name the most likely cause first, then the check that would prove it, then "
    "the remedy. Quote the line you rely on. If several causes are equally likely, say which one is cheapest to "
    "rule out.",
    "You are a careful editor. Keep the author's voice, mend grammar and logic, and list what you have changed "
    "and why in one line each. Do not add facts. If a sentence cannot be understood, ask what is meant instead of "
    "guessing.",
    "You answer questions about an insurance policy from the text you are given and from nothing else. Say which "
    "clause the answer rests on. If the text does not settle the question, say that, and what a person would have "
    "to find out.",
)
QUESTIONS = (
    "Case 000000000000. The inflow at the upper gate has been falling since Tuesday although it has rained. Which "
    "three things should the team look at first, and in which order?",
    "Case 000000000000. After the restart the service answers, but every tenth request takes five seconds longer "
    "than the others. Nothing is in the error log. What would you look at, and what would you expect to see?",
    "Case 000000000000. Make this shorter: the meeting which had been planned for Monday could, owing to "
    "circumstances, not take place on Monday and will therefore take place on a day that has not been decided.",
    "Case 000000000000. The cellar was flooded twice in one week, the second time while the pump was being "
    "repaired. Are both floods one event, and who has to show that the pump was fit for use?",
)
FILLER = " The report of the day before is attached below; it has no other findings than the ones that were named."


def bodies(size_bytes: int, **fields: Any) -> Iterator[bytes]:
    """All pairs of a system prompt with a question, padded to about `size_bytes`; `fields` are the request's others."""
    for system in SYSTEMS:
        for question in QUESTIONS:
            missing = max(0, size_bytes - len(body(system, question, fields)))
            longer = question + (FILLER * (missing // len(FILLER) + 1))[:missing]
            yield body(system, longer, fields)


def body(system: str, question: str, fields: dict[str, Any]) -> bytes:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    request = {"model": "m", "messages": messages, "temperature": 0.7, **fields}
    return json.dumps(request, separators=(",", ":")).encode()
