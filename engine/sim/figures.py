"""What the simulated engine measures of itself, in vLLM's names and Prometheus's text."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REASONS = ("stop", "length", "abort", "error")
# vLLM's own.
TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_BUCKETS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
E2E_BUCKETS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip


class Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def samples(self) -> Iterator[tuple[str, str, float]]:
        """(suffix, label, value) of each sample."""
        total = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            yield "_bucket", f',le="{bound}"', total
        yield "_count", "", total
        yield "_sum", "", self.sum


class Figures:
    """Counters and histograms; the gauges are the scheduler's, and given when they are asked for."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.cache_queries = 0
        self.cache_hits = 0
        self.rejections = 0
        self.finished = Counter(dict.fromkeys(REASONS, 0))
        self.ttft_s = Histogram(TTFT_BUCKETS_S)
        self.itl_s = Histogram(ITL_BUCKETS_S)
        self.e2e_s = Histogram(E2E_BUCKETS_S)

    def read(self, tokens: int, cached_tokens: int) -> None:
        """A prompt, of which some was in the cache."""
        self.prompt_tokens += tokens
        self.cache_queries += tokens
        self.cache_hits += cached_tokens

    def text(self, model: str, running: int, waiting: int, kv_cache_used: float, unfinished_tokens: int) -> bytes:
        """`unfinished_tokens`: what those still running have generated so far."""
        lines: list[str] = []
        labels = f'engine="0",model_name="{model}"'

        def family(name: str, kind: str, *samples: tuple[str, str, float]) -> None:
            lines.append(f"# HELP vllm:{name} Simulated.\n# TYPE vllm:{name} {kind}")
            lines.extend(f"vllm:{name}{suffix}{{{labels}{label}}} {float(value)}" for suffix, label, value in samples)

        family("num_requests_running", "gauge", ("", "", running))
        family("num_requests_waiting", "gauge", ("", "", waiting))
        family("kv_cache_usage_perc", "gauge", ("", "", kv_cache_used))
        for name, value in self.counters(unfinished_tokens):
            family(f"{name}_total", "counter", ("", "", value))
        reasons = [("", f',finished_reason="{reason}"', count) for reason, count in self.finished.items()]
        family("request_success_total", "counter", *reasons)
        family("admission_rejections_total", "counter", ("", ',reason="max_num_queued_reqs"', self.rejections))
        family("time_to_first_token_seconds", "histogram", *self.ttft_s.samples())
        family("inter_token_latency_seconds", "histogram", *self.itl_s.samples())
        family("e2e_request_latency_seconds", "histogram", *self.e2e_s.samples())
        return ("\n".join(lines) + "\n").encode()

    def counters(self, unfinished_tokens: int) -> Iterator[tuple[str, float]]:
        yield "num_preemptions", 0
        yield "prompt_tokens", self.prompt_tokens
        yield "generation_tokens", self.generation_tokens + unfinished_tokens
        yield "prefix_cache_queries", self.cache_queries
        yield "prefix_cache_hits", self.cache_hits
