"""Learning rates over a run."""

import math
from typing import Literal


def share(
    step: int, steps: int, warmup_steps: int, decay: Literal["linear", "cosine", "none"], final_share: float
) -> float:
    """The share of the peak rate at `step`, from 0: it rises to 1 over the warm-up and falls to `final_share`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    gone = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    left = {"linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2, "none": 1.0}[decay]
    return final_share + (1 - final_share) * left
