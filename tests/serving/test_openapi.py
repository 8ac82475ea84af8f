"""The gateway's OpenAPI document: valid, complete, true of what is sent and of what is answered."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from penstock import errors
from penstock.callers import SCOPES, Caller
from penstock.config import Config
from penstock.errors import PenstockError, StartError
from serving import bodies, fields
from serving.caps import CHECKS, bounds
from serving.openapi import RAW_MARK, document
from serving.openapi_answers import ANSWERS, OF_A_GENERATION
from serving.policy import Policy
from serving.routes import EACH_MODEL, ONE_MODEL, ROUTES
from serving.wire import ANTHROPIC, OPENAI
from tests.serving.conftest import Running
from tests.serving.drawn import resolved, validator
from tests.serving.test_fuzz import RICH
from tests.serving.test_policy import LEAST
from tests.serving.test_routes import BODIES

SERVED: dict[str, Any] = {"engines": {"e": {"kind": "scripted"}}, "models": {"sim": {"engine": "e"}}}
ALL = {**ROUTES, EACH_MODEL: ONE_MODEL}
WHOLE = document(ALL, Config(**SERVED))
EVERYTHING = Caller("1", "ada", "ada", frozenset(SCOPES))
KEY = "sk-0123456789abcdef"


def body_schema(path: str, whole: dict[str, Any] = WHOLE) -> dict[str, Any]:
    found: dict[str, Any] = whole["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return found


def configured(**policy: Any) -> Config:
    return Config(**SERVED, policy=policy)


def found_in(value: Any, name: str) -> list[Any]:
    """Everything that stands under this name, at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [value[name]] if isinstance(value, dict) and name in value else []
    return [*own, *(each for child in inner for each in found_in(child, name))]


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    schemas = [*found_in(WHOLE, "schema"), *WHOLE["components"]["schemas"].values()]
    assert len(schemas) > 100
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
    references = set(found_in(WHOLE, "$ref"))
    assert len(references) > 50
    for reference in references:
        assert resolved({"$ref": reference}, WHOLE), reference
    mapped = {to for discriminator in found_in(WHOLE, "discriminator") for to in discriminator["mapping"].values()}
    assert mapped
    assert mapped <= references


