"""Adapters by name: loaded from a folder when they are first asked for, as vLLM's filesystem resolver does it."""

import json
from pathlib import Path

LARGEST_RANK = 16


class Adapters:
    """`folder` has one folder for each, `base` is the model that they must be for; without a folder there are none."""

    def __init__(self, folder: Path | None = None, base: str = "") -> None:
        self.folder = folder
        self.base = base
        self.loaded: dict[str, Path] = {}

    def find(self, name: object) -> str | None:
        """Why it cannot be asked, in vLLM's words; None if it can. Loads it."""
        if self.folder is None or not isinstance(name, str):
            return f"The model `{name}` does not exist."
        if name not in self.loaded:
            config = self.folder / name / "adapter_config.json"
            if not config.is_file() or (said := json.loads(config.read_text())).get("peft_type") != "LORA":
                return f"LoRA adapter {name} does not exist"
            if said.get("base_model_name_or_path") != self.base:
                return f"LoRA adapter {name} does not exist"
            weights = self.folder / name / "adapter_model.safetensors"
            if not weights.is_file() or said.get("r", 8) > LARGEST_RANK:
                return f"LoRA adapter '{name}' was found but could not be loaded."
            self.loaded[name] = weights.parent
        return None

    def unload(self, name: object) -> bool:
        """Whether it was there. Its folder stays, so that it is found again."""
        return self.loaded.pop(str(name), None) is not None
