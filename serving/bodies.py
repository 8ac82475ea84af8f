"""What a well-formed request body is, route by route: OpenAI's schema (OpenAPI 2.3.0), plus what vLLM adds to it.

Fields not named here are kept and reach the engine. A null is accepted wherever a field may be left out, as the
official clients send it.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from penstock.errors import BadRequest
from serving.plain_chat import is_plain_chat

INT64 = 2**63 - 1
MESSAGE_CHARS = 400
Item = TypeVar("Item")
# A list stops at its first bad item: a million errors would be collected before the first could be told.
Many = Annotated[list[Item], Field(fail_fast=True)]
Some = Annotated[list[Item], Field(fail_fast=True, min_length=1)]

Count = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]+$", max_length=256)]
Tokens = Some[Annotated[int, Field(ge=0)]]
Batch = Some[Tokens]
OneStep = Field(min_length=1, max_length=1)
Stop = str | Annotated[Some[str], Field(max_length=4)]


class Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class Routed(Body):
    """Every body says which served model is meant."""

    model: Annotated[str, Field(min_length=1, max_length=512)]


class Part(Body):
    """A piece of a message's content; what other types than these hold is the engine's to check."""

    type: Text
    text: str | None = None
    image_url: dict[str, Any] | None = None

    @model_validator(mode="after")
    def has_what_its_type_says(self) -> "Part":
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type text needs the field text")
        if self.type == "image_url" and not self.image_url:
            raise ValueError("a part of type image_url needs the field image_url")
        return self


Content = str | Some[Part]


class FunctionCall(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Instruction(Body):
    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None


class AssistantTurn(Body):
    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Many[ToolCall] | None = None
    name: str | None = None


class ToolResult(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


class FunctionResult(Body):
    role: Literal["function"]
    content: str | None
    name: str


Turn = Annotated[Instruction | AssistantTurn | ToolResult | FunctionResult, Field(discriminator="role")]


class Function(Body):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    type: Literal["function"]
    function: Function


class CustomTool(Body):
    type: Literal["custom"]
    custom: dict[str, Any]


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class CustomChoice(Body):
    type: Literal["custom"]
    custom: NamedFunction


class AllowedTools(Body):
    type: Literal["allowed_tools"]
    allowed_tools: dict[str, Any]


NamedChoice = Annotated[NamedTool | CustomChoice | AllowedTools, Field(discriminator="type")]


class JsonSchema(Body):
    name: Name
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class PlainFormat(Body):
    type: Literal["text", "json_object", "structural_tag"]


class SchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Identified(Body):
    id: str


class Moderation(Body):
    model: str


class Prediction(Body):
    type: Literal["content"]
    content: Content


class Audio(Body):
    voice: str | Identified
    format: Literal["wav", "aac", "mp3", "flac", "opus", "pcm16"]


class Override(Body):
    """What Penstock alone reads, and no engine."""

    model_config = ConfigDict(extra="forbid")

    steps: Annotated[Many[Text | Annotated[dict[Text, dict[str, Any] | Text | None], OneStep]], Field(max_length=16)]


class Stepped(Routed):
    """What can be asked of a composed model."""

    penstock: Override | None = None


class Circumstances(Stepped):
    """On whose behalf, how soon, how long remembered: the same in chats and responses."""

    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    moderation: Moderation | None = None


class Sampling(Stepped):
    """What chat and plain completions share."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[int, Field(ge=-100, le=100)]] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


class ChatCompletions(Sampling, Circumstances):
    messages: Some[Turn]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    tools: Many[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Some[Function], Field(max_length=128)] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    modalities: Many[Literal["text", "audio"]] | None = None
    prediction: Prediction | None = None
    prompt: Identified | None = None
    audio: Audio | None = None
    web_search_options: dict[str, Any] | None = None


class Completions(Sampling):
    prompt: str | Many[str] | Tokens | Batch | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def has_a_prompt(self) -> "Completions":
        if self.prompt is None and not (self.model_extra or {}).get("prompt_embeds"):
            raise ValueError("prompt is required")
        return self


