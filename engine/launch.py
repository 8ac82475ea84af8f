"""Everything about the hardware, decided once: (model, device, options) -> the command that starts vLLM.

What is decided here is a default. An option in the configuration stands above it and reaches vLLM by its own flag
name, so nothing that vLLM can do is out of reach. The measurements behind each default: docs/design/engine.md.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import DEQUANTIZING
from engine.machine import Machine
from engine.quantized import Quantization, of_file, of_folder
from penstock.config import Engine
from penstock.errors import StartError

log = logging.getLogger(__name__)

DEMO = Path(__file__).parent.parent / "recipes" / "demo" / "model"
HERMES = Path(__file__).with_name("hermes.py")
GIB = 2**30

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM can be started for."""
USUAL_RANK = 16
RESOLVER = "lora_filesystem_resolver"

# The engine prints what it does, asks nobody, and reports to nobody.
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Lora:
    """The adapters that a replica can be asked for: the folder in which it finds them, for how many served models, and
    their largest rank."""

    folder: Path
    models: int = 1
    rank: int = 1


@dataclass(frozen=True)
class Launch:
    """A replica about to be started: its command, what is added to its environment, how to tell that it lives, by
    which names it is asked, what the engine itself calls the model, and the largest rank of an adapter there."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    socket: Path
    probe_path: str
    probe_body: Mapping[str, Any] = field(default_factory=dict)
    served: Sequence[str] = ()
    model: str = ""
    max_lora_rank: int = 0


def plan(
    name: str, engine: Engine, served: Sequence[str], machine: Machine, socket: Path, lora: Lora | None = None
) -> Launch:
    """The launch of one replica of `engine`, answering to the names in `served` (the first is the canonical one).

    Raises StartError when it cannot work: no engine installed, no such model folder, no GPU.
    """
    device = chosen_device(engine, machine)
    path = model_path(engine.model or "")
    own_env = {name: value.get_secret_value() for name, value in engine.env.items()}
    weights = quantized(path, own_env.get("HF_TOKEN"))
    options = default_options(path, device, machine, own_env.get("HF_TOKEN"))
    if engine.routing.kv_events:
        options["kv-events-config"] = kv_events_beside(socket)
    if lora:
        options |= lora_options(lora)
    options |= normalised(engine.options)
    if lora:
        check_lora(name, options, lora)
    if device == "cpu":
        refuse_dtype(weights, options, machine)
    env = QUIET | (cpu_env(options, machine, weights) if device == "cpu" else {}) | offline(path)
    env |= own_env
    if lora:
        env |= lora_env(lora, own_env.get("VLLM_PLUGINS") or os.environ.get("VLLM_PLUGINS"))
    # -P: a folder called engine, vllm or torch where somebody stands must not come before the installed ones.
    argv = [sys.executable, "-P", "-m", "engine.vllm_cli", "serve", path, "--uds", str(socket)]
    argv += ["--served-model-name", *served, "--shutdown-timeout", str(round(engine.stop_s)), *flags(options)]
    probe_path, probe_body = probe(served[0], options)
    return Launch(name, argv, env, socket, probe_path, probe_body, served, path, most_rank(options) if lora else 0)


def chosen_device(engine: Engine, machine: Machine) -> str:
    device = machine.device
    if engine.device not in ("auto", device):
        remedy = f"`make install` with EXTRA={engine.device}"
        raise StartError(f"device: {engine.device} is asked for, the installed vLLM is for {device}: {remedy}")
    if device == "gpu" and not machine.gpus:
        raise StartError("the installed vLLM is for NVIDIA GPUs and none is visible: `penstock doctor` tells more")
    return device


def model_path(model: str) -> str:
    """`demo` -> the bundled folder; a folder that exists stays; anything else must be able to be a Hugging Face id."""
    if model == "demo":
        return str(DEMO)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise StartError(f"{path} has no config.json, so it is no model in the Hugging Face layout")
        return str(path.resolve())
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise StartError(f"the model folder {path} does not exist")
    return model


def default_options(path: str, device: str, machine: Machine, hub_token: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "disable-uvicorn-access-log": True,
        "enable-prompt-tokens-details": True,
        # Unbounded white space is valid JSON, and a small model never stops writing it. Needs the backend named.
        "structured-outputs-config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if speaks_hermes(path, hub_token):
        options |= {
            "enable-auto-tool-choice": True,
            "tool-parser-plugin": str(HERMES),
            "tool-call-parser": "tight_hermes",
        }
        # Without it only tools marked strict have their arguments held to the schema.
        options["tool-strict-level"] = "parameter"
    if device == "cpu":
        options |= {"enforce-eager": True, "kv-cache-memory-bytes": kv_cache_bytes(machine)}
        if not machine.bfloat16:
            options["dtype"] = "float32"
    return options


def lora_options(lora: Lora) -> dict[str, Any]:
    """Room for one adapter more than there are models, which is being moved to, and in memory for the last ones."""
    rank = next((rank for rank in RANKS if rank >= max(lora.rank, USUAL_RANK)), lora.rank)
    return {
        "enable-lora": True,
        "max-loras": lora.models + 1,
        "max-cpu-loras": 2 * lora.models + 2,
        "max-lora-rank": rank,
    }


def check_lora(name: str, options: Mapping[str, Any], lora: Lora) -> None:
    """Raises StartError where the configuration's own options leave no room for the adapters."""
    if not options.get("enable-lora"):
        raise StartError(f"engine {name}: models have adapters there, and its options say `enable-lora: false`")
    if most_rank(options) < lora.rank:
        raise StartError(
            f"engine {name}: an adapter has the rank {lora.rank}, its options say `max-lora-rank: {most_rank(options)}`"
        )


