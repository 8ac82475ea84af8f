"""What a directory holds, told from its files: the kind of model, its chat template, its tokenizer."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from penstock.audit import canonical
from penstock.errors import BadRequest
from registry.directory import Taken

Kind = Literal["full", "adapter", "quantized", "reward"]
KINDS: tuple[Kind, ...] = get_args(Kind)

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "add_bos_token", "add_eos_token")
REWARDS = ("ForSequenceClassification", "RewardModel")
TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class Told:
    """`template` and `tokenizer` are digests: equal ones are what a served model must share with the trained one."""

    kind: Kind
    template: str | None
    tokenizer: str | None


def told(files: Mapping[str, Taken], kind: Kind | None = None) -> Told:
    """Raises BadRequest where the kind cannot be told and is not given."""
    return Told(kind or kind_of(files), template_digest(files), tokenizer_digest(files))


def kind_of(files: Mapping[str, Taken]) -> Kind:
    if "adapter_config.json" in files:
        return "adapter"
    if "config.json" not in files:
        raise BadRequest(
            "neither config.json nor adapter_config.json is there, so this is no model in the Hugging Face layout: "
            "take the folder that has one, or say --kind"
        )
    config = files["config.json"].json
    if config.get("quantization_config") or {"quantize_config.json", "quantization_config.json"} & files.keys():
        return "quantized"
    named = config.get("architectures")
    if isinstance(named, list) and any(str(name).endswith(REWARDS) for name in named):
        return "reward"
    return "full"


def template_digest(files: Mapping[str, Taken]) -> str | None:
    """Of the template's text, wherever it stands: a file of its own comes before the tokenizer's configuration."""
    if TEMPLATE in files:
        return hashed(files[TEMPLATE].text)
    said = files[TOKENIZER].json.get("chat_template") if TOKENIZER in files else None
    if not said:
        return None
    return hashed(said if isinstance(said, str) else canonical(said))


def tokenizer_digest(files: Mapping[str, Taken]) -> str | None:
    """Of the vocabulary and of the tokens that begin and end texts; not of what each tool writes beside them."""
    vocabularies = {name: files[name].file.sha256 for name in VOCABULARIES if name in files}
    if not vocabularies:
        return None
    config = files[TOKENIZER].json if TOKENIZER in files else {}
    return hashed(canonical([vocabularies, {name: config.get(name) for name in SPECIAL}]))


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