class Embeddings(Routed):
    input: Text | Some[Text] | Tokens | Batch | None = None
    messages: Many[Turn] | None = None
    encoding_format: Literal["float", "base64", "bytes"] | None = None
    dimensions: Count | None = None
    user: str | None = None

    @model_validator(mode="after")
    def has_an_input(self) -> "Embeddings":
        if self.input is None and self.messages is None:
            raise ValueError("input is required")
        return self


class Rerank(Routed):
    query: str | dict[str, Any]
    documents: Many[str | dict[str, Any]] | dict[str, Any]
    top_n: Annotated[int, Field(ge=0)] | None = None


class Score(Routed):
    """Pairs as `text_1` and `text_2`, or as `queries` and `documents`: which of them is the engine's to say."""


class Moderations(Routed):
    """`model` is a policy, one of the configuration's `guards`."""

    model: Annotated[str, Field(min_length=1, max_length=512)] = "moderation"
    input: str | Some[str] | Some[Part]


class Tokenize(Routed):
    prompt: str | None = None
    messages: Many[Turn] | None = None

    @model_validator(mode="after")
    def has_one_of_two(self) -> "Tokenize":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt is required, or messages")
        return self


class Detokenize(Routed):
    tokens: Many[Annotated[int, Field(ge=0)]]


class Typed(Body):
    type: Text


class Responses(Circumstances):
    """The items of `input` and `tools` are of many types, which are the engine's to check."""

    input: str | Many[Body]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    tools: Many[Typed] | None = None
    tool_choice: Literal["none", "auto", "required"] | Typed | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: str | Identified | None = None
    context_management: Many[Typed] | None = None
    include: Many[Text] | None = None
    prompt: Identified | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    user: str | None = None


class AnthropicTurn(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class CountTokens(Routed):
    messages: Some[AnthropicTurn]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


class Messages(CountTokens, Stepped):
    max_tokens: Count
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: Many[str] | None = None
    stream: bool | None = None


def parse(raw: bytes, shape: type[Routed]) -> dict[str, Any]:
    """The body as it was sent, checked. Raises BadRequest, naming the parameter: `messages[0].content`."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest(f"the body must be a JSON object, not {type(body).__name__}")
    if shape is ChatCompletions and is_plain_chat(body):
        return body
    try:
        shape.model_validate(body)
    except ValidationError as error:
        raise explained(error, body) from error
    return body


def refuse(names: Iterable[str], body: Mapping[str, Any], model: str) -> None:
    """What no composed model can do. Raises BadRequest for the first of these fields that is there."""
    for name in names:
        if body.get(name):
            raise BadRequest(f"{name} is not for {model!r}, which is composed of steps", param=name)


def explained(error: ValidationError, body: dict[str, Any]) -> BadRequest:
    """The error that lies deepest in the body: of a union's branches the one that fitted best."""
    details = error.errors(include_url=False, include_input=False)
    paths = [path_in(body, detail["loc"], missing=detail["type"] == "missing") for detail in details]
    for path, detail in zip(paths, details, strict=True):
        if detail["type"].startswith("union_tag"):
            path.append(detail["ctx"]["discriminator"].strip("'"))
    deepest = max(range(len(details)), key=lambda index: len(paths[index]))
    message = shortened(details[deepest]["msg"].removeprefix("Value error, "))
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in paths[deepest]).lstrip(".")
    if not param:
        param = message.partition(" is required")[0] if " is required" in message else ""
    return BadRequest(f"{param}: {message}" if param else message, param=param or None)


def shortened(message: str) -> str:
    """pydantic repeats what was sent, however long."""
    half = MESSAGE_CHARS // 2
    return message if len(message) <= MESSAGE_CHARS else f"{message[:half]} ... {message[-half:]}"


def path_in(body: Any, loc: tuple[int | str, ...], *, missing: bool) -> list[int | str]:
    """The steps of `loc` that lead through `body`, without the names of union branches that pydantic puts between."""
    path: list[int | str] = []
    for number, step in enumerate(loc, start=1):
        try:
            body = body[step]
        except (KeyError, IndexError, TypeError):
            if not (missing and number == len(loc)):
                continue
        path.append(step)
    return path
