"""References to registered models: what is read, and what is told of the rest."""

from pathlib import Path

import pytest

from penstock import source
from penstock.errors import ConfigError
from penstock.references import Reference


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("registry:demo@production", Reference("demo", "production")),
        ("registry:demo@7", Reference("demo", 7)),
        ("demo@007", Reference("demo", 7)),
        ("Qwen2.5-0.5B_x@v7", Reference("Qwen2.5-0.5B_x", "v7")),
        (f"{'a' * 96}@{'b' * 96}", Reference("a" * 96, "b" * 96)),
    ],
)
def test_what_is_well_formed_is_read(text: str, reference: Reference) -> None:
    assert Reference.of(text) == reference
    assert Reference.of(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    [
        "registry:",
        "registry:demo",
        "registry:@production",
        "registry:demo@",
        "registry:demo@0",
        "registry:demo@99999999999",
        "registry:demo@-1x/",
        "registry:.hidden@1",
        "registry:demo@.hidden",
        "registry:../demo@1",
        "registry:a/b@1",
        "registry:demo@a@b",
        "registry:demo@\u0661",
        "registry:d\u00e9mo@1",
        "registry:demo @1",
        "registry:demo@1\n",
        f"registry:{'a' * 97}@1",
    ],
)
def test_what_is_not_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write registry:NAME@ALIAS|1 to 96|counted from 1"):
        Reference.of(text)


def test_the_configuration_tells_its_line(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text("engines:\n  base:\n    model: registry:demo\nmodels:\n  demo: {engine: base}\n")
    with pytest.raises(ConfigError, match=r"penstock.yaml:2: engines.base: .*'registry:demo' names no version: write"):
        source.load(file)


def test_a_model_elsewhere_may_have_any_name(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text("engines: {a: {model: 'registry:x', urls: [http://a]}}\nmodels: {a: {engine: a}}\n")
    assert source.load(file).engines["a"].model == "registry:x"
