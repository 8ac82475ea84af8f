"""Which tests share a process under `pytest -n`: a file's, and all those that need the same engine, started once.

What starts engines of its own is with them, so that it begins early and no more than two run at once."""

import pytest
from xdist.scheduler import LoadFileScheduling

ENGINES = {
    "the real engine": (
        "tests/clients/",
        "tests/engine/sim/test_likeness.py",
        "tests/engine/test_real_engine.py",
        "tests/serving/test_moving_the_real_engine.py",
        "tests/test_readme.py",
    ),
    "engines in float32": (
        "tests/benchmarks/test_loop.py",
        "tests/engine/test_dequantizing.py",
        "tests/evals/",
        "tests/training/test_served.py",
        "tests/training/test_served_models.py",
    ),
}


def engine_of(nodeid: str) -> str | None:
    return next((engine for engine, tests in ENGINES.items() if nodeid.startswith(tests)), None)


def end_engine(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """With the last test of an engine's, not with the process: probes alone, one a second, take a fifth of a core. Only
    under `-n`, where all of them stand together."""
    engine = engine_of(item.nodeid) if hasattr(item.config, "workerinput") else None
    if engine and nextitem and engine_of(nextitem.nodeid) != engine:
        item.session._setupstate.teardown_exact(None)


class ByEngine(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """Groups with many tests come first: the real engine's, which takes longest, is among them."""

    def _split_scope(self, nodeid: str) -> str:
        return engine_of(nodeid) or str(super()._split_scope(nodeid))
