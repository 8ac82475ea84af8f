"""The items that evaluation asks of the demo's families: no training seed can draw them."""

from evals.tasks import GREEDY, Item, Task, written
from training.data import ADAPTED, FAMILIES, conversation
from training.families.words import Conversation

SEED = "evaluation"
LONGEST_ANSWER = 160


def held_out(family: str, items: int) -> list[Conversation]:
    return [conversation(family, SEED, index) for index in range(items)]


def task(family: str, items: int) -> Task:
    """The same as a task for any server: the last turn of each is the answer, to the last character."""
    assert family in FAMILIES | ADAPTED
    asked = [as_item(f"{family}/{index}", one) for index, one in enumerate(held_out(family, items))]
    return Task(family, "verbatim", asked, {**GREEDY, "max_tokens": LONGEST_ANSWER})


def as_item(name: str, item: Conversation) -> Item:
    *messages, answer = item["messages"]
    return Item(name, messages, [written(answer)], item.get("tools", ()))
