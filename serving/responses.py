"""What a body of /v1/responses asks of a composed model, as a conversation.

Answers are not stored, and no tool runs here: what would need either is refused, and so is whatever else would be
dropped in silence.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError

from penstock.chat import ChatRequest, Message
from penstock.errors import BadRequest
from serving.bodies import Body, Many, Name, Text, explained, refuse
from serving.responses_shape import ResponsesShape

TRANSLATED = frozenset(
    """input instructions max_output_tokens max_tool_calls stream stream_options include reasoning store text tools
    tool_choice top_logprobs truncation""".split()
)
"""Fields that a chat has not, or not so. All others mean the same in both."""
UNSERVED = ("previous_response_id", "context_management", "enable_response_messages", "previous_input_messages", "n")
ECHOED = ("instructions", "max_output_tokens", "max_tool_calls", "metadata", "prompt", "reasoning", "temperature")
ECHOED_LAST = ("text", "top_logprobs", "top_p", "safety_identifier", "prompt_cache_key")
LOGPROBS = "message.output_text.logprobs"
Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
"""The second is for sending reasoning again without anything stored, which can be done with ours as it is."""


class InputText(Body):
    type: Literal["input_text", "output_text", "text"]
    text: str


class InputImage(Body):
    type: Literal["input_image"]
    image_url: Text
    detail: Literal["auto", "low", "high", "original"] | None = None


class Refusal(Body):
    type: Literal["refusal"]
    refusal: str


Part = Annotated[InputText | InputImage | Refusal, Field(discriminator="type")]


class Said(Body):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Many[Part]


class Called(Body):
    call_id: Text
    name: Text
    arguments: str


class Result(Body):
    call_id: Text
    output: str | Many[Part]


class ThoughtText(Body):
    text: str


class Thought(Body):
    summary: Many[ThoughtText] | None = None
    content: Many[ThoughtText] | None = None


def kind_of(item: Any) -> str:
    """A message need not say that it is one."""
    return str(item.get("type") or "message") if isinstance(item, Mapping) else ""


Item = Annotated[
    Annotated[Said, Tag("message")]
    | Annotated[Called, Tag("function_call")]
    | Annotated[Result, Tag("function_call_output")]
    | Annotated[Thought, Tag("reasoning")],
    Discriminator(
        kind_of,
        custom_error_type="item",
        custom_error_message="a composed model takes items of the types message, function_call, "
        "function_call_output and reasoning",
    ),
]


class FunctionTool(Body):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(Body):
    type: Literal["function"]
    name: Text


class Format(Body):
    type: Literal["text", "json_object", "json_schema"]


class TextOptions(Body):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Body):
    """The reasoning itself is told, so that a summary of whatever length is in it."""

    model_config = ConfigDict(extra="forbid")

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class Asked(Body):
    """The fields whose inside is looked at."""

    input: str | Many[Item]
    tools: Many[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    include: Many[Included] | None = None
    truncation: Literal["disabled"] | None = None


def responses(body: Mapping[str, Any], model: str, request_id: str) -> tuple[ChatRequest, ResponsesShape]:
    """Raises BadRequest, naming the field, for what no composed model can do."""
    try:
        asked = Asked.model_validate(body)
    except ValidationError as error:
        raise explained(error, dict(body)) from None
    refuse(UNSERVED, body, model)
    messages = turns(asked.input)
    if body.get("instructions"):
        messages = [Message(role="system", content=body["instructions"]), *messages]
    if not messages and not body.get("prompt"):
        raise BadRequest("input: there is nothing to answer", param="input")
    rest = {name: value for name, value in body.items() if name not in TRANSLATED and value is not None}
    request = ChatRequest(**{**rest, **translated(body, asked), "model": body["model"], "messages": messages})
    return request, ResponsesShape(request_id, model, echo(body))


def translated(body: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """The fields of a chat that stand for those of a response."""
    said: dict[str, Any] = {}
    if body.get("max_output_tokens"):
        said["max_completion_tokens"] = body["max_output_tokens"]
    if asked.tools:
        said["tools"] = [{"type": "function", "function": without(tool, "type")} for tool in body["tools"]]
    if asked.tools and isinstance(asked.tool_choice, Choice):
        said["tool_choice"] = {"type": "function", "function": {"name": asked.tool_choice.name}}
    elif asked.tools and asked.tool_choice:
        said["tool_choice"] = asked.tool_choice
    elif asked.tool_choice not in (None, "none", "auto"):
        raise BadRequest("tool_choice: there are no tools to choose from", param="tool_choice")
    if asked.text and asked.text.format:
        said |= format_of(body["text"]["format"])
    if asked.text and asked.text.verbosity:
        said["verbosity"] = asked.text.verbosity
    if asked.reasoning and asked.reasoning.effort:
        said["reasoning_effort"] = asked.reasoning.effort
    if LOGPROBS in (asked.include or ()) or body.get("top_logprobs"):
        said |= {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}
    return said


def format_of(written: Mapping[str, Any]) -> dict[str, Any]:
    if written["type"] != "json_schema":
        return {} if written["type"] == "text" else {"response_format": {"type": written["type"]}}
    if not isinstance(written.get("schema"), dict) or not isinstance(written.get("name"), str):
        raise BadRequest("text.format: json_schema needs the fields name and schema", param="text.format")
    return {"response_format": {"type": "json_schema", "json_schema": without(written, "type")}}


def turns(items: str | Sequence[Said | Called | Result | Thought]) -> list[Message]:
    """Reasoning, text and calls that follow one another are one turn of the assistant's."""
    if isinstance(items, str):
        return [Message(role="user", content=items)] if items else []
    found: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, Result):
            found.append({"role": "tool", "tool_call_id": item.call_id, "content": content_of(item.output)})
        elif isinstance(item, Said) and item.role != "assistant":
            found.append({"role": item.role, "content": content_of(item.content)})
        else:
            add_to_assistant(found, item)
    return [Message(**turn) for turn in found]


