"""Bounds on single fields: how many answers and tokens, which stops, how large a grammar. Each check takes the value
and what its field is called, and raises BadRequest or Forbidden; a null never comes here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from penstock.callers import Caller
from penstock.config import Policy, nearest
from penstock.errors import BadRequest, Forbidden
from serving.fields import BATCHES, PROMPTS, TEMPLATE_KWARGS, TEXT
from serving.schemas import check_schema, check_structured_outputs

Check = Callable[[Any, str, Policy, Caller], None]

MAX_LISTED = 1024
MAX_BAD_WORDS = 128
MAX_PROMPT_LOGPROBS = 20
MAX_TEMPLATE_TEXT_CHARS = 1024
SHOWN_CHARS = 64
TOOLS_AS_SCHEMAS = 16
# Others are run by the server that answers: searches, code, files, calls to other servers.
TOOLS_OF_THE_CALLER = frozenset({"function", "custom", "namespace"})


def check_count(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    if limits.max_n is not None and type(value) is int and value > limits.max_n:
        raise BadRequest(f"{name} is {value}, {limits.max_n} at most (policy.max_n)", param=name)


def check_best_of(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    check_count(value, name, limits, caller)
    if type(value) is int and value > 1:
        raise BadRequest("best_of: no engine here ranks answers: ask for n, and choose", param=name)


def check_batches(path: str, body: Mapping[str, Any], limits: Policy) -> None:
    """How many prompts or inputs there are: each is a request of its own to the engine."""
    limit = "max_prompts" if path == TEXT else "max_inputs"
    most = getattr(limits, limit)
    for name in BATCHES[path]:
        if most is not None and (count := how_many(body.get(name))) > most:
            raise BadRequest(
                f"{name}: {count} are given, {most} at most in a request (policy.{limit}): send several", param=name
            )


def how_many(value: Any) -> int:
    """A list of numbers is one prompt; an object may hold several documents as its parts."""
    if type(value) is dict:
        value = value.get("content")
    return len(value) if type(value) is list and value and type(value[0]) is not int else 1


def check_tokens(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    if limits.max_tokens is not None and type(value) is int and value > limits.max_tokens:
        raise BadRequest(f"{name} is {value}, {limits.max_tokens} at most (policy.max_tokens)", param=name)


def check_stops(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    stops = value if type(value) is list else [value]
    if len(stops) > limits.max_stops:
        raise BadRequest(f"{name}: {len(stops)} are given, {limits.max_stops} at most (policy.max_stops)", param=name)
    if any(type(stop) is str and len(stop) > limits.max_stop_chars for stop in stops):
        raise BadRequest(
            f"{name}: one is longer than {limits.max_stop_chars} characters (policy.max_stop_chars)", param=name
        )


def check_listed(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    if type(value) in (list, dict) and len(value) > MAX_LISTED:
        raise BadRequest(f"{name}: {len(value)} are given, {MAX_LISTED} at most", param=name)


def check_bad_words(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    if type(value) is not list or len(value) > MAX_BAD_WORDS:
        raise BadRequest(f"{name} must be a list of {MAX_BAD_WORDS} words at most", param=name)
    if any(type(word) is str and len(word) > limits.max_stop_chars for word in value):
        raise BadRequest(
            f"{name}: one is longer than {limits.max_stop_chars} characters (policy.max_stop_chars)", param=name
        )


def check_prompt_logprobs(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    if type(value) is not int or not 0 <= value <= MAX_PROMPT_LOGPROBS:
        raise BadRequest(f"{name} must be between 0 and {MAX_PROMPT_LOGPROBS}", param=name)


def check_format(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    check_schema(value, name, limits)


def check_structured(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    check_structured_outputs(value, limits)


def check_tools(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    """One by one, and together: a call of any of them may be made one grammar."""
    room = limits.max_schema_bytes * TOOLS_AS_SCHEMAS
    for index, tool in enumerate(value if type(value) is list else ()):
        param = f"{name}[{index}]"
        room -= check_schema(tool, param, limits)
        if room < 0:
            most = limits.max_schema_bytes * TOOLS_AS_SCHEMAS
            raise BadRequest(f"{name}: they have more than {most} bytes (policy.max_schema_bytes)", param=name)
        if type(tool) is not dict:
            raise BadRequest(f"{param} must be an object, such as {{type: function, function: ...}}", param=param)
        kind = tool.get("type", "function")
        if "raw-fields" in caller.scopes or str(kind) in TOOLS_OF_THE_CALLER:
            continue
        raise Forbidden(
            f"{param}: tools of type {str(kind)[:SHOWN_CHARS]!r} are for keys with the scope raw-fields; "
            "offer functions of your own",
            param=param,
        )


def check_template_kwargs(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    """A template's own switches, not its program."""
    if type(value) is not dict:
        raise BadRequest(f"{name} must be an object", param=name)
    if "raw-fields" in caller.scopes:
        return
    for key, inner in value.items():
        param = f"{name}.{key[:SHOWN_CHARS]}"
        if key not in TEMPLATE_KWARGS:
            near = nearest(key[:SHOWN_CHARS], sorted(TEMPLATE_KWARGS))
            raise Forbidden(f"{param} is for keys with the scope raw-fields{near}", param=param)
        if type(inner) in (dict, list) or (type(inner) is str and len(inner) > MAX_TEMPLATE_TEXT_CHARS):
            raise Forbidden(f"{param}: anything but a switch or a short text takes the scope raw-fields", param=param)


