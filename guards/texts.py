"""The texts of a request and of an answer: every string that a model or a client reads, wherever it stands.

A value is walked with a function that says what a text becomes. Looked at are the conversation, tools, documents and
what the template of a chat or of a stored prompt is told; not what only binds the engine (`response_format`, `stop`),
not roles and the names by which calls of tools are known, and not media.
"""

import json
import re
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import Any

from penstock.chat import ChatRequest, Message
from penstock.errors import BadRequest

OF_MESSAGES = frozenset({"role", "tool_call_id"})
OF_CALLS = frozenset({"id", "type", "index"})
MEDIA = frozenset("image_url input_image input_audio audio_url video_url file image audio video image_embeds".split())
OF_PARTS = frozenset({"type"}) | MEDIA
WORDS = frozenset(
    """type text function name description parameters properties required items enum strict anyOf oneOf allOf not const
    default title format additionalProperties $defs $ref arguments content role object string number integer boolean
    array null""".split()
)
"""Of the shapes themselves, and nobody's text: a list of terms may have some of them."""
BESIDE = ("tools", "functions", "documents", "chat_template_kwargs", "prompt")
"""Fields that the prompt is made of, beside the messages."""
STORED = "prompt"
"""Names a prompt that is stored here, and has what is put into it."""
AS_ENGINES_JOIN = "\n"
"""Between the text parts of a message, as vLLM has it; others put nothing between them."""
MOST_DIGITS = 40
"""No number that is looked for has as many."""
ESCAPED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([\"\\/]))")

Change = Callable[[str], str]


def changed(request: ChatRequest, change: Change) -> ChatRequest:
    """The request with all its texts as `change` has them; the same where nothing is another. Raises BadRequest for
    what is nested too deeply to be looked at."""
    extra = request.model_extra or {}  # none of these has a field of its own, and a missing attribute costs a lot
    try:
        messages = [turn(message, change) for message in request.messages]
        given = {name: value for name in BESIDE if (value := extra.get(name)) is not None}
        beside = {name: within(value, change) for name, value in given.items()}
        if (prompt := extra.get(STORED)) is not None:
            given[STORED], beside[STORED] = prompt, of_stored(prompt, change)
    except RecursionError:
        raise BadRequest("the request is nested too deeply for its guards to look at it") from None
    if any(now is not before for now, before in zip(messages, request.messages, strict=True)):
        request = request.with_messages(messages)
    return request.but(**beside) if beside != given else request


def chars_of(request: ChatRequest) -> int:
    """About how many characters all its texts have, found without making them."""
    extra = request.model_extra or {}
    left: list[Any] = [extra.get(name) for name in (*BESIDE, STORED)]
    for message in request.messages:
        left += [message.content, message.tool_calls, message.name, *(message.model_extra or {}).values()]
    count = 0
    while left:
        value = left.pop()
        if isinstance(value, str):
            count += len(value)
        elif isinstance(value, dict):
            count += sum(map(len, value))
            left += [part for name, part in value.items() if name not in MEDIA]
        elif isinstance(value, list):
            left += value
        elif value is not None:
            count += 1
    return count


def of_stored(prompt: Any, change: Change) -> Any:
    """`{"id": ..., "version": ..., "variables": {"name": TEXT}}`: the names are the template's."""
    if not isinstance(prompt, dict):
        return within(prompt, change)
    variables = prompt.get("variables")
    if not isinstance(variables, dict):
        return prompt if variables is None else prompt | {"variables": within(variables, change)}
    return prompt | {"variables": {name: without(OF_PARTS, part, change) for name, part in variables.items()}}


def turn(message: Message, change: Change) -> Message:
    """The same message where nothing in it is another."""
    said = message.model_dump(exclude_unset=True)
    new = {name: _of_message(name, value, change) for name, value in said.items()}
    return message if new == said else Message(**new)


def _of_message(name: str, value: Any, change: Change) -> Any:
    if name == "tool_calls":
        return [call(each, change) for each in value or ()] if value is not None else None
    if name == "function_call" and isinstance(value, dict):
        return call({"function": value}, change)["function"]
    if name == "content" and isinstance(value, list):
        return parts(value, change)
    return value if name in OF_MESSAGES else within(value, change)


def parts(given: Sequence[Any], change: Change) -> list[Any]:
    """Each by itself, then, in both ways in which engines join them, what stands on both sides of where one ends. If
    something is found only there, all of the text goes into the first of its parts."""
    new = [without(OF_PARTS, part, change) for part in given]
    texts = [part for part in new if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if len(texts) < 2:
        return new
    for between in (AS_ENGINES_JOIN,) if isinstance(change, Noted) else (AS_ENGINES_JOIN, ""):
        joined = between.join(part["text"] for part in texts)
        if (now := change(joined)) != joined:
            for part in texts:
                part["text"] = ""
            texts[0]["text"] = now
            break
    return new


def without(names: Collection[str], value: Any, change: Change) -> Any:
    """The same as `within`, but for what a few fields hold."""
    if not isinstance(value, dict):
        return within(value, change)
    return {name: part if name in names else within(part, change) for name, part in value.items()}


def within(value: Any, change: Change) -> Any:
    """A string, number or name in it at a time; numbers become texts only where they are changed."""
    if isinstance(value, str):
        return change(value) if value else value
    if isinstance(value, dict):
        return {
            name if name in WORDS else change(name): part
            if name == "type" and isinstance(part, str) and part in WORDS
            else within(part, change)
            for name, part in value.items()
        }
    if isinstance(value, list):
        return [within(part, change) for part in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        for written in ways_of_writing(value):
            if (now := change(written)) != written:
                return now
    return value


class Number(float):
    """One that knows how it was written: 4000000000000000006.0 has more digits than a float keeps."""

    written: str

    @classmethod
    def read(cls, written: str) -> "Number":
        number = cls(written)
        number.written = written
        return number


def ways_of_writing(number: float) -> list[str]:
    """As Python does, and where there is a point or an exponent, what stands before the point."""
    usual = repr(number)
    if not isinstance(number, float):
        return [usual]
    exact = Decimal(number.written if isinstance(number, Number) else usual)
    if not exact.is_finite() or not 0 <= exact.adjusted() < MOST_DIGITS:
        return [usual]
    return [usual, f"{exact:f}".partition(".")[0]]


def call(given: Any, change: Change, torn: Change | None = None) -> Any:
    """A call of a tool with its arguments, which are JSON in a string; `torn` is for what is no whole one."""
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return without(OF_CALLS, given, change)
    now = {
        name: arguments(value, change, torn or change) if name == "arguments" else within(value, change)
        for name, value in function.items()
    }
    return without(OF_CALLS | {"function"}, given, change) | {"function": now}


def arguments(written: str, change: Change, torn: Change) -> str:
    r"""`{"to": "\u0061@b.org"}`: what is looked at is what it says, not how it is written. What is no JSON, as of an
    answer that was cut off, is looked at as a lenient reader would take it."""
    try:
        pairs: list[int] = []
        value = json.loads(written, parse_float=Number.read, object_pairs_hook=lambda found: _object(found, pairs))
    except ValueError:
        read = ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2], written)
        now = torn(read)
        return written if now == read else now.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    now = within(value, change)
    if now == value and not pairs:
        return written
    return json.dumps(now)  # all in ASCII: half of a surrogate pair could not be sent


def _object(found: list[tuple[str, Any]], pairs: list[int]) -> dict[str, Any]:
    """`pairs` is told of names that are there twice: who reads the first would read what was not looked at."""
    read = dict(found)
    if len(read) != len(found):
        pairs.append(len(found))
    return read


class Noted(list[str]):
    """A `Change` that changes nothing, and has all texts in their order."""

    def __call__(self, text: str) -> str:
        self.append(text)
        return text
