"""The real engine without a server, as a process: greedy tokens of an adapter on its base, and of whole models.

    python -m tests.training.offline_engine ASKED.json

ASKED.json says {"prompts": [[1, 2]], "tokens": 8, "models": [[MODEL, ADAPTER]]}. What it prints last is
JSON: for each model the tokens that follow each prompt, the EOS that ends them included.
"""

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

from engine import vllm_cli

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
importlib.metadata.version = vllm_cli.version
vllm_cli.ask_for_tiles()


def answers(model: str, adapter: str | None, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=64,
        kv_cache_memory_bytes=256 * 2**20,
        enable_lora=adapter is not None,
        max_lora_rank=8,
        generation_config="vllm",
    )
    asked: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    greedy = SamplingParams(temperature=0, max_tokens=tokens, detokenize=False)
    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    return [list(one.outputs[0].token_ids) for one in llm.generate(asked, greedy, lora_request=lora, use_tqdm=False)]


if __name__ == "__main__":
    said = json.loads(Path(sys.argv[1]).read_text())
    found = [answers(model, adapter, said["prompts"], said["tokens"]) for model, adapter in said["models"]]
    print(json.dumps(found))
