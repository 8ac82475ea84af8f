"""Whatever stands in the README is done here; whatever stands in docs/structure.md exists, and nothing else does."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine.launch import DEMO, plan
from engine.sim import KINDS
from penstock import source
from tests.conftest import REPOSITORY, Served, free_port, running
from tests.engine.test_launch import GPU_NODE
from training.pretrain_recipe import load_recipe
from training.quantize_recipe import QuantizeRecipe
from training.recipe import load

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
STRUCTURE = (REPOSITORY / "docs" / "structure.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
BIN = Path(sys.executable).parent

ASKS = ("curl ", *(f".venv/bin/penstock {name}" for name in ("chat", "models", "steps", "doctor")))
BENCH = ".venv/bin/python -m engine.vllm_cli bench serve"
MEASURES = ".venv/bin/python -m benchmarks."  # minutes each: what they are made of is tried in tests/benchmarks
TRAINS = ".venv/bin/penstock train"  # tried with a smaller recipe in tests/training
SERVES = ".venv/bin/penstock serve"
KEEPS = (".venv/bin/penstock keys", ".venv/bin/penstock usage", ".venv/bin/penstock audit")
EVALUATES = ".venv/bin/penstock eval"
REGISTERS = ".venv/bin/penstock registry"
PROMOTES = tuple(f".venv/bin/penstock {name}" for name in ("gate", "promote", "rollback"))  # tried in tests/registry
SIMULATES = ".venv/bin/penstock sim"
SIMULATOR = "http://127.0.0.1:8009"
MAKES = ("make serve", "make check", "make test")


def commands() -> list[str]:
    """The README's shell commands, each with the lines it goes on over."""
    shell = "".join(text for language, text in BLOCKS if language == "bash")
    return shell.replace("\\\n", "").splitlines()


def here(command: str, demo: Served) -> str:
    """The command with this run's addresses, and the bundled model for those that cannot be downloaded."""
    command = command.replace("http://127.0.0.1:8000", demo.url).replace(".venv/bin", str(BIN))
    command = re.sub(r"http://127\.0\.0\.1:800[12]", demo.url, command)
    return re.sub(r"\b(Qwen|meta-llama)/\S+", str(DEMO), command)


def yaml_blocks() -> list[str]:
    return [text for language, text in BLOCKS if language == "yaml"]


def test_every_block_is_of_a_kind_that_is_tried_here() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python", "yaml", "text"}
    for command in commands():
        assert command.startswith(
            (*ASKS, SERVES, TRAINS, BENCH, MEASURES, SIMULATES, EVALUATES, REGISTERS, *PROMOTES, *KEEPS, *MAKES)
        ), command


def test_keys_are_made_shown_replaced_and_withdrawn(tmp_path: Path) -> None:
    kept = [command for command in commands() if command.startswith(KEEPS)]
    env = {**os.environ, "PENSTOCK_HOME": str(tmp_path)}
    for command in kept:
        words = shlex.split(command.replace(".venv/bin", str(BIN)))
        done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, bool(done.stdout)) == (0, True), (command, done.stderr)
    assert len(kept) == 7


def test_versions_are_registered_as_shown_and_one_goes_round(tmp_path: Path) -> None:
    shown = registered(tmp_path)
    assert len(shown) == 8
    assert "demo@1" in shown[3].stdout
    assert "model.safetensors" not in shown[6].stdout  # it is the same file
    assert "0 files" in shown[-1].stdout


def registered(home: Path) -> list[subprocess.CompletedProcess[str]]:
    """The README's commands about the registry, done in this home."""
    done = []
    for command in (command for command in commands() if command.startswith(REGISTERS)):
        words = shlex.split(command.replace(".venv/bin", str(BIN)).replace("runs/", f"{home}/"))
        env = {**os.environ, "PENSTOCK_HOME": str(home)}
        done.append(subprocess.run(words, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=60))
        assert done[-1].returncode == 0, (command, done[-1].stderr)
        assert done[-1].stdout, command
    return done


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("make")])
def test_every_make_command_stands_in_the_makefile(command: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize(
    "command", [command for command in commands() if command.startswith(ASKS) and SIMULATOR not in command]
)
def test_every_command_that_asks_gets_an_answer(demo: Served, command: str) -> None:
    env = {**os.environ, "PENSTOCK_URL": demo.url}
    shown = subprocess.run(["bash", "-c", here(command, demo)], capture_output=True, text=True, env=env)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip()


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith(BENCH)])
def test_vllms_own_load_test_loses_no_request(demo: Served, command: str) -> None:
    words = [sys.executable, *here(command, demo).split()[1:]]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    shown = subprocess.run(words, capture_output=True, text=True, env=env, cwd=REPOSITORY)
    assert re.search(r"Successful requests:\s+40\b", shown.stdout), shown.stdout + shown.stderr


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith(MEASURES)])
def test_every_benchmark_shown_takes_the_options_shown(command: str) -> None:
    words = [sys.executable, *shlex.split(command)[1:], "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith(PROMOTES)])
def test_every_promotion_shown_takes_the_options_shown(command: str, tmp_path: Path) -> None:
    """In a registry without the model, which is looked for once the words are understood."""
    words = [str(BIN / "penstock"), *shlex.split(command)[1:]]
    env = {**os.environ, "PENSTOCK_HOME": str(tmp_path)}
    shown = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, env=env)
    assert shown.returncode == 1, shown.stderr
    assert re.search(r"no model is named 'demo'|demo@production is not there", shown.stderr), shown.stderr


