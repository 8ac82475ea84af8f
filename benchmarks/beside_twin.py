"""How far quantized folders, served, are from what their weights stand for:

    python -m benchmarks.beside_twin GPTQ AWQ [--tokens 399] [--json FILE]

The yardstick is the dense twin (`engine/dense_twin.py`) in float32 by transformers. Beside it stand vLLM's kernels for
the quantized weights in each precision they compute in, and vLLM over the twin's dense weights in the same precision:
what that is apart is the precision's doing, and not the kernel's. A process serves all that have one environment, one
after the other: vLLM reads its environment once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.figures import markdown
from engine.dense_twin import write_dense_twin
from engine.launch import plan
from engine.machine import Machine, detect
from engine.quantized import of_folder
from penstock.config import Engine

REPOSITORY = Path(__file__).parent.parent
HALVES = ("float16", "bfloat16")


def cases(folder: Path, twin: Path, machine: Machine) -> Iterator[dict[str, Any]]:
    how = of_folder(folder)
    assert how is not None
    if machine.device == "gpu":
        ways = [{}, {"VLLM_DISABLED_KERNELS": "MacheteLinearKernel"}]
        yield from (told(how.method, folder, dtype, env) for dtype in HALVES for env in ways)
    else:
        yield told(how.method, folder, "float32", {})
        yield told(how.method, folder, "bfloat16", {"VLLM_CPU_INT4_W4A8": "0"})
    yield from (told("its twin", twin, dtype, {}) for dtype in (*HALVES, "float32"))


def told(name: str, folder: Path, dtype: str, env: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "model": str(folder), "dtype": dtype, "env": env}


def read(folder: Path, count: int) -> list[int]:
    """The beginning of what the run was evaluated with; at random where there is none."""
    text = folder.parent / "evaluation.txt"
    if text.is_file():
        tokens: list[int] = AutoTokenizer.from_pretrained(folder, local_files_only=True)(text.read_text())["input_ids"]
        return tokens[:count]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    return [Random(at).randrange(3, vocabulary) for at in range(count)]


def yardstick(twin: Path, tokens: Sequence[int]) -> list[float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32, local_files_only=True)
    model.to(device)
    ids = torch.tensor([list(tokens)], device=device)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, :-1].float()
    found: list[float] = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None]).squeeze(1).tolist()
    return found


def scored(case: dict[str, Any]) -> dict[str, Any]:
    """In the process that serves: the log-probability of each token but the first, and the class that multiplies."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        case["model"],
        dtype=case["dtype"],
        enforce_eager=True,
        kv_cache_memory_bytes=2**28,
        gpu_memory_utilization=0.1,
        max_model_len=512,
        max_num_seqs=4,
        skip_tokenizer_init=True,
    )
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    tokens = case["tokens"]
    (answer,) = engine.generate({"prompt_token_ids": tokens}, wanted, use_tqdm=False)
    said: Any = answer.prompt_logprobs
    found = [one[token].logprob for one, token in zip(said[1:], tokens[1:], strict=True)]
    (kernels,) = engine.apply_model(kernel_names)
    return {"logprobs": found, "kernels": kernels}


def kernel_names(model: Any) -> list[str]:
    holders: list[Any] = [
        getattr(module, name, None) for module in model.modules() for name in ("quant_method", "scheme")
    ]
    return sorted({type(one.kernel).__name__ for one in holders if hasattr(one, "kernel")})


def served(asked: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Cases of one environment by vLLM, with the rest of it as Penstock would have it; one that failed says why."""
    model = Engine(model=str(asked[0]["model"]), options={"enforce-eager": True})
    env = {**plan("x", model, ["x"], detect(), folder / "socket").env, **asked[0]["env"]}
    env |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}
    (folder / "cases.json").write_text(json.dumps(list(asked)))
    ended = subprocess.run(
        [sys.executable, __file__, "--serve", folder / "cases.json"],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = [json.loads(line.removeprefix("found")) for line in ended.stdout.splitlines() if line.startswith("found")]
    lines += [{"error": f"the engine ended with {ended.returncode}"}] * (len(asked) - len(lines))
    return lines


def serve(cases: Path) -> None:
    import runpy

    runpy.run_module("engine.vllm_cli", run_name="__mp_main__")
    for case in json.loads(cases.read_text()):
        try:
            line = scored(case)
        except Exception as error:  # the others are to be measured all the same
            line = {"error": f"{type(error).__name__}: {error}"}
        print("found", json.dumps(line), flush=True)


def report(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in found:
        kernel = one.get("error", "")[:80] or ", ".join(one["kernels"]) or "dense"
        figures = [f"{one[name]:.1e}" if name in one else "-" for name in ("largest", "mean")]
        rows.append([f"{one['of']}: {one['name']}, {one['dtype']}", kernel, *figures])
    return markdown(["served", "kernel", "largest difference", "mean"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="How far quantized folders, served, are from their dense twins.")
    parser.add_argument("quantized", type=Path, nargs="*")
    parser.add_argument("--tokens", type=int, default=399)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="twins-") as made:
        asked: list[dict[str, Any]] = []
        for folder in arguments.quantized:
            twin = Path(made) / f"twin-{len(asked)}"
            write_dense_twin(folder, twin)
            tokens = read(folder, arguments.tokens + 1)
            base = yardstick(twin, tokens)
            facts = {"of": str(folder), "base": base, "tokens": tokens}
            asked += [case | facts for case in cases(folder, twin, detect())]
        for env in sorted({json.dumps(case["env"]) for case in asked}):
            together = [case for case in asked if json.dumps(case["env"]) == env]
            sent = [{name: case[name] for name in ("model", "dtype", "env", "tokens")} for case in together]
            for case, line in zip(together, served(sent, Path(made)), strict=True):
                base = case.pop("base")
                if "logprobs" in line:
                    apart = [abs(one - two) for one, two in zip(line.pop("logprobs"), base, strict=True)]
                    line |= {"largest": max(apart), "mean": sum(apart) / len(apart)}
                found.append(case | line)
    print(report(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
