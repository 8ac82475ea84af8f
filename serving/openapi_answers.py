"""What comes back, as `serving/openapi.py` describes it: answers, headers, and errors as each family of clients knows
them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from penstock import errors, metrics
from penstock.errors import PenstockError
from serving import fields
from serving.wire import ANTHROPIC, OPENAI, Anthropic, Dialect

if TYPE_CHECKING:
    from serving.routes import Route

Json = dict[str, Any]
Family = Literal["OpenAI", "Anthropic", "Either"]
Kinds = tuple[type[PenstockError], ...]

# `Either`: Anthropic's for who sends anthropic-version.
FAMILIES: dict[Family, dict[str, Dialect]] = {
    "OpenAI": {"OpenAI": OPENAI},
    "Anthropic": {"Anthropic": ANTHROPIC},
    "Either": {"OpenAI": OPENAI, "Anthropic": ANTHROPIC},
}
OF_A_KEY: Kinds = (errors.InvalidKey, errors.Forbidden)
OF_A_NAME: Kinds = (*OF_A_KEY, errors.ModelNotFound)
OF_A_GENERATION: Kinds = (
    *OF_A_NAME,
    errors.BadRequest,
    errors.ContextLengthExceeded,
    errors.BudgetSpent,
    errors.ContentFiltered,
    errors.NotFound,
    errors.BodyTooSlow,
    errors.BodyTooLarge,
    errors.KeyReused,
    errors.RateLimited,
    errors.OverBudget,
    PenstockError,
    errors.EngineError,
    errors.EngineRefused,
    errors.Overloaded,
    errors.GuardFailed,
    errors.EngineUnavailable,
    errors.EngineTimeout,
)
EXAMPLE_ID = "req_0123456789abcdef0123456789abcdef"
STREAM = "With `stream: true`: server-sent events, the last of which says that the answer is whole, or the error."


def answers(path: str, route: "Route", family: Family) -> Json:
    """What comes when all goes well."""
    content: Json = {"application/json": {"schema": ref("schemas", CONTROLS.get(path, "Generated"))}}
    if route.shape and "stream" in fields.plain(path):
        content["text/event-stream"] = {"schema": {"type": "string", "description": STREAM}}
    if path == "/metrics":
        content = {metrics.CONTENT_TYPE.partition(";")[0]: {"schema": {"type": "string"}}}
    more = (MODEL_VERSION, *RATE_LIMITS) if route.shape else ()
    answer = {"headers": headers_of(family, *more), "content": content}
    found = {"200": {"description": "The engine's own." if route.shape else "As it is now.", **answer}}
    return found | {"503": {"description": "Not ready.", **answer}} if path == "/ready" else found


def refusals(path: str, route: "Route", family: Family) -> Json:
    kinds = OF_A_GENERATION if route.shape else OF_A_NAME if "{id}" in path else () if route.open else OF_A_KEY
    return {str(status): ref("responses", f"{family}{status}") for status in statuses(kinds)}


def refusal(family: Family, status: int) -> Json:
    """All errors of one status; each is shown as it is written."""
    kinds = [kind for kind in OF_A_GENERATION if kind.status == status]
    dialects = FAMILIES[family]
    schemas = [ref("schemas", f"{name}Error") for name in dialects]
    examples = {
        f"{kind.__name__}-{name}": {"value": dialect.error(kind("what is wrong, and what to do"), EXAMPLE_ID)}
        for name, dialect in dialects.items()
        for kind in kinds
    }
    more = {429: ("Retry-After", *RATE_LIMITS), 503: ("Retry-After",)}.get(status, ())
    return {
        "description": ", ".join(dict.fromkeys(kind.code or kind.type for kind in kinds)),
        "headers": headers_of(family, *more),
        "content": {"application/json": {"schema": {"anyOf": schemas}, "examples": examples}},
    }


def headers_of(family: Family, *more: str) -> Json:
    names = ["x-request-id", *(["request-id"] if family != "OpenAI" else []), *more]
    return {name: ref("headers", name) for name in names}


def statuses(kinds: Iterable[type[PenstockError]]) -> list[int]:
    return sorted({kind.status for kind in kinds})


def ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def whole(**properties: Json) -> Json:
    """An object that has all of these."""
    return {"type": "object", "required": [*properties], "properties": properties}


def header(description: str, kind: str = "string") -> Json:
    return {"description": description, "schema": {"type": kind}}


TEXT: Json = {"type": "string"}
OR_NULL: Json = {"type": ["string", "null"]}
OPENAI_MODEL = whole(id=TEXT, object={"const": "model"}, created={"type": "integer"}, owned_by=TEXT)
OPENAI_MODEL["properties"]["version"] = {"type": "string", "description": "NAME@NUMBER, of a registered model."}
OPENAI_MODEL["properties"]["composition"] = {
    "type": "string",
    "description": "Another one as soon as its steps, guards, budget or models are, or those of models that they ask.",
}
ANTHROPIC_MODEL = whole(type={"const": "model"}, id=TEXT, display_name=TEXT, created_at=TEXT)
CONTROLS = {
    "/health": "Health",
    "/ready": "Ready",
    "/openapi.json": "Document",
    "/v1/models": "Models",
    "/v1/models/{id}": "Model",
}
ANSWERS: Json = {
    "Generated": {"type": "object", "description": "In OpenAI's, Anthropic's or vLLM's shape, as the route is theirs."},
    "Document": whole(openapi=TEXT, info={"type": "object"}, paths={"type": "object"}),
    "Health": whole(status={"const": "ok"}),
    "Ready": whole(
        ready={"type": "boolean"},
        engines={"type": "object", "additionalProperties": {"type": "boolean"}},
        waiting={"type": "array", "items": TEXT},
    ),
    "Model": {"anyOf": [OPENAI_MODEL, ANTHROPIC_MODEL]},
    "Models": {
        "anyOf": [
            whole(object={"const": "list"}, data={"type": "array", "items": OPENAI_MODEL}),
            whole(
                data={"type": "array", "items": ANTHROPIC_MODEL},
                first_id=OR_NULL,
                last_id=OR_NULL,
                has_more={"const": False},
            ),
        ]
    },
    "OpenAIError": whole(
        error=whole(
            message=TEXT,
            type={"enum": sorted({kind.type for kind in OF_A_GENERATION})},
            param=OR_NULL,
            code={"enum": [*sorted({kind.code for kind in OF_A_GENERATION if kind.code}), None]},
        )
    ),
    "AnthropicError": whole(
        type={"const": "error"},
        error=whole(type={"enum": [*sorted({*Anthropic.TYPES.values(), "api_error"})]}, message=TEXT),
        request_id=TEXT,
    ),
}
RATE_LIMITS = tuple(
    f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
MODEL_VERSION = "x-penstock-model-version"
HEADERS: Json = {
    MODEL_VERSION: header("The registered version that has answered, NAME@NUMBER."),
    "x-request-id": header("The request's id, the caller's own where it sent one."),
    "request-id": header("The same, as Anthropic's clients look for it."),
    "Retry-After": header("In so many seconds it is worth while to try again.", "integer"),
    **{
        name: header("How a limit of the key stands, in a minute's window.", "string" if "reset" in name else "integer")
        for name in RATE_LIMITS
    },
}
RESPONSES: Json = {
    f"{family}{status}": refusal(family, status) for family in FAMILIES for status in statuses(OF_A_GENERATION)
}
