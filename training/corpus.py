"""Documents from files, as tokens with the weight of each.

A `.jsonl` file has a document a line, {"messages": [...], "tools": [...]} or {"text": "..."}; any other file is plain
text, one document as long as it is. A conversation's answers weigh more than what they answer; all of a text weighs 1.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from transformers import PreTrainedTokenizerFast

from penstock.errors import ConfigError
from training import masking
from training.families.words import Conversation
from training.messages import Wrong

REST_WEIGHT = 0.3
BATCH = 1000


class Document(NamedTuple):
    tokens: "list[int] | array[int]"
    weights: "list[float] | array[float]"


class Found(NamedTuple):
    """What a line holds, a conversation or a text, and where it stands."""

    said: Conversation | str
    where: str


def read(path: Path) -> Iterator[Found]:
    """Raises ConfigError for a row that is neither, or a file with nothing in it."""
    try:
        with path.open(encoding="utf-8") as lines:
            found = [*_rows(path, lines)] if path.suffix == ".jsonl" else [Found(lines.read(), str(path))]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the data {path} cannot be read: {error}") from error
    if not any(one.said for one in found):
        raise ConfigError(f"the data {path} is empty: give a file with documents")
    yield from (one for one in found if one.said)


def _rows(path: Path, lines: Iterator[str]) -> Iterator[Found]:
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{where} is not JSON: {error}") from error
        yield Found(_document(row, where), where)


def _document(row: Any, where: str) -> Conversation | str:
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return str(row["text"])
    messages = row.get("messages") if isinstance(row, dict) else None
    if isinstance(messages, list) and messages and all(isinstance(m, dict) and "role" in m for m in messages):
        return cast("Conversation", row)
    raise ConfigError(f'{where}: expected {{"messages": [...]}} or {{"text": "..."}}, found {str(row)[:80]}')


def documents(path: Path, tokenizer: PreTrainedTokenizerFast) -> list[Document]:
    found = list(read(path))
    texts = [one.said for one in found if isinstance(one.said, str)]
    encodings = iter(
        ids
        for begin in range(0, len(texts), BATCH)
        for ids in tokenizer(texts[begin : begin + BATCH], verbose=False)["input_ids"]
    )
    return [_text(next(encodings), tokenizer) if isinstance(one.said, str) else _told(one, tokenizer) for one in found]


def _text(ids: list[int], tokenizer: PreTrainedTokenizerFast) -> Document:
    """With the token that ends an answer, so that a model of texts ends them."""
    tokens = array("i", ids)
    if tokenizer.eos_token_id is not None and (not ids or ids[-1] != tokenizer.eos_token_id):
        tokens.append(tokenizer.eos_token_id)
    return Document(tokens, array("f", [1.0]) * len(tokens))


def _told(one: Found, tokenizer: PreTrainedTokenizerFast) -> Document:
    try:
        document = encoded(tokenizer, cast("Conversation", one.said))
    except Exception as error:  # a template is a program: it raises what it likes
        raise ConfigError(f"{one.where}: the chat template cannot write this conversation: {error}") from error
    return Document(array("i", document.tokens), array("f", document.weights))


def filler(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token after a conversation, and in what is left of a row."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def encoded(
    tokenizer: PreTrainedTokenizerFast, item: Conversation, rest: float = REST_WEIGHT, decision: float = 1.0
) -> Document:
    """Assistant turns weigh 1 with their EOS, all else weighs `rest`.

    What decides an answer weighs `decision`: its first token, and what it says after `[`, as in `[2]`.
    """
    tokens, mask = masked(tokenizer, item)
    weights = [1.0 if answer else rest for answer in mask]
    if decision != 1.0:
        opening = {tokenizer.convert_tokens_to_ids(token) for token in ("[", "Ġ[")}
        for at in range(1, len(tokens)):
            if mask[at] and (not mask[at - 1] or tokens[at - 1] in opening):
                weights[at] = decision
    return Document([*tokens, filler(tokenizer)], [*weights, rest])


def masked(tokenizer: PreTrainedTokenizerFast, item: Conversation) -> tuple[list[int], Sequence[int]]:
    """Tokens, and whether each is the assistant's: by the template's marks, else as `sft` finds it out. Raises
    ConfigError."""
    try:
        if not masking.GENERATION.search(tokenizer.get_chat_template(tools=item.get("tools"))):
            return masking.document(tokenizer, item)
    except (Wrong, ValueError) as wrong:  # ValueError: of a tokenizer without a chat template
        raise ConfigError(f"what is the assistant's in a conversation cannot be told: {wrong}") from wrong
    rendered = cast(
        "dict[str, list[int]]",
        tokenizer.apply_chat_template(
            item["messages"],
            tools=item.get("tools"),
            return_dict=True,
            return_assistant_tokens_mask=True,
        ),
    )
    return rendered["input_ids"], rendered["assistant_masks"]


def fitted(
    path: Path, found: Sequence[Document], length: int, too_long: Literal["refuse", "skip", "cut"]
) -> list[Document]:
    """Those that fit a row of `length` tokens. Plain text is cut to rows whatever is asked.

    Raises ConfigError where one does not fit and is neither to be skipped nor cut, or none is left.
    """
    if path.suffix != ".jsonl" or too_long == "cut":
        return [
            Document(one.tokens[begin : begin + length], one.weights[begin : begin + length])
            for one in found
            for begin in range(0, len(one.tokens), length)
        ]
    fitting = [one for one in found if len(one.tokens) <= length]
    if len(fitting) < len(found) and too_long == "refuse":
        longest = max(len(one.tokens) for one in found)
        raise ConfigError(
            f"{path}: {len(found) - len(fitting)} of {len(found)} documents are longer than a row of {length} tokens, "
            f"the longest has {longest}: give the stage a `length` of {longest}, or say `too_long: skip` or `cut`"
        )
    if not fitting:
        raise ConfigError(f"{path}: none of {len(found)} documents fits a row of {length} tokens: raise `length`")
    return fitting


Corpus = Mapping[Path, Sequence[Document]]
