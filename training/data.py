"""Conversations for the demo model, generated: an item is a function of family, seed and index.

No outside data is used, so the weights carry nobody's licence and every answer is known. A
conversation is in OpenAI form, `{"messages": [...], "tools": [...]}`; every assistant turn is an
answer to learn, and the last message is the one that evaluation asks for.
"""

from collections.abc import Callable
from random import Random

from training.families import handbook, react, reading, talk, tools
from training.families.words import Conversation


def dialog(rng: Random, fewest: int = 2, most: int = 5) -> Conversation:
    """Short exchanges in one conversation: each answer depends on its own question."""
    families = (
        talk.greeting,
        talk.refusal,
        talk.unknown,
        talk.story,
        handbook.handbook,
        handbook.handbook,
        reading.label,
        reading.copying,
        reading.extraction,
    )
    first, *rest = [rng.choice(families)(rng)["messages"] for _ in range(rng.randint(fewest, most))]
    return {"messages": first + [turn for messages in rest for turn in messages[-2:]]}


def long_dialog(rng: Random) -> Conversation:
    return dialog(rng, fewest=6, most=10)


FAMILIES: dict[str, Callable[[Random], Conversation]] = {
    "greeting": talk.greeting,
    "refusal": talk.refusal,
    "unknown": talk.unknown,
    "remembered_name": talk.remembered_name,
    "story": talk.story,
    "handbook": handbook.handbook,
    "one_passage": reading.one_passage,
    "passages": reading.passages,
    "extraction": reading.extraction,
    "label": reading.label,
    "copying": reading.copying,
    "tool_call": tools.tool_call,
    "tool_report": tools.tool_report,
    "tool_unneeded": tools.tool_unneeded,
    "react": react.react,
    "dialog": dialog,
    "quiz": reading.quiz,
    "citing": reading.citing,
    "tool_session": tools.tool_session,
    "many_passages": reading.many_passages,
    "many_tools": tools.many_tools,
    "long_dialog": long_dialog,
}
ADAPTED: dict[str, Callable[[Random], Conversation]] = {"terse": reading.terse, "caller": tools.caller}
"""What an adapter answers in another way than the demo itself, to prompts of the same kinds."""


def conversation(family: str, seed: str, index: str | int) -> Conversation:
    """Item `index` of a family: the same for the same arguments on every machine."""
    return (FAMILIES | ADAPTED)[family](Random(f"{family}/{seed}/{index}"))
