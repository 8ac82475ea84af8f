"""What a body of /v1/messages asks of a composed model, as a conversation.

What cannot be honoured is refused: tools that a server runs, documents, a beginning of the answer to be gone on with.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import ConfigDict, Field, ValidationError

from penstock.chat import ChatRequest, Message
from penstock.errors import BadRequest
from serving.bodies import Body, Count, Many, Some, Text, explained, refuse
from serving.messages_shape import MessagesShape

TRANSLATED = frozenset(
    """messages system max_tokens stop_sequences stream tools tool_choice thinking output_config metadata service_tier
    cache_control betas billing_policy diagnostics user_profile_id workspace_id speed""".split()
)
"""Fields that a chat has not, or not so; those of the last two lines say nothing about the answer. All others mean the
same in both."""
UNSERVED = ("context_management", "compaction", "fallback_credit_token", "inference_geo", "n")

Display = Literal["summarized", "omitted", "updates"]


class TextBlock(Body):
    type: Literal["text"]
    text: str


class Base64Image(Body):
    type: Literal["base64"]
    media_type: Text
    data: Text


class UrlImage(Body):
    type: Literal["url"]
    url: Text


class Image(Body):
    type: Literal["image"]
    source: Annotated[Base64Image | UrlImage, Field(discriminator="type")]

    @property
    def url(self) -> str:
        source = self.source
        return source.url if isinstance(source, UrlImage) else f"data:{source.media_type};base64,{source.data}"


class ToolResult(Body):
    """`is_error` says nothing that its content does not."""

    type: Literal["tool_result"]
    tool_use_id: Text
    content: str | Many[Annotated[TextBlock | Image, Field(discriminator="type")]] | None = None


class ToolUse(Body):
    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any]


class Thinking(Body):
    type: Literal["thinking"]
    thinking: str


class RedactedThinking(Body):
    """Of another server, which alone can read it."""

    type: Literal["redacted_thinking"]


class UserTurn(Body):
    role: Literal["user"]
    content: str | Some[Annotated[TextBlock | Image | ToolResult, Field(discriminator="type")]]


class AssistantTurn(Body):
    role: Literal["assistant"]
    content: str | Many[Annotated[TextBlock | ToolUse | Thinking | RedactedThinking, Field(discriminator="type")]]


class SystemTurn(Body):
    role: Literal["system"]
    content: str | Many[TextBlock]


class Tool(Body):
    model_config = ConfigDict(extra="forbid")

    type: Literal["custom"] | None = None
    name: Text
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = None


class ToolChoice(Body):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Body):
    type: Literal["tool"]
    name: Text
    disable_parallel_tool_use: bool | None = None


class ThinkingOptions(Body):
    type: Literal["adaptive", "disabled"]
    display: Display | None = None


class ThinkingBudget(Body):
    type: Literal["enabled"]
    budget_tokens: Count
    display: Display | None = None


class Format(Body):
    model_config = ConfigDict(extra="forbid")

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    model_config = ConfigDict(extra="forbid")

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class Metadata(Body):
    user_id: str | None = None


class Asked(Body):
    """The fields whose inside is looked at."""

    messages: Many[Annotated[UserTurn | AssistantTurn | SystemTurn, Field(discriminator="role")]]
    system: str | Many[TextBlock] | None = None
    tools: Many[Tool] | None = None
    tool_choice: Annotated[ToolChoice | NamedChoice, Field(discriminator="type")] | None = None
    thinking: Annotated[ThinkingOptions | ThinkingBudget, Field(discriminator="type")] | None = None
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None
    speed: Literal["standard"] | None = None


def messages(body: Mapping[str, Any], model: str, request_id: str) -> tuple[ChatRequest, MessagesShape]:
    """Raises BadRequest, naming the field, for what no composed model can do."""
    try:
        asked = Asked.model_validate(body)
    except ValidationError as error:
        raise explained(error, dict(body)) from None
    refuse(UNSERVED, body, model)
    if asked.messages[-1].role == "assistant":
        param = f"messages[{len(asked.messages) - 1}]"
        raise BadRequest(f"{param}: {model!r}, composed of steps, goes on with no turn of the assistant's", param=param)
    rest = {name: value for name, value in body.items() if name not in TRANSLATED and value is not None}
    request = ChatRequest(**{**rest, **translated(asked, body), "messages": turns(asked)})
    thinking = asked.thinking
    shows = thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"
    return request, MessagesShape(request_id, model, shows_thinking=shows)


def translated(asked: Asked, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a chat that stand for those of a message."""
    said: dict[str, Any] = {"max_tokens": body["max_tokens"]}
    if body.get("stop_sequences"):
        said["stop"] = body["stop_sequences"]
    if asked.tools:
        said["tools"] = [tool_of(tool) for tool in asked.tools]
    if choice := asked.tool_choice:
        if choice.type not in ("auto", "none") and not asked.tools:
            raise BadRequest("tool_choice: there are no tools to choose from", param="tool_choice")
        if asked.tools:
            said |= choice_of(choice)
    if isinstance(asked.thinking, ThinkingBudget):
        said["thinking_token_budget"] = asked.thinking.budget_tokens
    if asked.output_config:
        said |= output_of(asked.output_config)
    if asked.thinking and asked.thinking.type == "disabled":
        said["reasoning_effort"] = "none"
    if asked.metadata and asked.metadata.user_id:
        said["user"] = asked.metadata.user_id
    return said