def test_a_model_is_evaluated_as_shown(demo: Served, tmp_path: Path) -> None:
    shown = [here(command, demo) for command in commands() if command.startswith(EVALUATES)]
    for command in shown:
        words = command.replace("README.md", str(REPOSITORY / "README.md")).replace("recipes/demo/model", str(DEMO))
        done = subprocess.run(words.split(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (done.returncode, bool(done.stdout)) == (0, True), (command, done.stderr)
    assert len(shown) == 5


@pytest.mark.parametrize("recipe", re.findall(r"penstock train (\S+)", README))
def test_every_recipe_shown_is_valid(recipe: str) -> None:
    """Of each script by its own rules: one of `quantize` is no recipe of `pretrain`."""
    path = REPOSITORY / recipe
    script = yaml.safe_load(path.read_text())["script"]
    assert load(path, QuantizeRecipe) if script == "quantize" else load_recipe(path)


def test_the_simulator_starts_and_its_faults_are_changed_as_shown() -> None:
    (command,) = (command for command in commands() if command.startswith(SIMULATES))
    words = command.replace(".venv/bin", str(BIN)).replace("--port 8009", "--port 0").split()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as simulator:
        assert simulator.stdout
        url = simulator.stdout.readline().split()[-1]
        asks = [ask.replace(SIMULATOR, url) for ask in commands() if ask.startswith("curl") and SIMULATOR in ask]
        shown = [subprocess.run(["bash", "-c", ask], capture_output=True, text=True).stdout for ask in asks]
        simulator.terminate()
    assert [[fault["kind"] for fault in json.loads(faults)] for faults in shown] == [["stall"], ["stall"], []]
    assert simulator.returncode == 0


def test_every_fault_stands_in_the_simulators_page() -> None:
    page = (REPOSITORY / "docs" / "simulator.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    assert rows == [(name, ", ".join(f"`{one}`" for one in kind.takes), kind.says) for name, kind in KINDS.items()]
    assert f"{len(KINDS)} ways to go wrong" in README


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "python"])
def test_every_python_example_prints_an_answer(demo: Served, code: str) -> None:
    shown = subprocess.run([sys.executable, "-c", here(code, demo)], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip()


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith(SERVES)])
def test_every_command_that_serves_serves(demo: Served, command: str, tmp_path: Path) -> None:
    port = free_port()
    words = [*here(command, demo).split(), "--port", str(port)]
    if "registry:" in command:
        registered(tmp_path)
    with running(words, port, tmp_path) as served:
        assert_answers(served, served.client.get("/v1/models").json()["data"][0]["id"])


def test_the_configuration_example_serves_both_its_models(demo: Served, tmp_path: Path) -> None:
    text = re.sub(r"\[http://10\.0\.0\.7:8000, http://10\.0\.0\.8:8000\]", f"[{demo.url}]", yaml_blocks()[0])
    text = here(text.replace("max-model-len: 4096", "max-model-len: 1024"), demo)
    file = tmp_path / "penstock.yaml"
    file.write_text(text)
    port = free_port()
    command = [str(BIN / "penstock"), "serve", "--config", str(file), "--port", str(port)]
    with running(command, port, tmp_path) as served:
        for model in ("qwen", "big"):
            assert_answers(served, model)


@pytest.mark.parametrize("text", yaml_blocks())
def test_every_configuration_is_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text(text)
    assert source.load(file).models


def test_the_gpu_configuration_becomes_vllms_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the model's chat template, for which the hub would be asked until it does not answer."""
    hub = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    file = tmp_path / "penstock.yaml"
    file.write_text(yaml_blocks()[1])
    launch = plan("llama-0", source.load(file).engines["llama"], ["llama"], GPU_NODE, tmp_path / "s")
    assert "serve meta-llama/Llama-3.1-70B-Instruct --uds" in " ".join(launch.argv)
    assert "--tensor-parallel-size 4 --max-model-len 32768" in " ".join(launch.argv)


def test_the_exchanges_shown_are_what_the_demo_model_says(demo: Served) -> None:
    shown = re.findall(r"^> \*\*(?P<asked>.+?)\*\*  \n> (?P<said>.+)$", README, re.MULTILINE)
    assert shown
    for asked, said in shown:
        body = {"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": asked}]}
        answer = demo.client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == said


def test_the_map_shows_folders_that_exist() -> None:
    (drawn,) = (text for language, text in BLOCKS if language == "text")
    for line in drawn.splitlines():
        assert (REPOSITORY / line.split()[0]).is_dir(), line


def test_every_file_is_named_in_structure_and_every_named_file_exists() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    files = {file for file in listed.stdout.splitlines() if not file.startswith("recipes/demo/model/")}
    named = set(re.findall(r"^- `([^`]+)`: \S", STRUCTURE, re.MULTILINE))
    assert files == named


def assert_answers(served: Served, model: str) -> None:
    body = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": "Hello"}]}
    answer = served.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
