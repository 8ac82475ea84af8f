"""The recipes of `sft` and `dpo`: a base, what of it is trained, on which rows, for how long."""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from training.formats import Format
from training.recipe import Part

Method = Literal["full", "lora", "dora", "qlora", "prefix", "prompt"]
Precision = Literal["auto", "float32", "bfloat16"]
LORA_KINDS: tuple[Method, ...] = ("lora", "dora", "qlora")
VIRTUAL: tuple[Method, ...] = ("prefix", "prompt")


class Data(Part):
    """`format` is told from the rows unless it is said; then rows of another one are bad."""

    path: Path
    format: Format | None = None


class Pairs(Part):
    path: Path


class Adapter(Part):
    """Rank, alpha, dropout and targets are LoRA's; virtual tokens those of prefix and prompt tuning. `start` is a LoRA
    adapter of the same base to go on from, a folder or `registry:NAME@ALIAS`, which has all of these itself."""

    start: str | None = None
    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: float = Field(0, ge=0, lt=1)
    rslora: bool = False
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    modules_to_save: tuple[str, ...] = ()
    virtual_tokens: PositiveInt = 20


class Optimizer(Part):
    """AdamW, whose rate rises over the warm-up and falls to `final_share` of `lr` at the end."""

    lr: PositiveFloat
    warmup_steps: NonNegativeInt = 0
    decay: Literal["linear", "cosine", "none"] = "linear"
    final_share: float = Field(0.1, ge=0, le=1)
    weight_decay: NonNegativeFloat = 0
    clip: PositiveFloat = 1.0


class Tuning(Part):
    """What `sft` and `dpo` share. `base` is a folder, a Hugging Face id, or `registry:NAME@ALIAS`.

    A step learns from `rows` rows of at most `length` tokens, `rows_at_once` of them in memory together. `threads`
    stands here because sums, and so the weights, depend on how they are split. `merge` writes whole weights beside an
    adapter, in `saved_dtype` as those of `method: full` are; bfloat16 rounds them.
    """

    base: str
    chat_template: Path | None = None
    eos_token: str | None = None
    seed: int
    threads: PositiveInt = 1
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    adapter: Adapter = Adapter()
    bad_rows: NonNegativeInt = 0
    length: PositiveInt
    rows: PositiveInt
    rows_at_once: PositiveInt | None = None
    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    optimizer: Optimizer
    checkpoint_every: PositiveInt
    export: Literal["warn", "required"] = "warn"
    merge: bool = False
    saved_dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def starts_as_it_goes_on(self) -> "Tuning":
        if self.adapter.start and getattr(self, "method", None) not in ("lora", "qlora"):
            raise ValueError("adapter.start goes on with a LoRA adapter: `method: lora`, or qlora")
        if self.adapter.start and self.adapter != Adapter(start=self.adapter.start):
            raise ValueError("adapter.start names an adapter that has its own rank, alpha and targets: leave them out")
        return self

    @model_validator(mode="after")
    def length_is_said_once(self) -> "Tuning":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("say either `steps` or `epochs`")
        return self


class Sft(Tuning):
    script: Literal["sft"]
    method: Method
    data: list[Data] = Field(min_length=1)
    packing: bool = True
    held_out: float = Field(0, ge=0, lt=1)
    evaluate_every: PositiveInt | None = None

    @model_validator(mode="after")
    def method_fits(self) -> "Sft":
        if self.method in VIRTUAL and self.packing:
            raise ValueError(
                f"{self.method} tuning puts its tokens before a row, not before a document: packing: false"
            )
        if self.merge and self.method in ("full", *VIRTUAL):
            raise ValueError(f"there is nothing to merge with `method: {self.method}`")
        return self


class Dpo(Tuning):
    """A row is a pair. `beta` weighs how far from the base the model may go; `label_smoothing` is the share of labels
    that is thought wrong."""

    script: Literal["dpo"]
    method: Literal["full", "lora"]
    data: list[Pairs] = Field(min_length=1)
    beta: PositiveFloat = 0.1
    label_smoothing: float = Field(0, ge=0, lt=0.5)
    length_normalized: bool = False

    @model_validator(mode="after")
    def merges_an_adapter(self) -> "Dpo":
        if self.merge and self.method == "full":
            raise ValueError("there is nothing to merge with `method: full`")
        return self
