"""One tree from file, environment and command line; whatever is wrong is said with its place and its remedy."""

from pathlib import Path

import pytest

from penstock import source
from penstock.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Writer":
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    return Writer(tmp_path / "penstock.yaml")


class Writer:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, text: str) -> Path:
        self.path.write_text(text)
        return self.path

    def wrong(self, text: str) -> str:
        """The message that this file ends in, without its folder."""
        with pytest.raises(ConfigError) as caught:
            source.load(self(text))
        return caught.value.message.replace(f"{self.path.parent}/", "")


def test_without_a_file_the_demo_is_served_on_loopback(write: Writer) -> None:
    tree = source.load()
    assert (tree.gateway.host, tree.gateway.port, list(tree.models)) == ("127.0.0.1", 8000, ["demo"])


def test_an_unknown_key_names_file_line_and_nearest(write: Writer) -> None:
    text = "gateway:\n  host: 127.0.0.1\n  prot: 1\nengines:\n  base: {model: demo, optoins: {}}\n"
    text += "models: {m: {engine: base}}"
    assert write.wrong(text).splitlines() == [
        "penstock.yaml:3: unknown key 'gateway.prot', did you mean 'port'?",
        "penstock.yaml:5: unknown key 'engines.base.optoins', did you mean 'options'?",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gateway: {port: many}", "penstock.yaml:1: gateway.port: Input should be a valid integer"),
        ("gateway:\n  keys: [short]", "penstock.yaml:2: gateway.keys: a key needs at least 16 characters"),
        ("engines: {a: {}}\nmodels: {m: {engine: a}}", "an engine needs `model` (started here) or `urls`"),
        ("engines: {a: {urls: [host:80]}}\nmodels: {m: {engine: a}}", "'host:80' is no address"),
        ("engines: {a: {urls: [http://h], replicas: 2}}\nmodels: {m: {engine: a}}", "not for `urls`"),
        ("engines: {base: {model: demo}}\nmodels: {m: {engine: bse}}", "unknown engine 'bse', did you mean 'base'?"),
        ("engines: {base: {model: demo}}", "no model is served"),
        ("state: {pepper: short}", "state.pepper: a pepper needs at least 32 characters"),
        ("admin:\n  key: short", "penstock.yaml:2: admin.key: a key needs at least 16 characters"),
        ("1: a", "expected `key: value` lines"),
        ("models: {}\nmodels: {}", "penstock.yaml:2: the key 'models' stands here a second time"),
        ("engines: {a: {urls: ['http://host:abc']}}\nmodels: {m: {engine: a}}", "is no address"),
        ("engines: {a: {kind: scripted, options: {answers: []}}}\nmodels: {m: {engine: a}}", "answers"),
        ("engines: {a: {kind: scripted, model: x}}\nmodels: {m: {engine: a}}", "neither `model` nor `urls`"),
        ("engines: {a: {model: demo, api_key: x}}\nmodels: {m: {engine: a}}", "`api_key` is for `urls`"),
        ("- a", "expected `key: value` lines at the top, found list"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(write: Writer, text: str, says: str) -> None:
    assert says in write.wrong(text)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        source.load(tmp_path / "absent.yaml")


def test_the_environment_stands_above_the_file_and_the_command_line_above_both(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("gateway: {port: 1, max_body_bytes: 5000}")
    assert source.load(path).gateway.port == 1
    monkeypatch.setenv("PENSTOCK_GATEWAY__PORT", "2")
    assert source.load(path).gateway.port == 2
    tree = source.load(path, {"gateway": {"port": 3}})
    assert (tree.gateway.port, tree.gateway.max_body_bytes) == (3, 5000)


def test_the_environment_reaches_into_named_sections_and_its_typing_errors_are_told(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_ENGINES__BASE__PROBE__INTERVAL_S", "1.5")
    assert source.load().engines["base"].probe.interval_s == 1.5
    monkeypatch.setenv("PENSTOCK_GATEWAY__PROT", "1")
    with pytest.raises(ConfigError, match=r"from the environment.*'gateway\.prot', did you mean 'port'"):
        source.load()
    monkeypatch.delenv("PENSTOCK_GATEWAY__PROT")
    monkeypatch.setenv("PENSTOCK_GATWAY__PORT", "1")
    with pytest.raises(ConfigError, match="PENSTOCK_GATWAY__PORT names no section, did you mean 'gateway'"):
        source.load()


def test_what_the_environment_says_wrongly_is_not_blamed_on_the_file(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_GATEWAY__PORT", "many")
    with pytest.raises(ConfigError, match="from the environment or the command line: gateway"):
        source.load(write("gateway: {port: 1}"))


def test_models_from_the_environment_take_the_place_of_the_demo(write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_ENGINES", '{"e": {"urls": ["http://h"]}}')
    monkeypatch.setenv("PENSTOCK_MODELS", '{"m": {"engine": "e"}}')
    assert list(source.load().engines) == ["e"]


def test_a_key_in_the_environment_opens_the_gateway_and_is_masked_when_shown(
    write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_GATEWAY__KEYS", '["sk-0123456789abcdef"]')
    tree = source.load(None, {"gateway": {"host": "0.0.0.0"}})
    assert tree.gateway.keys[0].get_secret_value() == "sk-0123456789abcdef"
    assert "0123456789abcdef" not in tree.model_dump_json()


def test_the_file_is_found_in_the_working_folder_then_in_the_state_folder(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert source.find() is None
    in_home = write("")
    assert source.find() == in_home
    Path("penstock.yaml").touch()
    assert source.find() == Path("penstock.yaml")
