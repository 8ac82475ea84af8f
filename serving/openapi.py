"""The inference API as an OpenAPI 3.1 document, made of what decides: routes, shapes, fields, bounds, errors.

What its schemas refuse is refused here; what they let pass may still be refused, by the policy or by an engine.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema

from penstock import __version__
from penstock.config import Config, Policy
from serving import fields
from serving.bodies import Routed
from serving.caps import bounds
from serving.openapi_answers import ANSWERS, HEADERS, RESPONSES, Family, Json, answers, ref, refusals
from serving.replays import LONGEST_KEY
from serving.wire import ANTHROPIC

if TYPE_CHECKING:
    from serving.routes import Route

RAW_MARK = "x-penstock-scope"
ABOUT = (
    "OpenAI's and Anthropic's routes before engines that generate, with the bounds of the configuration that runs. "
    f"Fields marked with {RAW_MARK} are for keys that have this scope."
)
BODY = (
    "At most {0} bytes. Where unknown fields are refused, one that is empty (null, false, 0, a text, list or object "
    "without content) is as good as absent."
)
SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


class Untitled(GenerateJsonSchema):
    """Without the titles that repeat each field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def document(routes: Mapping[str, "Route"], config: Config) -> Json:
    """Of these routes. It does not say which models are served: that is each key's own to see."""
    schemas = dict(ANSWERS)
    paths = {path: {route.method.lower(): operation(path, route, config, schemas)} for path, route in routes.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock's inference API", "version": __version__, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": RESPONSES,
            "headers": HEADERS,
            "parameters": PARAMETERS,
            "securitySchemes": SECURITY,
        },
    }


def operation(path: str, route: "Route", config: Config, schemas: Json) -> Json:
    """`schemas` gains what the route's body is made of."""
    family = family_of(path, route)
    wanted = [
        *(["id"] if "{id}" in path else []),
        "x-request-id",
        *(["x-request-timeout-s", "x-session-id", "Idempotency-Key"] if route.shape else []),
        *(["anthropic-version"] if family != "OpenAI" else []),
    ]
    described: Json = {
        "operationId": path.removeprefix("/v1").strip("/").translate(str.maketrans("/", "_", "{}")),
        "security": [] if route.open else [{name: [route.scope] if route.scope else []} for name in SECURITY],
        "parameters": [ref("parameters", name) for name in wanted],
        "responses": answers(path, route, family) | refusals(path, route, family),
    }
    if route.shape:
        described["requestBody"] = {
            "required": True,
            "description": BODY.format(config.gateway.max_body_bytes),
            "content": {"application/json": {"schema": body_of(path, route.shape, config.policy, schemas)}},
        }
    return described


def family_of(path: str, route: "Route") -> Family:
    if path.startswith("/v1/models"):
        return "Either"
    return "Anthropic" if route.dialect is ANTHROPIC else "OpenAI"


def body_of(path: str, shape: type[Routed], limits: Policy, schemas: Json) -> Json:
    """The shape, cut down to the fields that are served, within the policy's bounds."""
    schema = shape.model_json_schema(ref_template="#/components/schemas/{model}", schema_generator=Untitled)
    schemas |= schema.pop("$defs", {})
    shaped, bounded, plain = schema["properties"], bounds(limits), fields.plain(path)
    properties = {name: {**shaped.get(name, {}), **bounded.get(name, {})} for name in sorted(plain)}
    properties |= {
        name: {**shaped.get(name, {}), RAW_MARK: "raw-fields", "description": f"For keys with raw-fields: {why}."}
        for name, why in fields.RAW.items()
        if name not in plain
    }
    if path in fields.STEPPED:
        what = "For keys with steps: what the request passes before the engine, in place of the model's own steps."
        properties[fields.STEPS] = {**shaped[fields.STEPS], RAW_MARK: "steps", "description": what}
    return {**schema, "properties": properties, "additionalProperties": limits.unknown_fields == "pass"}


def parameter(name: str, description: str, *, where: str = "header", **schema: Any) -> Json:
    wanted = {"name": name, "in": where, "required": where == "path", "description": description}
    return {**wanted, "schema": {"type": "string", **schema}}


PARAMETERS: Json = {
    "id": parameter("id", "A served model's name.", where="path"),
    "x-request-id": parameter(
        "x-request-id",
        "The request's id in the answer and the logs: at most 128 letters, digits, `_`, `.` and `-`. "
        "Any other, or none, is replaced by a new one.",
    ),
    "x-request-timeout-s": parameter(
        "x-request-timeout-s", "In so many seconds the answer is of no use any more.", type="number", exclusiveMinimum=0
    ),
    "x-session-id": parameter("x-session-id", "Requests of one session go to the same replica while it is well."),
    "Idempotency-Key": parameter(
        "Idempotency-Key",
        "The same request with the same key is generated once, and answered equally each time.",
        minLength=1,
        maxLength=LONGEST_KEY,
    ),
    "anthropic-version": parameter("anthropic-version", "Whoever sends it has Anthropic's shapes from /v1/models."),
}
