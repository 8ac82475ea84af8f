"""What a body asks of the simulated engine: checked as vLLM checks it, rendered into prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.sim.adapters import Adapters
from engine.sim.text import Prompt
from engine.sim.words import END, decode

COMPLETION_TOKENS = 16  # where /v1/completions names no limit
MAX_CHOICES = 1024
LONGEST_SALT = 128
NOT_IN_SALTS = frozenset("@/\\\0")
TYPES = {400: "BadRequestError", 404: "NotFoundError"}
NOT_BOTH = "continue_final_message and add_generation_prompt are not compatible."


class Refused(Exception):
    """An answer other than 200, in vLLM's words."""

    def __init__(self, status: int, message: str, param: str | None = None, kind: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.type = kind or TYPES.get(status, "InternalServerError")

    def document_for(self, path: str) -> dict[str, Any]:
        """The body of the answer, on Anthropic's routes in Anthropic's shape."""
        if path.startswith("/v1/messages"):
            return {"type": "error", "error": {"type": self.type, "message": self.message}}
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status}}


@dataclass(frozen=True, slots=True)
class Model:
    """The model that is simulated. `root` is what it was started with, by default its name."""

    name: str = "sim"
    mean_tokens: int = 32
    max_model_len: int = 32768
    root: str = ""
    adapters: Adapters = field(default_factory=Adapters)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for text. Sampling parameters, tools and formats are ignored: the text depends on the prompt.

    `thinking`: all of a chat's answer is reasoning, as a model's that never came to its answer."""

    path: str
    model: str
    prompts: Sequence[Prompt]  # one for each choice
    prompt_ids: Sequence[Sequence[int]]  # one for each prompt, which may have several choices
    max_tokens: int
    stop: Sequence[str]
    stream: bool
    usage_wanted: bool
    endless: bool
    salt: str = ""
    thinking: bool = False

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompt_ids))


def asked(path: str, body: Any, model: Model) -> Asked:
    """Raises Refused."""
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object", "body", "Bad Request")
    name = known_model(body, model)
    prompts = prompts_of(path, body)
    ids = [prompt.ids for prompt in prompts]
    choices = integer(body, "n", 1, 1, MAX_CHOICES) if path in NAMED_LIMITS else 1
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refused(400, "stream_options must be an object", "stream_options")
    if options and not body.get("stream"):
        raise Refused(400, "Stream options can only be defined when `stream=True`.", "stream_options")
    return Asked(
        path=path,
        model=name,
        prompts=[replace(prompt, choice=choice) for prompt in prompts for choice in range(choices)],
        prompt_ids=ids,
        max_tokens=token_limit(path, body, max(map(len, ids)), model),
        stop=strings(body.get("stop") or body.get("stop_sequences") or [], "stop"),
        stream=bool(body.get("stream")),
        usage_wanted=bool(options.get("include_usage")),
        endless=bool(body.get("ignore_eos")),
        salt=salt_of(body),
        thinking=thinking(body),
    )


def thinking(body: Mapping[str, Any]) -> bool:
    options = body.get("chat_template_kwargs")
    return isinstance(options, dict) and options.get("enable_thinking") is True


def salt_of(body: Mapping[str, Any]) -> str:
    salt = body.get("cache_salt")
    if salt is None:
        return ""
    if not isinstance(salt, str) or not 0 < len(salt) <= LONGEST_SALT or set(salt) & NOT_IN_SALTS:
        raise Refused(
            400,
            f"Parameter 'cache_salt' must be at most {LONGEST_SALT} characters and must not contain '@', '/', '\\\\', "
            "or NUL.",
            "cache_salt",
        )
    return salt


def known_model(body: Mapping[str, Any], model: Model) -> str:
    """By which name it was asked. Raises Refused."""
    name = body.get("model")
    if name is None or name == model.name:
        return model.name
    if why := model.adapters.find(name):
        status = 400 if "could not be loaded" in why else 404
        aliases = "" if model.adapters.folder else f" Valid aliases: {model.name}."
        raise Refused(status, f"{why}{aliases}", "model")
    return str(name)


NAMED_LIMITS: Mapping[str, Sequence[str]] = {
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/v1/completions": ("max_tokens",),
}
LIMITS = {**NAMED_LIMITS, "/v1/responses": ("max_output_tokens",), "/v1/messages": ("max_tokens",)}


def token_limit(path: str, body: Mapping[str, Any], prompt_tokens: int, model: Model) -> int:
    room = model.max_model_len - prompt_tokens
    if room < 1:
        raise Refused(
            400,
            f"This model's maximum context length is {model.max_model_len} tokens. However, your prompt contains "
            f"{prompt_tokens} input tokens, which exceeds this limit even without any output tokens. Please reduce the "
            f"length of the input prompt. (parameter=input_tokens, value={prompt_tokens})",
            "input_tokens",
        )
    name = next((name for name in LIMITS[path] if body.get(name) is not None), LIMITS[path][0])
    default = COMPLETION_TOKENS if path == "/v1/completions" else room
    return min(integer(body, name, default, 1, model.max_model_len), room)


def prompts_of(path: str, body: Mapping[str, Any]) -> list[Prompt]:
    if path == "/v1/completions":
        if body.get("echo"):
            raise Refused(400, "the simulator does not echo: leave `echo` out", "echo")
        prompt = required(body, "prompt")
        return [Prompt("", text, chat=False) for text in bare_texts(prompt)]
    if path == "/v1/responses":
        given = required(body, "input")
        system = body.get("instructions")
        return [chat_prompt([{"role": "user", "content": given}] if isinstance(given, str) else given, system, False)]
    continued = bool(body.get("continue_final_message"))
    if continued and body.get("add_generation_prompt", True):
        raise Refused(400, NOT_BOTH)
    return [chat_prompt(required(body, "messages"), body.get("system"), continued)]


def bare_texts(prompt: Any) -> list[str]:
    """A text, tokens, or a list of either."""
    if not isinstance(prompt, list):
        return strings(prompt, "prompt")
    single = not prompt or isinstance(prompt[0], int)
    return [
        item if isinstance(item, str) else decode(token_ids(item, "prompt"))
        for item in ([prompt] if single else prompt)
    ]


def chat_prompt(messages: Any, system: Any, continued: bool) -> Prompt:
    """The conversation with its marks; `continued`: the last message is still open."""
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages must be a list with at least one message", "messages")
    turns = [turn(message) for message in messages]
    if system:
        turns.insert(0, ("system", text_of(system)))
    closed, (role, text) = (turns[:-1], turns[-1]) if continued else (turns, ("assistant", ""))
    given = "".join(f"<|{role}|>{text}{END}" for role, text in closed)
    return Prompt(f"{given}<|{role}|>", text, chat=True)


def turn(message: Any) -> tuple[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role", "user"), str):
        raise Refused(400, "a message must be an object with a role", "messages")
    calls = message.get("tool_calls")
    return message.get("role", "user"), text_of(message.get("content")) + (str(calls) if calls else "")


def text_of(content: Any) -> str:
    """Text, or the text of parts; parts without any are told by their type."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise Refused(400, "content must be text or a list of parts", "messages")
    return "".join(parts(content))


def parts(content: Sequence[Any]) -> Iterator[str]:
    for part in content:
        text = part.get("text", f"[{part.get('type')}]") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise Refused(400, "a part of content must be text or an object", "messages")
        yield text


def required(body: Mapping[str, Any], name: str) -> Any:
    if body.get(name) is None:
        message = f"1 validation error:\n  {{'type': 'missing', 'loc': 'body.{name}', 'msg': 'Field required'}}"
        raise Refused(400, message, f"body.{name}", "Bad Request")
    return body[name]


def integer(body: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused(400, f"{name} must be an integer", name)
    if not least <= value <= most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise Refused(400, f"{name} must be {bound}, got {value}. (parameter={name}, value={value})", name)
    return value


def strings(value: Any, name: str) -> list[str]:
    """A string or a list of them."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise Refused(400, f"{name} must be text or a list of texts", name)
    return [item for item in values if item] if name == "stop" else values


def token_ids(value: Any, name: str) -> list[int]:
    if not isinstance(value, list) or not all(isinstance(item, int) and 0 <= item < 1 << 63 for item in value):
        raise Refused(400, f"{name} must be a list of token ids", name)
    return value
