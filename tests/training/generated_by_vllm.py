"""vLLM itself, as a process: what it generates from each folder that it is given, as JSON.

    python -m tests.training.generated_by_vllm '[{"folder": ..., "prompts": [...], "text": ..., "allowed": [...]}]'

Greedy, in float32; what follows the text is of the allowed tokens alone. One process for all folders, since most of an
engine's start is its imports.
"""

import importlib.metadata
import json
import sys
from typing import Any

from engine import vllm_cli

TOKENS = 16

importlib.metadata.version = vllm_cli.version
vllm_cli.ask_for_tiles()

from vllm import LLM, ModelRegistry, SamplingParams  # noqa: E402


def generated(folder: str, prompts: list[list[int]], text: str, allowed: list[int]) -> list[dict[str, Any]]:
    llm = LLM(
        model=folder,
        dtype="float32",
        enforce_eager=True,
        kv_cache_memory_bytes=2**26,
        max_num_seqs=8,
        generation_config="vllm",
        disable_log_stats=True,
    )
    asked: Any = [*({"prompt_token_ids": prompt} for prompt in prompts), text]
    greedy = [
        SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, logprobs=0, allowed_token_ids=tokens)
        for tokens in (*[None] * len(prompts), allowed)
    ]
    return [
        {
            "read": found.prompt_token_ids,
            "tokens": list(found.outputs[0].token_ids),
            "text": found.outputs[0].text,
            "logprobs": [one.logprob for chosen in found.outputs[0].logprobs or () for one in (chosen or {}).values()],
        }
        for found in llm.generate(asked, greedy, use_tqdm=False)
    ]


def main() -> None:
    for name in ("LlamaForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel"):
        # Else it looks at each class in a process of its own, for another ten seconds each.
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    print("\n" + json.dumps([generated(**one) for one in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
