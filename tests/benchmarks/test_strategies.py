"""The recipe that the benchmark serves."""

from benchmarks.strategies import CONFIG
from penstock.source import load
from serving.composing import STEPS
from serving.compositions import check


def test_every_strategy_of_the_recipe_can_be_made_and_the_first_model_is_plain() -> None:
    config = load(CONFIG)
    check(config)
    steps = {name: model.steps for name, model in config.models.items()}
    assert next(iter(steps.items())) == ("plain", [])
    assert all(len(of) == 1 for name, of in steps.items() if name != "plain")
    named = {name for of in steps.values() for step in of for name in step}
    assert named == {name for name in STEPS if STEPS[name].__module__.startswith("prompting.")} - {"instruct", "prompt"}