def add_to_assistant(found: list[dict[str, Any]], item: Said | Called | Thought) -> None:
    """To the turn that is the last, unless that has text already: calls may follow it, and nothing else."""
    last = found[-1] if found and found[-1]["role"] == "assistant" else None
    if last is None or (not isinstance(item, Called) and last["content"] is not None):
        last = {"role": "assistant", "content": None}
        found.append(last)
    if isinstance(item, Called):
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        last["tool_calls"] = [*last.get("tool_calls", ()), call]
    elif isinstance(item, Said):
        last["content"] = text_of(item.content)
    else:
        said = "".join(piece.text for piece in item.content or item.summary or ())
        last["reasoning"] = last.get("reasoning", "") + said


def content_of(content: str | Sequence[InputText | InputImage | Refusal]) -> str | list[dict[str, Any]]:
    """A chat's parts; text alone where there is one piece of it."""
    if isinstance(content, str):
        return content
    if len(content) == 1 and isinstance(content[0], InputText):
        return content[0].text
    return [part_of(part) for part in content]


def part_of(part: InputText | InputImage | Refusal) -> dict[str, Any]:
    if isinstance(part, InputImage):
        detail = {"detail": part.detail} if part.detail else {}
        return {"type": "image_url", "image_url": {"url": part.image_url, **detail}}
    return {"type": "text", "text": part.refusal if isinstance(part, Refusal) else part.text}


def text_of(content: str | Iterable[InputText | InputImage | Refusal]) -> str:
    if isinstance(content, str):
        return content
    if any(isinstance(part, InputImage) for part in content):
        raise BadRequest("input: an assistant's message has no images", param="input")
    return "".join(part_of(part)["text"] for part in content)


def without(written: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in written.items() if key != name and value is not None}


def echo(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the answer repeats, with what goes for what is not said."""
    tools = [{"parameters": None, "strict": None, **tool} for tool in body.get("tools") or ()]
    parallel = body.get("parallel_tool_calls")
    return {
        **{name: body.get(name) for name in (*ECHOED, *ECHOED_LAST)},
        **({"user": body["user"]} if body.get("user") else {}),
        "metadata": body.get("metadata") or {},
        "text": body.get("text") or {"format": {"type": "text"}},
        "tools": tools,
        "tool_choice": body.get("tool_choice") or "auto",
        "parallel_tool_calls": parallel if isinstance(parallel, bool) else True,
        "truncation": "disabled",
        "service_tier": "default",
    }
