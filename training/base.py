"""The model that a run begins from: where it is, its tokenizer, its weights in the precision asked for."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from penstock.errors import BadRequest, Conflict
from penstock.references import SCHEME, Reference, is_reference
from penstock.source import Source
from penstock.store import opened
from registry.artifacts import artifacts_at, measured
from registry.manifest import Manifest
from registry.resolve import resolve
from training.hardware import device_of

ADAPTER = "adapter_config.json"
READ = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""What of a folder weights, configuration, tokenizer and template are read from."""


class Base(NamedTuple):
    """`name` is what an adapter refers to, a registered version by its number; `place` a folder or Hugging Face id."""

    name: str
    place: str


def found(name: str) -> Base:
    """Raises BadRequest for an adapter, NotFound for what is not registered."""
    base = registered(name) if is_reference(name) else Base(name, name)
    if (Path(base.place) / ADAPTER).is_file():
        raise BadRequest(
            f"the base {name} is an adapter: give the whole weights that `merge: true` writes, or its own base and "
            f"`adapter: {{start: {name}}}`"
        )
    return base


def adapter_of(name: str, base: Base) -> Base:
    """An adapter of this base. Raises BadRequest for one of another, NotFound for what is not registered."""
    adapter = registered(name) if is_reference(name) else Base(name, name)
    try:
        said = json.loads((Path(adapter.place) / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadRequest(
            f"adapter.start: {adapter.name} is no adapter: it has no {ADAPTER} that names a base"
        ) from error
    if said != base.name and (is_reference(base.name) or Path(str(said)).resolve() != Path(base.place).resolve()):
        raise BadRequest(f"adapter.start: {adapter.name} is an adapter of {said}, and the base is {base.name}")
    return adapter


def registered(reference: str) -> Base:
    config = Source().load()

    async def resolved() -> Base:
        async with opened(config.state.database) as store:
            version, folder = await resolve(store, artifacts_at(config.registry.artifacts), Reference.of(reference))
            return Base(f"{SCHEME}{version.reference}", str(folder))

    try:
        return asyncio.run(resolved())
    except ValueError as error:
        raise BadRequest(f"the base {error}") from error


def digest_of(base: Base) -> str | None:
    """Of what is read of a folder, by the registry's manifests, or the commit of a Hugging Face id. None of what is
    registered: the number of a version says which weights these are."""
    if is_reference(base.name):
        return None
    folder = Path(base.place)
    if not folder.is_dir():
        cached = try_to_load_from_cache(base.place, "config.json")  # .../snapshots/COMMIT/config.json
        return Path(cached).parent.name if isinstance(cached, str) else None
    files = {}
    for path in folder.iterdir():
        if path.suffix in READ and path.is_file():
            with path.open("rb") as reading:
                files[path.name] = measured(reading)
    return Manifest(files).digest


def unchanged(begun_from: Sequence[Base], before: Mapping[str, Any], out: Path) -> dict[str, str]:
    """Digests by name, as the run in `out` notes them under `weights` of what it has resolved, which is `before` where
    it goes on. Raises Conflict if it would go on from others."""
    now = {one.name: digest for one in begun_from if (digest := digest_of(one))}
    for name, digest in before.get("weights", {}).items():
        if now.get(name) != digest:
            raise Conflict(
                f"{name} has changed since the run in {out} was begun, which would go on from other weights: put back "
                "what it was, or begin again with another --out"
            )
    return now


def device() -> str:
    return device_of("auto")


def computing(precision: str) -> AbstractContextManager[Any]:
    """What a forward pass runs in: matrices in bfloat16, sums and losses in float32."""
    return torch.autocast(device(), torch.bfloat16) if precision == "bfloat16" else nullcontext()


def tokenizer_of(base: Base, template: Path | None, eos_token: str | None) -> PreTrainedTokenizerBase:
    """With the recipe's chat template and EOS in the place of the base's own. Raises BadRequest."""
    try:
        tokenizer = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(base.place, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{base.name} has no tokenizer that can be read: {error}") from error
    if not tokenizer.is_fast:
        raise BadRequest(
            f"the tokenizer of {base.name} does not tell which characters a token has: give tokenizer.json"
        )
    if template:
        try:
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"the chat template {template} cannot be read: {error}") from error
    if eos_token:
        if eos_token not in tokenizer.get_vocab():
            raise BadRequest(f"eos_token: {base.name} has no token {eos_token!r}")
        tokenizer.eos_token = eos_token
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def config_of(base: Base) -> dict[str, Any]:
    """The base's config.json. Raises BadRequest."""
    try:
        return cast("dict[str, Any]", AutoConfig.from_pretrained(base.place, trust_remote_code=False).to_dict())
    except (OSError, ValueError) as error:
        raise BadRequest(f"{base.name} holds no model that transformers can load: {error}") from error


def weights_of(base: Base, dtype: torch.dtype, **more: Any) -> PreTrainedModel:
    """Only safetensors are read, and no code that comes with them is run. Raises BadRequest."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            base.place, dtype=dtype, use_safetensors=True, trust_remote_code=False, **more
        )
    except (OSError, ValueError, ImportError) as error:
        raise BadRequest(f"{base.name} holds no model that transformers can load: {error}") from error
    model.config.use_cache = False
    return cast("PreTrainedModel", model if more else model.to(device()))


def ends_with(base: Base, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens at which an engine that serves the base stops."""
    try:
        said = GenerationConfig.from_pretrained(base.place).eos_token_id
    except OSError:
        said = config_of(base).get("eos_token_id")
    return set(said if isinstance(said, list) else [tokenizer.eos_token_id if said is None else said])
