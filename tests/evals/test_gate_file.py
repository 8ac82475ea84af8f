"""Which gate is asked, and what is said of one that cannot be."""

from pathlib import Path

import pytest

from evals.gate_file import BUILT_IN, chosen, load
from evals.questions import questions
from penstock.config import Config
from penstock.errors import ConfigError
from penstock.gates import Gate, Latency
from penstock.source import load as load_config
from penstock.trial import task
from tests.conftest import REPOSITORY

SERVED = "engines: {base: {model: demo}}\nmodels: {demo: {engine: base}}\n"


def gate(per_token: float) -> Gate:
    return Gate(latency=Latency(per_token=per_token))


def test_the_nearest_gate_is_taken() -> None:
    gates = {"demo@production": gate(1), "demo": gate(2), "default": gate(3)}
    for left in (["demo@production", "demo", "default"], ["demo", "default"], ["default"]):
        found = chosen({name: gates[name] for name in left}, "demo", "production")
        assert found == (left[0], gates[left[0]])
    assert chosen({}, "demo", "production") == (BUILT_IN, Gate())
    assert chosen(gates, "demo", "staging").name == "demo"
    assert chosen(gates, "demo", "production", "default").gate == gates["default"]


def test_a_file_can_be_named_on_the_command_line_and_in_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text("latency: {per_token: 4}\nsafety: null\n")
    assert chosen({}, "demo", "production", str(file)).gate.latency == Latency(per_token=4)
    config = tmp_path / "penstock.yaml"
    config.write_text(f"{SERVED}gates: {{demo: {file}, other: {{parity: null}}}}\n")
    gates = load_config(config).gates
    name, found = chosen(gates, "demo", "production")
    assert (name, found.safety, found.latency) == ("demo", None, Latency(per_token=4))
    assert gates["other"].parity is None
    assert gates["other"].latency == Latency()


def test_a_configuration_with_gates_reaches_another_process_unchanged(tmp_path: Path) -> None:
    config = tmp_path / "penstock.yaml"
    config.write_text(f"{SERVED}gates: {{a: x.yaml, b: {{tasks: [{{task: react, at_least: 0.9}}]}}}}\n")
    tree = load_config(config)
    assert Config(**tree.revealed()).gates == tree.gates


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tasks:\n  - {task: react, at_lest: 1}", "2: unknown key 'tasks.0.at_lest', did you mean 'at_least'"),
        ("parity: {prompts: 8}\nlatancy: null", "2: unknown key 'latancy', did you mean 'latency'"),
        ("parity:\n  token: 8", "2: unknown key 'parity.token', did you mean 'tokens'"),
        ("tasks: [{task: react, at_least: 95}]", "1: tasks.0.at_least: Input should be less than or equal to 1"),
        ("changed: [templates]", "1: changed.0: Input should be 'template'"),
        ("safety: {exact: true}", "`exact` needs `refusals`"),
        ("file: other.yaml", "here stands the gate itself"),
        ("- react", "a gate is `key: value` lines"),
        ("parity: null\nparity: null", "2: the key 'parity' stands here a second time"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_is_wrong_with_a_gate_is_told_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(file)
    assert says in error.value.message
    assert str(file) in error.value.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gates: {demo: {parityy: null}}", "unknown key 'gates.demo.parityy', did you mean 'parity'"),
        ("gates: {demo: {file: a, parity: null}}", "say the rest of it there"),
    ],
)
def test_and_so_in_the_configuration(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "penstock.yaml"
    config.write_text(SERVED + text)
    with pytest.raises(ConfigError, match=r"penstock.yaml:3: ") as error:
        load_config(config)
    assert says in error.value.message


def test_a_gate_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file and no gate .* did you mean 'strict'"):
        chosen({"strict": Gate()}, "demo", "production", "strickt")
    with pytest.raises(ConfigError, match="cannot be read"):
        chosen({"demo": Gate(file=str(tmp_path / "none.yaml"))}, "demo", "production")


def test_the_demos_own_gate_can_be_asked() -> None:
    found = questions(load(REPOSITORY / "recipes/demo/gate.yaml"), task)
    assert len(found.tasks) >= 4
    assert found.tasks[-1].check == "safety"
    assert all(one.at_least for one in found.tasks)