def tool_of(tool: Tool) -> dict[str, Any]:
    said = {"description": tool.description, "strict": tool.strict}
    given = {name: value for name, value in said.items() if value is not None}
    return {"type": "function", "function": {"name": tool.name, **given, "parameters": tool.input_schema}}


def choice_of(choice: ToolChoice | NamedChoice) -> dict[str, Any]:
    said: dict[str, Any] = {"tool_choice": "required" if choice.type == "any" else choice.type}
    if isinstance(choice, NamedChoice):
        said["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    if choice.disable_parallel_tool_use is not None:
        said["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return said


def output_of(config: OutputConfig) -> dict[str, Any]:
    said: dict[str, Any] = {"reasoning_effort": config.effort} if config.effort else {}
    if config.format:
        schema = {"name": "answer", "schema": config.format.schema_}
        said["response_format"] = {"type": "json_schema", "json_schema": schema}
    return said


def turns(asked: Asked) -> list[Message]:
    """Results of tools are turns of their own; images in them come with the user's words, as vLLM lays them too."""
    found = [Message(role="system", content=text_of(asked.system))] if asked.system else []
    for turn in asked.messages:
        if isinstance(turn, SystemTurn):
            found.append(Message(role="system", content=text_of(turn.content)))
        elif isinstance(turn.content, str):
            found.append(Message(role=turn.role, content=turn.content))
        elif isinstance(turn, AssistantTurn):
            found.append(said_before(turn.content))
        else:
            found += users(turn.content)
    return found


def users(blocks: Sequence[Any]) -> list[Message]:
    found, parts = [], []
    for block in blocks:
        if isinstance(block, ToolResult):
            inner = [TextBlock(type="text", text=block.content)] if isinstance(block.content, str) else block.content
            texts = [each.text for each in inner or () if isinstance(each, TextBlock)]
            parts += [part_of(each) for each in inner or () if isinstance(each, Image)]
            found.append(Message(role="tool", content="\n".join(texts), tool_call_id=block.tool_use_id))
        else:
            parts.append(part_of(block))
    if parts:
        alone = len(parts) == 1 and parts[0]["type"] == "text"
        found.append(Message(role="user", content=parts[0]["text"] if alone else parts))
    return found


def said_before(blocks: Sequence[Any]) -> Message:
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in blocks if isinstance(block, Thinking)]
    calls = [call_of(block) for block in blocks if isinstance(block, ToolUse)]
    more: dict[str, Any] = {"tool_calls": calls} if calls else {}
    if thoughts:
        more["reasoning"] = "".join(thoughts)
    return Message(role="assistant", content="".join(texts) if texts else None, **more)


def call_of(block: ToolUse) -> dict[str, Any]:
    function = {"name": block.name, "arguments": orjson.dumps(block.input).decode()}
    return {"id": block.id, "type": "function", "function": function}


def part_of(block: TextBlock | Image) -> dict[str, Any]:
    if isinstance(block, Image):
        return {"type": "image_url", "image_url": {"url": block.url}}
    return {"type": "text", "text": block.text}


def text_of(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)
