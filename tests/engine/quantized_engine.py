"""Several models through vLLM, one after the other in one process, because its imports are what takes time.

Takes {"tokens": [...], "cases": [{"model": folder, "options": {...}, "env": {...}}]} and prints a line of JSON a case.
It begins as every process of an engine does that `penstock serve` starts, under multiprocessing's name for it.
"""

import json
import os
import runpy
import sys
from typing import Any


def scored(case: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
    """The log-probability of each token but the first, and the class that multiplies by the quantized matrices."""
    from vllm import LLM, SamplingParams

    os.environ |= case["env"]
    few: dict[str, Any] = {
        "enforce_eager": True,
        "kv_cache_memory_bytes": 2**25,
        "max_model_len": 512,
        "skip_tokenizer_init": True,
    }
    engine = LLM(case["model"], **few, **case["options"])
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    (answer,) = engine.generate({"prompt_token_ids": tokens}, wanted, use_tqdm=False)
    told: Any = answer.prompt_logprobs
    found = [one[token].logprob for one, token in zip(told[1:], tokens[1:], strict=True)]
    (kernels,) = engine.apply_model(kernel_names)
    for name in case["env"]:
        del os.environ[name]
    return {"logprobs": found, "kernels": kernels}


def kernel_names(model: Any) -> list[str]:
    holders: list[Any] = [
        getattr(module, name, None) for module in model.modules() for name in ("quant_method", "scheme")
    ]
    return sorted({type(one.kernel).__name__ for one in holders if hasattr(one, "kernel")})


if __name__ == "__main__":
    runpy.run_module("engine.vllm_cli", run_name="__mp_main__")
    asked = json.loads(sys.argv[1])
    for case in asked["cases"]:
        print("found", json.dumps(scored(case, asked["tokens"])), flush=True)
