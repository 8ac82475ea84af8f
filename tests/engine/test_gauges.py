"""Penstock's names for what engines measure, held against the engine that is installed."""

import importlib.util
from pathlib import Path

import pytest

from engine import gauges


def test_the_three_engines_figures_are_read_under_one_name() -> None:
    for text in ('vllm:num_requests_running{engine="0"} 3.0\n', "sglang:num_running_reqs 3\n"):
        assert gauges.read(text) == {"running": 3.0}
    assert gauges.read("trtllm_num_requests_running 3\n") == {"running": 3.0}


def test_samples_of_several_engines_in_one_server_are_summed_and_others_left_out() -> None:
    text = 'vllm:num_requests_waiting{engine="0"} 1\nvllm:num_requests_waiting{engine="1"} 2\npython_info 1\n'
    assert gauges.read(text) == {"waiting": 3.0}


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_every_vllm_name_stands_in_the_installed_vllms_source() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    metrics = Path(spec.submodule_search_locations[0]) / "v1" / "metrics"
    source = "".join(file.read_text() for file in metrics.glob("*.py"))
    for names in gauges.NAMES.values():
        for name in names:
            if name.startswith("vllm:"):
                # The client library adds _total to a counter's name.
                assert f'"{name.removesuffix("_total")}"' in source, name
