"""The real engine in float32: what it says and what transformers says differ by the order of their sums alone."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Served, free_port, running

CONFIGURED = """
engines: {base: {model: demo, options: {dtype: float32}}}
models: {demo: {engine: base}}
"""


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("exact")
    config = folder / "penstock.yaml"
    config.write_text(CONFIGURED)
    port = free_port()
    command = [str(Path(sys.executable).parent / "penstock"), "serve", "--config", str(config), "--port", str(port)]
    with running(command, port, folder) as served:
        yield served
