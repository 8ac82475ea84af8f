"""What a batch of KV events says (vLLM 0.32, `vllm/distributed/kv_events.py`): the msgpack of [time, events, rank]."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from engine.cached import BlockHash

Token = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class BlockStored(msgspec.Struct, tag=True):
    """`extra_keys` has one entry per block: what besides tokens the block depends on."""

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[Token]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None

    @property
    def fills_blocks(self) -> bool:
        """Not so where an engine leaves out blocks that it does not keep, or tells of no tokens."""
        return self.block_size > 0 and len(self.token_ids) == len(self.block_hashes) * self.block_size

    @property
    def salt(self) -> str:
        """The salt of a prompt that begins here, where that is all that its first block depends on beside its tokens:
        [[["cache_salt", "..."]], None]."""
        match self.extra_keys:
            case [[["cache_salt", str(salt)]], *_] if self.parent_block_hash is None:
                return salt
        return ""

    @property
    def plain_blocks(self) -> int:
        """How many, from the first, depend on tokens and a salt alone: no adapter or image before their end."""
        if self.lora_id is not None or self.lora_name is not None:
            return 0
        keys = self.extra_keys or []
        salted = 1 if self.salt else 0
        return next((salted + number for number, key in enumerate(keys[salted:]) if key), len(self.block_hashes))


class BlockRemoved(msgspec.Struct, tag=True):
    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None


class AllBlocksCleared(msgspec.Struct, tag=True):
    pass


Event = BlockStored | BlockRemoved | AllBlocksCleared
KINDS: Mapping[str, type[Event]] = {kind.__name__: kind for kind in (BlockStored, BlockRemoved, AllBlocksCleared)}


def decoded(payload: bytes) -> list[Event]:
    """Events of kinds not known here are left out. Raises msgspec.MsgspecError or ValueError for what is no batch."""
    _, events, *_ = msgspec.msgpack.decode(payload, type=list[Any])
    named = [by_name(event) for event in msgspec.convert(events, list[dict[str, Any] | list[Any]])]
    return [msgspec.convert(event, KINDS[event["type"]]) for event in named if event["type"] in KINDS]


def by_name(event: dict[str, Any] | list[Any]) -> dict[str, Any]:
    """SGLang, and vLLM until it named them, write fields in their order: ["BlockRemoved", [7]]."""
    if isinstance(event, dict):
        return event | {"type": str(event.get("type"))}
    kind, *values = event or [None]
    fields = KINDS[str(kind)].__struct_fields__ if str(kind) in KINDS else ()
    return {"type": str(kind)} | dict(zip(fields, values, strict=False))


def is_near(event: BlockStored | BlockRemoved) -> bool:
    """In the accelerator's own memory: what lies in a slower tier has events of its own, under the same hashes."""
    return event.medium in (None, "GPU") and event.locality in (None, "LOCAL")
