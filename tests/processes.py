"""Which tests share a process under `pytest -n`: a file's, and all those that need the real engine, started once."""

from xdist.scheduler import LoadFileScheduling

REAL_ENGINE = (
    "tests/clients/",
    "tests/engine/sim/test_likeness.py",
    "tests/engine/test_real_engine.py",
    "tests/test_readme.py",
)


class ByEngine(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """Groups with many tests come first: the real engine's, which takes longest, is among them."""

    def _split_scope(self, nodeid: str) -> str:
        return "the real engine" if nodeid.startswith(REAL_ENGINE) else super()._split_scope(nodeid)
