"""The recipe of a pre-training run."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from training import recipe
from training.data import FAMILIES
from training.recipe import Part


class TokenizerPart(Part):
    vocab_size: int = Field(ge=300)
    items: PositiveInt


class ModelPart(Part):
    hidden_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    ffn_size: PositiveInt
    max_length: PositiveInt

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> "ModelPart":
        if self.hidden_size % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.hidden_size}")
        return self


class OptimizerPart(Part):
    """Learning rates rise over the warm-up, stay, and fall linearly to `final_share`."""

    muon_lr: PositiveFloat
    adamw_lr: PositiveFloat
    warmup_steps: PositiveInt
    decay_share: float = Field(gt=0, le=1)
    final_share: float = Field(ge=0, le=1)
    clip: PositiveFloat


class Stage(Part):
    """A stretch of training: its length, the shape of its batches, what fills them."""

    steps: PositiveInt
    rows: PositiveInt
    length: PositiveInt
    random_sequences: float = Field(ge=0, le=1)
    families: dict[str, float]

    @model_validator(mode="after")
    def families_exist(self) -> "Stage":
        if unknown := set(self.families) - set(FAMILIES):
            raise ValueError(f"unknown families {sorted(unknown)}, there are {sorted(FAMILIES)}")
        return self


class Recipe(Part):
    """`threads` stands here because sums, and so the weights, depend on how they are split."""

    script: Literal["pretrain"]
    seed: int
    threads: PositiveInt
    tokenizer: TokenizerPart
    model: ModelPart
    optimizer: OptimizerPart
    stages: list[Stage] = Field(min_length=1)
    evaluation_items: PositiveInt
    checkpoint_every: PositiveInt

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        return sum(stage.steps * stage.rows * stage.length for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(f"the recipe has {self.steps} steps")


def load_recipe(path: Path) -> Recipe:
    """Raises ConfigError."""
    return recipe.load(path, Recipe)