def test_it_is_openapi_3_1_as_far_as_that_has_rules() -> None:
    assert WHOLE["openapi"] == "3.1.0"
    assert set(WHOLE) == {"openapi", "info", "paths", "components"}
    operations = [operation for methods in WHOLE["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for path, methods in WHOLE["paths"].items():
        for operation in methods.values():
            parameters = [resolved(parameter, WHOLE) for parameter in operation["parameters"]]
            assert {of["name"] for of in parameters if of["in"] == "path"} == ({"id"} if "{id}" in path else set())
            assert all("description" in resolved(response, WHOLE) for response in operation["responses"].values())
            for either in operation["security"]:
                assert set(either) <= set(WHOLE["components"]["securitySchemes"])
    assert json.loads(json.dumps(WHOLE, allow_nan=False)) == WHOLE


def test_every_route_and_no_other_stands_in_it() -> None:
    assert {path: {*methods} for path, methods in WHOLE["paths"].items()} == {
        path: {route.method.lower()} for path, route in ALL.items()
    }
    for path, route in ALL.items():
        operation = WHOLE["paths"][path][route.method.lower()]
        assert ("requestBody" in operation) == (route.shape is not None)
        assert [*operation["security"]] == (
            [] if route.open else [{way: [route.scope] if route.scope else []} for way in ("bearer", "x-api-key")]
        )


@pytest.mark.parametrize("path", fields.PATHS)
def test_every_field_stands_in_it_as_the_tables_have_it(path: str) -> None:
    schema = body_schema(path)
    scopes = {name: of[RAW_MARK] for name, of in schema["properties"].items() if RAW_MARK in of}
    assert schema["properties"].keys() - scopes.keys() == fields.plain(path)
    assert scopes.pop(fields.STEPS, None) == ("steps" if path in fields.STEPPED else None)
    marked = scopes.keys()
    assert set(scopes.values()) == {"raw-fields"}
    assert marked == fields.RAW.keys() - fields.plain(path)
    assert not (schema["properties"].keys() - fields.plain(path)) & fields.INSTEAD.keys()
    for name in marked:
        assert fields.RAW[name] in schema["properties"][name]["description"]
    shape = ROUTES[path].shape
    assert shape
    must = {name for name, field in shape.model_fields.items() if field.is_required()}
    assert set(schema["required"]) == must <= schema["properties"].keys()
    assert schema["additionalProperties"] is False
    assert body_schema(path, document(ALL, configured(unknown_fields="pass")))["additionalProperties"] is True


def test_no_name_of_a_shape_is_an_answers() -> None:
    shapes = {name for name, of in vars(bodies).items() if isinstance(of, type) and issubclass(of, bodies.Body)}
    assert not shapes & ANSWERS.keys()


@pytest.mark.parametrize("path", fields.PATHS)
def test_the_requests_of_the_other_tests_are_what_it_allows(path: str) -> None:
    allowed = validator(body_schema(path), WHOLE)
    for body in (LEAST[path], {**LEAST[path], **RICH[path]}, {"model": "sim", **BODIES[path]}):
        assert not [error.message for error in allowed.iter_errors(body)]


# A field, what may just be sent under the policy below, and what is one too many.
EDGES: list[tuple[str, str, Any, Any]] = [
    (fields.CHAT, "n", 3, 4),
    (fields.TEXT, "best_of", 1, 2),
    (fields.CHAT, "max_tokens", 50, 51),
    (fields.RESPONSES, "max_output_tokens", 50, 51),
    (fields.CHAT, "stop", ["a" * 9] * 2, ["a"] * 3),
    (fields.CHAT, "stop", "a" * 9, "a" * 10),
    (fields.MESSAGES, "stop_sequences", ["a" * 9], ["a" * 10]),
    (fields.CHAT, "bad_words", ["a"] * 128, ["a"] * 129),
    (fields.CHAT, "bad_words", ["a" * 9], "a"),
    (fields.CHAT, "allowed_token_ids", [1] * 1024, [1] * 1025),
    (fields.CHAT, "logit_bias", {"1": 1}, {str(number): 1 for number in range(1025)}),
    (fields.CHAT, "prompt_logprobs", 20, 21),
    (fields.CHAT, "modalities", ["text"], ["text", "audio"]),
    (fields.CHAT, "chat_template_kwargs", {"thinking": True}, True),
    (fields.TEXT, "structured_outputs", {"regex": "a"}, "a"),
    (fields.TEXT, "prompt", "a" * 200, "a" * 201),
    (fields.RESPONSES, "instructions", "a" * 200, "a" * 201),
]


@pytest.mark.parametrize(("path", "name", "most", "more"), EDGES)
def test_its_bounds_are_the_policys(path: str, name: str, most: Any, more: Any) -> None:
    config = configured(max_n=3, max_tokens=50, max_stops=2, max_stop_chars=9, max_prompt_chars=200)
    whole = document(ALL, config)
    allowed, shape = validator(body_schema(path, whole), whole), ROUTES[path].shape
    assert shape
    fits, beyond = {**LEAST[path], name: most}, {**LEAST[path], name: more}
    assert allowed.is_valid(fits)
    Policy(config.policy).applied(path, bodies.parse(json.dumps(fits).encode(), shape), EVERYTHING)
    assert not allowed.is_valid(beyond)
    with pytest.raises(PenstockError):
        Policy(config.policy).applied(path, bodies.parse(json.dumps(beyond).encode(), shape), EVERYTHING)


def test_what_is_checked_has_its_bounds_there_or_cannot_be_said() -> None:
    grammars = {"output_config", "penstock", "response_format", "text"}
    assert CHECKS.keys() - bounds(configured().policy).keys() == grammars


def every(kind: type[PenstockError]) -> set[type[PenstockError]]:
    return {kind}.union(*(every(inner) for inner in kind.__subclasses__()))


def test_every_error_of_a_generation_is_written_as_it_is_told() -> None:
    for kind in OF_A_GENERATION:
        for dialect, family in ((OPENAI, "OpenAI"), (ANTHROPIC, "Anthropic")):
            response = WHOLE["components"]["responses"][f"{family}{kind.status}"]
            schema = response["content"]["application/json"]["schema"]
            said = dialect.error(kind("what is wrong"), "req_1")
            assert not [error.message for error in validator(schema, WHOLE).iter_errors(said)]
            assert (kind.code or kind.type) in response["description"]


def test_the_errors_that_stand_not_in_it_answer_no_generation() -> None:
    sent = {kind for kind in every(PenstockError) - every(StartError) if kind.__module__ == errors.__name__}
    of_the_admin_api = {errors.Conflict, errors.StateUnavailable}
    of_no_route = {errors.MethodNotAllowed, errors.UnknownUrl}
    in_mid_stream = {errors.StreamInterrupted}
    assert sent - {*OF_A_GENERATION} == of_the_admin_api | of_no_route | in_mid_stream


@pytest.mark.anyio
async def test_it_is_served_as_configured_to_who_has_a_key(gateway: Running) -> None:
    async with gateway(**SERVED, gateway={"keys": [KEY]}, policy={"max_n": 2}) as client:
        without = await client.get("/openapi.json")
        first, again = [await client.get("/openapi.json", headers={"x-api-key": KEY}) for _ in range(2)]
    assert without.status_code == 401
    assert first.json() == again.json() == document(ALL, configured(max_n=2))
    assert first.headers["content-type"] == "application/json"


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, {"anthropic-version": "2023-06-01"}])
async def test_what_the_gateway_itself_answers_is_what_it_says(gateway: Running, headers: dict[str, str]) -> None:
    paths = [(path, path.replace("{id}", "sim")) for path, route in ALL.items() if route.method == "GET"]
    for keyed in ({}, {"gateway": {"keys": [KEY]}}):
        async with gateway(**SERVED, **keyed) as client:
            for path, asked in [*paths, (EACH_MODEL, "/v1/models/no")]:
                answer = await client.get(asked, headers=headers)
                response = resolved(WHOLE["paths"][path]["get"]["responses"][str(answer.status_code)], WHOLE)
                kind = answer.headers["content-type"].partition(";")[0]
                schema = response["content"][kind]["schema"]
                said = answer.json() if kind == "application/json" else answer.text
                assert not [error.message for error in validator(schema, WHOLE).iter_errors(said)], path
                assert answer.headers.keys() >= {"x-request-id"}
