"""The recipe that the benchmark serves."""

from pathlib import Path

from benchmarks.strategies import CONFIG
from penstock.source import load
from serving.composing import STEPS, ServingParts, composed, steps_of


def test_every_strategy_of_the_recipe_can_be_made_and_the_first_model_is_plain() -> None:
    config = load(CONFIG)

    def unreached(model: str) -> None:
        raise AssertionError(model)

    parts = ServingParts(Path(CONFIG).parent, config.models, lambda model: unreached, unreached)  # type: ignore
    made = {name: composed(steps_of(config, name), parts) for name in config.models}
    (plain, *_), (first, *others) = made, made.values()
    assert (plain, len(first.arounds)) == ("plain", 0)
    assert all(len(other.arounds) == 1 for other in others)
    named = {next(iter(step)) for model in config.models.values() for step in model.steps}
    assert named == {name for name in STEPS if STEPS[name].__module__.startswith("prompting.")} - {"instruct", "prompt"}
