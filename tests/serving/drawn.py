"""Documents drawn from a JSON schema of an OpenAPI document, then mutated: what callers send, and what they should not.

All is drawn from a `Random`, whose seed is hypothesis's: whole bodies by the thousand, drawn value by value by
hypothesis itself, would take minutes.
"""

import copy
import string
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from jsonschema import Draft202012Validator

Json = dict[str, Any]

KINDS = ("null", "boolean", "integer", "number", "string", "array", "object")
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e300, "", "x", "x" * 5000, "\x00", "é🌊",
    "data:,", "http://127.0.0.1/", "../../etc/passwd", "{{ 7*7 }}", "'; DROP TABLE keys; --", [], {}, [None], [[]],
    [[[[[[]]]]]], {"": ""}, {"a": {"b": [{}]}}, ["x"] * 300, {"type": "text"}, {"type": ["text"]}, {"type": {}},
    {"url": 5}, {"url": "file:///"}, "sim", "(a+)+$" * 200, {"pattern": "a" * 5000}, [{"role": "user"}],
]  # fmt: skip
PLAIN_NAMES = "abc"  # in every pattern of ours; few, so that names meet


def validator(schema: Json, document: Json) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def resolved(schema: Json, document: Json) -> Json:
    while "$ref" in schema:
        found: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        schema = {**found, **{name: of for name, of in schema.items() if name != "$ref"}}
    return schema


def drawn(random: Random, schema: Json, document: Json, examples: Mapping[str, Any] | None = None) -> Any:
    """What the schema allows; of an object's fields now and then what `examples` has."""
    schema = resolved(schema, document)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            around = {name: of for name, of in schema.items() if name not in (word, "discriminator")}
            return drawn(random, both(resolved(random.choice(schema[word]), document), around), document)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return copy.deepcopy(random.choice(schema["enum"]))
    kind = schema.get("type", KINDS)
    match kind if isinstance(kind, str) else random.choice(kind):
        case "null":
            return None
        case "boolean":
            return random.random() < 0.5
        case "integer":
            return random.randint(*limits(schema, 100))
        case "number":
            return random.choice((random.randint, random.uniform))(*limits(schema, 100))
        case "string":
            return text(random, schema)
        case "array":
            least, most = schema.get("minItems", 0), schema.get("maxItems", 3)
            item = schema.get("items", {"type": ["integer", "string"]})
            return [drawn(random, item, document) for _ in range(random.randint(least, max(least, min(most, 3))))]
        case _:
            return fields_of(random, schema, document, examples or {})


def both(branch: Json, around: Json) -> Json:
    """What is said around a branch is the narrower."""
    items = {"items": {**branch["items"], **around["items"]}} if "items" in branch and "items" in around else {}
    return {**branch, **around, **items}


def limits(schema: Json, span: int) -> tuple[int, int]:
    """The usual values: near the least allowed, or else the largest."""
    if "maximum" in schema and "minimum" not in schema:
        return int(schema["maximum"]) - span, int(schema["maximum"])
    least = int(schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1))
    return least, int(schema.get("maximum", least + span))


def text(random: Random, schema: Json) -> str:
    least, most = schema.get("minLength", 0), min(schema.get("maxLength", 12), 12)
    if "pattern" in schema:
        return "".join(random.choices(PLAIN_NAMES, k=random.randint(1, 2)))
    return "".join(random.choices(string.printable, k=random.randint(least, max(least, most))))


def fields_of(random: Random, schema: Json, document: Json, examples: Mapping[str, Any]) -> Json:
    """All that are required, and a few of the others."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    optional = [name for name in properties if name not in required]
    some = random.sample(optional, min(len(optional), random.choice((0, 1, 2, 3, 8))))
    found = {}
    for name in [*required, *some]:
        if name in examples and random.random() < 0.5:
            found[name] = copy.deepcopy(examples[name])
        else:
            found[name] = drawn(random, properties[name], document)
    if isinstance(more := schema.get("additionalProperties"), dict):
        count = random.randint(schema.get("minProperties", 0), schema.get("maxProperties", 2))
        found |= {str(number): drawn(random, more, document) for number in range(count)}
    return found


def mutated(random: Random, value: Any, names: Sequence[str]) -> Any:
    """The same in which a few things are left out, doubled, of another kind or in another place."""
    holder = {"": value}
    for _ in range(random.choice((0, 1, 1, 1, 2, 3, 8))):
        mutate(random, holder, names)
    return holder.get("")


def mutate(random: Random, body: Json, names: Sequence[str]) -> None:
    places = [*places_in(body)]
    holder, key = random.choice(places[1:] or places)
    match random.randrange(6):
        case 0 if len(places) > 1:
            del holder[key]
        case 1:
            holder[key] = odd(random)
        case 2:
            holder[key] = [holder[key], holder[key]]
        case 3:
            other, name = random.choice(places)
            holder[key] = copy.deepcopy(other[name])
        case 4 if isinstance(holder, dict) and len(places) > 1:
            holder[random.choice(names)] = odd(random)
        case _ if isinstance(body[""], dict):
            body[""][random.choice(names)] = odd(random)


def odd(random: Random) -> Any:
    if random.random() < 0.8:
        return copy.deepcopy(random.choice(ODD))
    return "".join(random.choices(string.printable, k=random.randrange(20)))


def header(random: Random, schema: Json) -> str:
    """One of the parameter's own, or an odd one, as it may stand in a request's head."""
    match random.randrange(5):
        case 0:
            return "".join(chr(random.randrange(0x20, 0x100)) for _ in range(random.randrange(30))).strip()
        case 1:
            return "x" * random.randrange(3000)
        case 2:
            return random.choice(("-1", "0", "nan", "1e999", "inf", "100-continue", "close", "null", "*/*", "identity"))
        case _:
            said = str(drawn(random, schema, {}))
            return "".join(letter for letter in said if letter.isprintable()).strip()


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything in a document, as what holds it and the key or index."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places_in(inner)
