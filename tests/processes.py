"""Which tests share a process under `pytest -n`: a file's, and all those that need the same engine, started once."""

from xdist.scheduler import LoadFileScheduling

ENGINES = {
    "the real engine": (
        "tests/clients/",
        "tests/engine/sim/test_likeness.py",
        "tests/engine/test_real_engine.py",
        "tests/serving/test_moving_the_real_engine.py",
        "tests/test_readme.py",
    ),
    "the real engine in float32": ("tests/evals/",),
}


class ByEngine(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """Groups with many tests come first: the real engine's, which takes longest, is among them."""

    def _split_scope(self, nodeid: str) -> str:
        for engine, tests in ENGINES.items():
            if nodeid.startswith(tests):
                return engine
        return str(super()._split_scope(nodeid))
