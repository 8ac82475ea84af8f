"""Which tokens of a conversation are the assistant's to learn, and which are only read.

The chat template tells: exactly, where it marks what is generated with `{% generation %}`; else by rendering the
conversation turn after turn, which holds only for a template that never rewrites what it has rendered before. The EOS
that ends a turn is always learned: a model that has never seen it learned answers without end.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from penstock.errors import BadRequest
from training.messages import Conversation, Message, Wrong

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Document(NamedTuple):
    """`learned[i]`: whether token i is the assistant's."""

    tokens: list[int]
    learned: list[bool]


class Rendered(NamedTuple):
    """A conversation as text, and the characters [start, end) of each assistant turn in it."""

    text: str
    spans: list[tuple[int, int]]


def document(tokenizer: PreTrainedTokenizerBase, item: Conversation) -> Document:
    """Tokens as an engine would have them, the assistant's turns learned with the EOS that ends each; turns of
    `weight` 0 are only read. Raises Wrong for a conversation that cannot be told apart so."""
    weights = [message.get("weight", 1) for message in item["messages"] if message["role"] == "assistant"]
    text, spans = rendered(tokenizer, item)
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = cast("list[int]", read["input_ids"])
    offsets = cast("list[tuple[int, int]]", read["offset_mapping"])
    learned = [False] * len(tokens)
    for (start, end), weight in zip(spans, weights, strict=True):
        first, last = turn_of(tokenizer, tokens, offsets, start, end)
        if weight:
            learned[first : last + 1] = [True] * (last + 1 - first)
    if not any(learned):
        raise Wrong("no turn of the assistant's has a weight of 1: there is nothing to learn")
    return Document(tokens, learned)


def turn_of(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], offsets: Sequence[tuple[int, int]], start: int, end: int
) -> tuple[int, int]:
    """The first token of a turn, and the EOS that ends it. Raises Wrong."""
    first = next((i for i, (begin, stop) in enumerate(offsets) if stop > start and stop > begin), len(tokens))
    if first == len(tokens) or offsets[first][0] < start:
        raise Wrong(
            "an answer's first characters make one token with the prompt before it, as no engine would write them: "
            "take the white space off the answer's beginning"
        )
    for last in range(first, len(tokens)):
        if tokens[last] == tokenizer.eos_token_id:
            return first, last
        if offsets[last][0] >= end:
            break
    raise Wrong(
        f"the chat template does not end an assistant's turn with the EOS {tokenizer.eos_token!r}: answers would never "
        "end. Make the token that ends a turn the tokenizer's eos_token (`eos_token` in a recipe of sft or dpo)"
    )


def rendered(tokenizer: PreTrainedTokenizerBase, item: Conversation) -> Rendered:
    """Raises Wrong for a turn that cannot be found in the text, BadRequest where there is no template at all."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise BadRequest("the tokenizer has no chat template: name a file of one in the recipe, `chat_template`")
    named = (one.content for one in tokenizer.added_tokens_decoder.values() if one.special)
    marks = sorted({*tokenizer.all_special_tokens, *named})
    places = [(f"turn {number}", turn) for number, turn in enumerate(item["messages"], 1)]
    for where, said in (*places, ("a tool", item.get("tools"))):
        whole = "\n".join(texts(said))
        if forged := next((token for token in marks if token in whole), None):
            raise Wrong(f"{where} says {forged!r}, with which the template marks turns: take it out")
    messages = [{name: value for name, value in one.items() if name != "weight"} for one in item["messages"]]
    answers = [number for number, one in enumerate(messages) if one["role"] == "assistant"]
    try:
        found = (marked if GENERATION.search(template) else by_prefixes)(tokenizer, template, messages, item, answers)
    except Wrong:
        raise
    except (TemplateError, TypeError, ValueError) as error:
        raise Wrong(f"the chat template refuses it: {error}") from error
    if len(found.spans) != len(answers):
        raise Wrong(f"the template marks {len(found.spans)} generated turns where the assistant has {len(answers)}")
    return found


def texts(value: object) -> Iterator[str]:
    """Every text in what JSON can hold, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for one in pair for text in texts(one))
    elif isinstance(value, Sequence):
        yield from (text for one in value for text in texts(one))


def marked(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: list[Message],
    item: Conversation,
    answers: Sequence[int],
) -> Rendered:
    render: Any = render_jinja_template  # with marks it returns more than it says
    texts, spans = render(
        conversations=[messages],
        tools=item.get("tools"),
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return Rendered(texts[0], list(spans[0]))


def by_prefixes(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: list[Message],
    item: Conversation,
    answers: Sequence[int],
) -> Rendered:
    """Each turn is what its rendering adds to the prompt that an engine would have answered."""

    def text(turns: list[Message], *, prompt: bool = False) -> str:
        said = tokenizer.apply_chat_template(
            turns, tools=item.get("tools"), tokenize=False, add_generation_prompt=prompt
        )
        return cast("str", said)

    whole = text(messages)
    spans = []
    for number in answers:
        before, after = text(messages[:number], prompt=True), text(messages[: number + 1])
        if not (whole.startswith(after) and after.startswith(before)):
            raise Wrong(
                f"the chat template renders turn {number + 1} differently once the conversation goes on, so that what "
                "is generated cannot be told: mark it with {% generation %} and {% endgeneration %} in a template of "
                "your own (`chat_template` in a recipe of sft or dpo, else the tokenizer's file), or train on "
                "conversations of one answer"
            )
        spans.append((len(before), len(after)))
    return Rendered(whole, spans)