def most_rank(options: Mapping[str, Any]) -> int:
    return int(options.get("max-lora-rank") or USUAL_RANK)  # vLLM's own default, too


def lora_env(lora: Lora, plugins: str | None) -> dict[str, str]:
    """vLLM looks adapters up in the folder when they are first asked for. With it come routes that load and unload
    them, which nobody but us can reach: the socket is ours alone. An allow-list of plugins must name the resolver."""
    env = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_LORA_RESOLVER_CACHE_DIR": str(lora.folder)}
    return env | ({"VLLM_PLUGINS": f"{plugins},{RESOLVER}"} if plugins else {})


def speaks_hermes(path: str, hub_token: str | None) -> bool:
    """Whether the model's chat template writes tool calls as Hermes and Qwen do: `<tool_call>{...}</tool_call>`.

    Others put something else than JSON between the same marks: GLM `<arg_key>`, Qwen3-Coder `<function=`.
    """
    files = model_files(path, hub_token, "chat_template.jinja", "tokenizer_config.json")
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    return "<tool_call>" in text and "<arg_key>" not in text and "<function=" not in text


def quantized(path: str, hub_token: str | None) -> Quantization | None:
    """How the model's weights are quantized. Raises StartError where vLLM is known not to serve them."""
    for file in model_files(path, hub_token, "config.json"):
        return of_file(file)
    return None


def refuse_dtype(weights: Quantization | None, options: Mapping[str, Any], machine: Machine) -> None:
    """vLLM takes AMX for int8 wherever it is, and its operation there dies at the first float32."""
    if dies_of_float32(weights, machine) and options.get("dtype") == "float32":
        raise StartError("int8 weights are not served in float32 on a processor with AMX: leave dtype out, or bfloat16")


def dies_of_float32(weights: Quantization | None, machine: Machine) -> bool:
    return weights is not None and weights.method == "int8" and "amx_tile" in machine.cpu_flags


