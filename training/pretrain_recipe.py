"""The recipe of a pre-training run."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from training import recipe
from training.data import FAMILIES
from training.recipe import Part


class TokenizerPart(Part):
    """One that is there, in `folder`, or a byte-level BPE learned from what the first stage trains on."""

    folder: Path | None = None
    vocab_size: int = Field(1000, ge=300)
    items: PositiveInt = Field(10_000, description="conversations, or lines of files, that it is learned from")


class ModelPart(Part):
    """`tied`: the embeddings of what is read are those of what is written. GPT-2 has learned positions instead of
    `rope_theta`, is tied, and all its heads have keys and values of their own."""

    style: Literal["qwen3", "llama", "gpt2"] = "qwen3"
    hidden_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    key_value_heads: PositiveInt = 1
    ffn_size: PositiveInt
    max_length: PositiveInt
    tied: bool = True
    rope_theta: PositiveFloat = 10_000.0

    @model_validator(mode="before")
    @classmethod
    def heads_share_nothing_unless_told(cls, said: Any) -> Any:
        return {"key_value_heads": said["heads"], **said} if isinstance(said, dict) and "heads" in said else said

    @model_validator(mode="after")
    def heads_fit(self) -> "ModelPart":
        if self.hidden_size % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.hidden_size}")
        if self.heads % self.key_value_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.key_value_heads} keys and values evenly")
        if self.style != "gpt2" and self.head_size % 2:
            raise ValueError(f"rotary positions need heads of even size, not {self.head_size}")
        if self.style == "gpt2" and not (self.tied and self.key_value_heads == self.heads):
            raise ValueError("gpt2 is tied and has as many key_value_heads as heads: choose the style llama for others")
        return self

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads


class OptimizerPart(Part):
    """Muon for the matrices of the layers if it has a rate, AdamW for all else.

    Learning rates rise over the warm-up, stay, and fall linearly to `final_share` over the last `decay_share`.
    """

    muon_lr: PositiveFloat | None = None
    adamw_lr: PositiveFloat
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, of matrices")
    warmup_steps: PositiveInt
    decay_share: float = Field(gt=0, le=1)
    final_share: float = Field(ge=0, le=1)
    clip: PositiveFloat


class Stage(Part):
    """A stretch of training: its length, the shape of its batches, what fills them.

    `families` (generated) and `files` (JSON lines, plain text) have weights: how often, beside the others, a document
    is drawn from each. `random_sequences` and `marked_passages` are the shares of exercises in looking back
    (`training/exercises.py`) among all documents. In generated conversations what is not an answer weighs
    `rest_weight`, and what decides an answer, its first token and the number that it cites, `decision_weight`.
    """

    steps: PositiveInt
    rows: PositiveInt
    length: int = Field(ge=2)
    random_sequences: float = Field(0.0, ge=0, le=1)
    marked_passages: float = Field(0.0, ge=0, le=1)
    rest_weight: float = Field(0.3, ge=0, lt=1)
    decision_weight: float = Field(1.0, ge=1)
    families: dict[str, PositiveFloat] = Field({})
    files: dict[Path, PositiveFloat] = Field({})

    @model_validator(mode="after")
    def has_something_to_learn(self) -> "Stage":
        if unknown := set(self.families) - set(FAMILIES):
            raise ValueError(f"unknown families {sorted(unknown)}, there are {sorted(FAMILIES)}")
        if not self.families and not self.files:
            raise ValueError("a stage needs `families` or `files` to learn from")
        if self.random_sequences + self.marked_passages > 1:
            raise ValueError("`random_sequences` and `marked_passages` are shares: together at most 1")
        return self


class ValidationPart(Part):
    """Perplexity and bits per byte every so many steps, and at the end, of what is not trained on: `items` fresh
    conversations a family, and all of the files."""

    every: PositiveInt
    families: list[str] = Field([])
    items: PositiveInt = 20
    files: list[Path] = Field([])

    @model_validator(mode="after")
    def has_something_to_read(self) -> "ValidationPart":
        if unknown := set(self.families) - set(FAMILIES):
            raise ValueError(f"unknown families {sorted(unknown)}, there are {sorted(FAMILIES)}")
        if not self.families and not self.files:
            raise ValueError("a validation needs `families` or `files` to read")
        return self


class Recipe(Part):
    """`threads` stands here because sums, and so the weights, depend on how they are split."""

    script: Literal["pretrain"]
    seed: int
    threads: PositiveInt
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    tokenizer: TokenizerPart
    model: ModelPart
    optimizer: OptimizerPart
    stages: list[Stage] = Field(min_length=1)
    accumulation: PositiveInt = Field(1, description="parts of a step's rows that go through the model in turn")
    gradient_checkpointing: bool = False
    separate_documents: bool = Field(False, description="those that share a row do not see each other")
    too_long: Literal["refuse", "skip", "cut"] = Field("refuse", description="documents of files longer than a row")
    validation: ValidationPart | None = None
    evaluation_items: PositiveInt | None = Field(None, description="of each family, asked of the result")
    temperature: float = Field(0.1, ge=0, description="what the result samples with unless it is asked otherwise")
    checkpoint_every: PositiveInt
    digests: dict[str, str] = Field({}, description="SHA-256 of the files that are read; filled in by the run")

    @model_validator(mode="after")
    def parts_fit(self) -> "Recipe":
        for stage in self.stages:
            if stage.length > self.model.max_length:
                raise ValueError(
                    f"rows of {stage.length} are longer than the model's max_length {self.model.max_length}"
                )
            if stage.rows % self.accumulation:
                raise ValueError(f"an accumulation of {self.accumulation} does not divide {stage.rows} rows")
        both = {path.resolve() for path in self.files} & {path.resolve() for path in self.read_files}
        if both:
            raise ValueError(f"validation reads what is trained on, which says nothing: {min(both)}")
        if self.evaluation_items and not self.families:
            raise ValueError("evaluation_items are of families: a run on files alone has none, leave it out")
        return self

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        return sum(stage.steps * stage.rows * stage.length for stage in self.stages)

    @property
    def families(self) -> list[str]:
        """Those that are trained on, in the order of the generator."""
        return [name for name in FAMILIES if any(name in stage.families for stage in self.stages)]

    @property
    def files(self) -> list[Path]:
        """Those that are trained on."""
        return sorted({path for stage in self.stages for path in stage.files})

    @property
    def read_files(self) -> list[Path]:
        """Those that validation reads."""
        return self.validation.files if self.validation else []

    def stage_at(self, step: int) -> Stage:
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(f"the recipe has {self.steps} steps")


def load_recipe(path: Path) -> Recipe:
    """Raises ConfigError."""
    return recipe.load(path, Recipe)
