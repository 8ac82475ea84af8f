"""Log-probabilities from a folder of weights in Hugging Face's layout, by transformers, in float32."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from penstock.errors import BadRequest


class Local:
    """Only safetensors are read, and no code of the folder's is run."""

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
            self._model.train(False)
        except (OSError, ValueError) as error:
            raise BadRequest(f"{folder} holds no model that transformers can load: {error}") from error

    async def tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    async def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))

    async def logprobs(self, tokens: Sequence[int]) -> list[float]:
        most = getattr(self._model.config, "max_position_embeddings", None)
        if most and len(tokens) > most:
            raise BadRequest(f"the model takes {most} tokens at most: choose --window {most} or less")
        ids = torch.tensor([list(tokens)])  # (1, T)
        with torch.inference_mode():
            logits = self._model(input_ids=ids).logits[0, :-1].float()  # (T - 1, V)
        found = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None]).squeeze(1)
        return [float(one) for one in found]

    def close(self) -> None:
        """The weights go with the object."""