def finest_dtype(folder: Path, machine: Machine) -> str:
    """In which an engine here rounds least: float32, unless it has no kernel for the weights in it, as on a GPU for
    quantized ones. Raises StartError where no engine is installed, or none serves them."""
    weights = of_folder(folder)
    if machine.device == "cpu":
        return "bfloat16" if dies_of_float32(weights, machine) else "float32"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not config.get("quantization_config"):
        return "float32"
    own = config.get("dtype") or config.get("torch_dtype")
    return own if own in ("float16", "bfloat16") else "float16"


def model_files(model: str, hub_token: str | None, *names: str) -> Iterator[Path]:
    """Those that the model has; of a Hugging Face id, fetched as the engine is about to do anyway."""
    for name in names:
        if Path(model).is_dir():
            found = Path(model) / name
        else:
            from huggingface_hub import hf_hub_download, try_to_load_from_cache

            try:
                cached = try_to_load_from_cache(model, name)
                found = Path(cached if isinstance(cached, str) else hf_hub_download(model, name, token=hub_token))
            except (OSError, ValueError) as error:  # the engine's own attempt tells what it means
                log.info("%s of %s cannot be had: %s", name, model, type(error).__name__)
                continue
        if found.is_file():
            yield found


def kv_cache_bytes(machine: Machine) -> int:
    """A sixteenth of the memory, at least 1 GiB: left alone, vLLM asks for nine tenths and fails where it is in use."""
    return max(1, machine.memory_bytes // 16 // GIB) * GIB


def kv_events_beside(socket: Path) -> dict[str, Any]:
    """Published to this machine alone: the events carry the prompts' tokens, and vLLM's default is every address."""
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"ipc://{socket}.events",
        "replay_endpoint": f"ipc://{socket}.replay",
    }


def cpu_env(options: Mapping[str, Any], machine: Machine, weights: Quantization | None) -> dict[str, str]:
    """Threads, and one process fewer where the model is not split.

    OpenMP threads spin at barriers, so a thread without a core of its own halves the speed: the gateway keeps one.
    Without vLLM's separate worker process nothing binds threads any more, which is why their number is set here.
    """
    threads = str(max(1, machine.cores - 1))
    split = any(int(options.get(f"{way}-parallel-size", 1)) > 1 for way in ("tensor", "pipeline", "data"))
    env = {"OMP_NUM_THREADS": threads} | ({} if split else {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    # Eager or not, vLLM compiles the ranks of log-probabilities when the first are asked for: that takes seconds,
    # and where there is no C++ compiler it kills the engine.
    env |= {"TORCH_COMPILE_DISABLE": "1"} if options.get("enforce-eager") else {}
    return env | ({DEQUANTIZING: "1"} if weights and weights.bits == 4 else {})


def offline(path: str) -> dict[str, str]:
    """A model on disk needs no hub, and the hub's time-outs would only delay the start."""
    return {"HF_HUB_OFFLINE": "1"} if Path(path).is_dir() else {}


def normalised(options: Mapping[str, Any]) -> dict[str, Any]:
    """`max_model_len`, `--max-model-len` and `max-model-len` are one flag."""
    return {name.lstrip("-").replace("_", "-"): value for name, value in options.items()}


def flags(options: Mapping[str, Any]) -> list[str]:
    """{"enforce-eager": True, "max-loras": 2, "x": {"a": 1}} -> --enforce-eager --max-loras 2 --x '{"a": 1}'.

    False becomes `--no-FLAG`, a list repeats the values, None leaves the flag out.
    """
    words: list[str] = []
    for name, value in options.items():
        match value:
            case None:
                continue
            case bool():
                words += [f"--{name}" if value else f"--no-{name}"]
            case dict():
                words += [f"--{name}", json.dumps(value)]
            case list():
                words += [f"--{name}", *map(str, value)]
            case _:
                words += [f"--{name}", str(value)]
    return words


def probe(model: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The smallest request that goes through the engine's whole loop, by what the engine is started for."""
    if options.get("runner") == "pooling" or options.get("convert") in ("classify", "embed"):
        return "/pooling", {"model": model, "input": "a"}
    return "/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0}
