"""The commands, as a person types them, against a gateway that runs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, Served, free_port, running

PENSTOCK = str(Path(sys.executable).parent / "penstock")


def penstock(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PENSTOCK, *words], capture_output=True, text=True, env={**os.environ, **env}, timeout=60)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port = free_port()
    command = [PENSTOCK, "serve", "--engine", "scripted", "--port", str(port)]
    with running(command, port, tmp_path_factory.mktemp("scripted")) as served:
        yield served
    assert served.process.returncode == 0


@pytest.fixture
def slow_upstream() -> Iterator[str]:
    """The URL of an engine, in a process of its own, that says one thing and then nothing."""
    code = """
import asyncio, sys
from tests.upstream import streams, upstream

async def main():
    chunk = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\\n\\n'
    async with upstream(streams(chunk, hang=True)) as server:
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.terminate()


def test_help_names_the_commands_and_imports_nothing_that_only_they_need() -> None:
    code = "import sys; sys.argv = ['penstock', '--help']; from penstock.cli import app; app(standalone_mode=False)"
    heavy = {"pydantic", "yaml", "httpx2", "uvicorn", "rich", "prometheus_client", "sqlalchemy", "fastapi", "torch"}
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}; print({heavy} & set(sys.modules))"], capture_output=True, text=True, check=True
    )
    for command in ("serve", "chat", "models", "keys", "audit", "config", "doctor", "train", "eval"):
        assert command in shown.stdout
    assert shown.stdout.splitlines()[-1] == "set()"


def test_the_gateway_can_be_imported_without_torch_or_vllm() -> None:
    code = "import sys, serving.run; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_serve_prints_the_address_the_models_and_a_curl_line_that_works(scripted: Served) -> None:
    text = scripted.text
    assert f"Penstock serves scripted on {scripted.url}" in text
    assert "only this machine is let in" in text
    line = text[text.index("curl ") : text.index("]}'") + 3]
    answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert "You wrote: What can you do?" in answer.stdout


def test_models_lists_what_is_served(scripted: Served) -> None:
    assert penstock("models", "--url", scripted.url).stdout == "scripted\n"


def test_chat_asks_once_and_streams_plain_text_into_a_pipe(scripted: Served) -> None:
    shown = penstock("chat", "hello there", PENSTOCK_URL=scripted.url)
    assert (shown.returncode, shown.stdout) == (0, "This is the scripted engine. You wrote: hello there\n")


def test_chat_goes_on_until_end_of_file(scripted: Served) -> None:
    shown = subprocess.run(
        [PENSTOCK, "chat", "--url", scripted.url], input="one\ntwo\n", capture_output=True, text=True, timeout=60
    )
    assert "You wrote: one\n" in shown.stdout
    assert "You wrote: two\n" in shown.stdout


def test_a_gateway_that_is_not_there_is_told_with_the_remedy() -> None:
    shown = penstock("models", "--url", f"http://127.0.0.1:{free_port()}")
    assert shown.returncode == 1
    assert "`penstock serve` starts one" in shown.stderr


def test_config_prints_the_whole_tree_with_secrets_masked(tmp_path: Path) -> None:
    shown = penstock("config", PENSTOCK_GATEWAY__KEYS='["sk-0123456789abcdef"]', PENSTOCK_HOME=str(tmp_path))
    tree = yaml.safe_load(shown.stdout)
    assert tree["engines"]["base"]["model"] == "demo"
    assert "0123456789" not in shown.stdout


def test_a_wrong_configuration_ends_in_its_message(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("gateway: {prot: 1}")
    shown = penstock("serve", "--config", str(file))
    assert (shown.returncode, shown.stdout) == (1, "")
    assert "unknown key 'gateway.prot', did you mean 'port'?" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_port_in_use_is_told_before_an_engine_is_started(scripted: Served) -> None:
    port = scripted.url.rpartition(":")[2]
    shown = penstock("serve", "--port", port)
    assert shown.returncode == 1
    assert "choose another with --host and --port" in shown.stderr


def test_binding_elsewhere_without_keys_is_refused(tmp_path: Path) -> None:
    shown = penstock("serve", "--host", "0.0.0.0", "--port", str(free_port()), PENSTOCK_HOME=str(tmp_path))
    assert shown.returncode == 1
    assert "is reachable by others and no key is set" in shown.stderr


def test_a_model_that_cannot_be_loaded_ends_in_one_message_with_the_engines_last_lines(tmp_path: Path) -> None:
    shown = penstock("serve", "--port", str(free_port()), PENSTOCK_ENGINES__BASE__MODEL=str(tmp_path / "absent"))
    assert shown.returncode == 1
    assert "does not exist" in shown.stderr


@pytest.mark.parametrize("words", [["--upstream", "m"], ["--engine", "magic"], ["--upstream", "m=ftp://x"]])
def test_a_mistyped_option_is_told(words: list[str]) -> None:
    shown = penstock("serve", *words)
    assert shown.returncode == 1
    assert shown.stderr.startswith("penstock: ")


def test_a_recipe_of_no_script_is_told_with_the_scripts_there_are(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("script: pretrian")
    shown = penstock("train", str(recipe), "--out", str(tmp_path / "out"))
    assert shown.returncode == 1
    assert "`script` must name one of" in shown.stderr
    assert "did you mean 'pretrain'?" in shown.stderr


def test_a_recipe_that_its_script_refuses_is_told_without_a_trace(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("script: tokenizer\nalgorithm: bpe\nvocab_sise: 500\n")
    shown = penstock("train", str(recipe), "--out", str(tmp_path / "out"))
    assert shown.returncode == 1
    assert f"{recipe}:3: unknown key 'vocab_sise', did you mean 'vocab_size'?" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_an_upstream_is_served_without_a_configuration_file(scripted: Served, tmp_path: Path) -> None:
    port = free_port()
    command = [PENSTOCK, "serve", "--port", str(port), "--upstream", f"other={scripted.url}/v1"]
    body = {"model": "other", "messages": [{"role": "user", "content": "hi"}]}
    with running(command, port, tmp_path) as served:
        answer = served.client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"].endswith("You wrote: hi")


def test_a_stream_that_outlasts_the_shutdown_ends_in_an_error_event(tmp_path: Path, slow_upstream: str) -> None:
    port = free_port()
    command = [PENSTOCK, "serve", "--upstream", f"slow={slow_upstream}", "--port", str(port)]
    body = {"model": "slow", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with running(command, port, tmp_path, PENSTOCK_GATEWAY__SHUTDOWN_S="0.5") as served:
        with served.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            rest = "\n".join(lines)
        assert served.process.wait(20) == 0
    assert "engine_unavailable" in rest
    assert "shutting down" in rest
