"""Templates in their sandbox: the operator's text, the caller's data."""

import pytest

from penstock.errors import BadRequest, StartError
from prompting.templates import CHARACTERS, Text


def rendered(source: str, **variables: object) -> str:
    return Text(source, "p/1.yaml, system").render(variables)


def test_variables_are_data_and_never_template() -> None:
    hostile = "{{ 7 * 7 }}{% for x in y %}{% endfor %}{# no #}<b>"
    assert rendered("Say {{ text }}.", text=hostile) == f"Say {hostile}."


def test_templates_decide_and_repeat() -> None:
    source = "{% for city in cities if city != skip %}\n{{ loop.index }}. {{ city | title }}\n{% endfor %}\n"
    assert rendered(source, cities=["rome", "oslo", "bern"], skip="oslo") == "1. Rome\n2. Bern"
    assert (
        rendered("{% if tone %}Be {{ tone.upper() }}.{% endif %} {{ n * 2 + n % 3 }}", tone="kind", n=4) == "Be KIND. 9"
    )


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ a", "line 1"),
        ("ok\n{% for x in a %}", "line 2"),
        ("{{ a | center(9) }}", "No filter named 'center'"),
        ("{% include 'other' %}", "include is not for prompts"),
        ("{% macro f() %}{{ f() }}{% endmacro %}", "macro is not for prompts"),
        ("{% for x in a recursive %}{{ loop(x) }}{% endfor %}", "recursive"),
    ],
)
def test_what_is_no_template_is_told_with_its_place(source: str, told: str) -> None:
    with pytest.raises(StartError, match=told) as error:
        Text(source, "p/1.yaml, system")
    assert error.value.message.startswith("p/1.yaml, system, line ")


@pytest.mark.parametrize(
    "source",
    [
        "{{ a.__class__.__mro__ }}",
        "{{ a.format(1) }}",
        "{{ a.ljust(n) }}",
        "{{ a * n }}",
        "{{ a % n }}",
        "{{ n ** n }}",
        "{{ n * n * n * n }}",
        "{{ 1 / (n - n) }}",
        "{{ a.missing }}",
        "{% for x in a %}{% for y in a %}{% for z in a %}{% endfor %}{% endfor %}{% endfor %}",
        "{% for x in a %}{{ a }}{{ a }}{{ a }}{% endfor %}",
        "{% for x in n %}{% endfor %}",
    ],
)
def test_no_value_makes_rendering_long_or_leaves_the_sandbox(source: str) -> None:
    with pytest.raises(BadRequest, match="cannot be rendered"):
        rendered(source, a="{0.__class__}" * 50, n=10**9)


def test_a_rendered_text_has_a_bound() -> None:
    assert len(rendered("{{ a }}", a="x" * CHARACTERS)) == CHARACTERS
    with pytest.raises(BadRequest, match="longer than"):
        rendered("{{ a }}y", a="x" * CHARACTERS)
