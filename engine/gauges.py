"""The engines' metrics under one small set of names.

vLLM, SGLang and TensorRT-LLM each publish Prometheus text with their own names; this file is the only place that
knows them. Checked against vLLM 0.32.0, SGLang 0.5.23 and TensorRT-LLM 1.2.1 (at /prometheus/metrics, with
return_perf_metrics).
"""

from collections.abc import Iterable, Sequence

from prometheus_client.parser import text_string_to_metric_families

from engine.connection import Client
from penstock import metrics
from penstock.errors import EngineError

TIMEOUT_S = 5.0
PATHS = ("/metrics", "/prometheus/metrics")  # the second is TensorRT-LLM's, whose first is JSON

# Penstock's name -> the engines' sample names. Counters only grow; the rest is of the moment.
NAMES: dict[str, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs", "trtllm_num_requests_running"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "trtllm_num_requests_waiting"),
    "kv_cache_used": ("vllm:kv_cache_usage_perc", "sglang:token_usage", "trtllm_kv_cache_utilization"),
    "preemptions": ("vllm:num_preemptions_total", "sglang:num_retracted_requests_total"),
    "prompt_tokens": ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total", "trtllm_prompt_tokens_total"),
    "generation_tokens": (
        "vllm:generation_tokens_total",
        "sglang:generation_tokens_total",
        "trtllm_generation_tokens_total",
    ),
    "prefix_cache_hits": ("vllm:prefix_cache_hits_total", "sglang:cached_tokens_total"),
    "finished": ("vllm:request_success_total", "sglang:num_requests_total", "trtllm_request_success_total"),
}
CANONICAL = {theirs: ours for ours, names in NAMES.items() for theirs in names}


async def collect(client: Client, labels: Sequence[str], timeout_s: float) -> dict[str, float]:
    """Reads an engine's figures and publishes them as ours; empty if it does not give any in time."""
    figures: dict[str, float] = {}
    try:
        for path in PATHS:
            answer = await client.ask("GET", path, timeout_s=min(TIMEOUT_S, timeout_s))
            plain = answer.headers.get(b"content-type", b"").startswith(b"text/plain")
            figures = read(answer.body.decode()) if plain else {}
            if figures:
                break
    except (EngineError, ValueError):
        return {}
    for figure, value in figures.items():
        metrics.engine_gauge.set(value, *labels, figure)
    return figures


def read(text: str) -> dict[str, float]:
    """An engine's /metrics -> {"running": 3.0, ...}: samples of several labels are summed, unknown names left out."""
    gauges: dict[str, float] = {}
    for name, value in samples(text):
        ours = CANONICAL.get(name)
        if ours:
            gauges[ours] = gauges.get(ours, 0.0) + value
    return gauges


def samples(text: str) -> Iterable[tuple[str, float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.value