def check_modalities(value: Any, name: str, limits: Policy, caller: Caller) -> None:
    if value != ["text"]:
        raise BadRequest(f"{name}: answers here are text", param=name)


CHECKS: Mapping[str, Check] = {
    "allowed_token_ids": check_listed,
    "bad_words": check_bad_words,
    "best_of": check_best_of,
    "chat_template_kwargs": check_template_kwargs,
    "logit_bias": check_listed,
    "logprob_token_ids": check_listed,
    "max_completion_tokens": check_tokens,
    "max_output_tokens": check_tokens,
    "max_tokens": check_tokens,
    "modalities": check_modalities,
    "n": check_count,
    "output_config": check_format,
    "penstock": check_format,
    "prompt_logprobs": check_prompt_logprobs,
    "response_format": check_format,
    "stop": check_stops,
    "stop_sequences": check_stops,
    "stop_token_ids": check_listed,
    "structured_outputs": check_structured,
    "text": check_format,
    "tools": check_tools,
}
# Nothing is checked of these while the limit is not set.
BY_LIMIT: Mapping[str, tuple[str, ...]] = {
    "max_n": ("n",),
    "max_tokens": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
}


def bounds(limits: Policy) -> dict[str, dict[str, Any]]:
    """What the checks refuse, field by field, as far as JSON Schema can say it."""
    tokens = {} if limits.max_tokens is None else {"maximum": limits.max_tokens}
    word = {"maxLength": limits.max_stop_chars}
    stops = {"maxItems": limits.max_stops, "items": word, **word}
    listed = {"maxItems": MAX_LISTED, "maxProperties": MAX_LISTED}
    an_object = {"type": ["object", "null"]}
    switches = f"Everybody's are {', '.join(sorted(TEMPLATE_KWARGS))}; others take the scope raw-fields."
    types = f"Other types than {', '.join(sorted(TOOLS_OF_THE_CALLER))} take the scope raw-fields."
    text = {} if limits.max_prompt_chars is None else {"maxLength": limits.max_prompt_chars}
    return {
        **dict.fromkeys(PROMPTS, text),
        **dict.fromkeys(BY_LIMIT["max_tokens"], tokens),
        **dict.fromkeys(("stop", "stop_sequences"), stops),
        **dict.fromkeys(("allowed_token_ids", "logit_bias", "logprob_token_ids", "stop_token_ids"), listed),
        "n": {} if limits.max_n is None else {"maximum": limits.max_n},
        "best_of": {"maximum": 1},
        "bad_words": {"type": ["array", "null"], "maxItems": MAX_BAD_WORDS, "items": word},
        "prompt_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_PROMPT_LOGPROBS},
        "chat_template_kwargs": {**an_object, "description": switches},
        "structured_outputs": an_object,
        "modalities": {"enum": [["text"], None]},
        "tools": {"description": types},
    }
