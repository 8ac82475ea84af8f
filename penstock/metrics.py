"""What Penstock measures about itself, for Prometheus. Times are in seconds.

A new metric is one line here. Label values come from bounded sets only: a name that a client made up is never one.
"""

import gc
from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_LATEST, PROCESS_COLLECTOR

from penstock.meters import Meters, Snapshot

CONTENT_TYPE = CONTENT_TYPE_LATEST
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BY_REPLICA = ("engine", "replica")

_all = Meters()
_late: list[Callable[[], None]] = []

requests = _all.counter("penstock_requests_total", "Requests answered, by the status sent.", "route", "model", "status")
in_flight = _all.gauge("penstock_requests_in_flight", "Requests being answered.")
seconds = _all.histogram(
    "penstock_request_seconds",
    "From the request's first byte to the answer's last.",
    "route",
    buckets=LATENCY_BUCKETS,
)
first_byte_seconds = _all.histogram(
    "penstock_first_byte_seconds", "From the request to the answer's first byte.", "route", buckets=LATENCY_BUCKETS
)
disconnects = _all.counter("penstock_disconnects_total", "Clients that left before their answer was complete.", "route")
interrupted = _all.counter("penstock_streams_interrupted_total", "Streams that ended in an error event.", "model")

retries = _all.counter(
    "penstock_retries_total", "Tries beyond a request's first, by what went wrong.", "model", "reason"
)
hedges = _all.counter("penstock_hedges_total", "Second tries beside a first that was slow to begin.", "model")
continued = _all.counter("penstock_streams_continued_total", "Cut streams that another replica ended.", "model")
fallbacks = _all.counter("penstock_fallbacks_total", "Requests that another served model answered.", "model", "to")

canary_requests = _all.counter(
    "penstock_canary_requests_total",
    "Requests of an alias that has a canary, by whose they were and how they ended.",
    "alias",
    "arm",
    "result",
)
canaries_ended = _all.counter(
    "penstock_canaries_ended_total", "Canaries that this gateway has judged, by what came of them.", "alias", "outcome"
)
canaries_unwritten = _all.gauge(
    "penstock_canaries_unwritten", "1 while canaries' figures wait for a database that does not answer.", across="max"
)

usage_unwritten = _all.gauge(
    "penstock_usage_unwritten", "1 while usage waits for a database that does not answer.", across="max"
)
usage_refused = _all.counter(
    "penstock_usage_refused_total", "Batches of usage that the table would not take, left in `noted`."
)
usage_implausible = _all.counter("penstock_usage_implausible_total", "Engine's figures of usage that cannot be.")

guard_seconds = _all.histogram(
    "penstock_guard_seconds",
    "What guards took of a request: each that looks at whole texts, and all that look for places together (`spans`).",
    "guard",
    "direction",
    buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30),
)
guard_verdicts = _all.counter(
    "penstock_guard_verdicts_total", "What guards made of requests.", "guard", "direction", "verdict"
)

shed = _all.counter("penstock_shed_total", "Requests refused by limits, by whose they are.", "model", "reason")
queue_length = _all.gauge("penstock_queue_length", "Requests that wait for a place.", "model")
queue_seconds = _all.histogram(
    "penstock_queue_seconds", "How long requests that had to wait for a place did.", "model", buckets=LATENCY_BUCKETS
)
limits_shared = _all.gauge("penstock_limits_shared", "1 while limits hold across processes, by Redis.", across="min")
redis_refusals = _all.counter("penstock_redis_refusals_total", "Calls that Redis answered with an error.", "error")
redis_left_out = _all.counter(
    "penstock_redis_left_out_total", "Ended requests that Redis was never told of: too many waited for it."
)
redis_failures = _all.counter("penstock_redis_failures_total", "Calls that Redis did not answer in time, or refused.")

engine_ready = _all.gauge("penstock_engine_ready", "1 while the replica answers its probe.", *BY_REPLICA, across="min")
breaker_open = _all.gauge(
    "penstock_breaker_open", "1 while a replica is left alone after failures.", *BY_REPLICA, across="max"
)
engine_restarts = _all.counter("penstock_engine_restarts_total", "Engine processes replaced.", *BY_REPLICA)
engine_start_seconds = _all.gauge(
    "penstock_engine_start_seconds", "What the last start took.", *BY_REPLICA, across="max"
)
# Every worker reads the same engine: the largest is the newest of what only grows, and near enough for the rest.
engine_gauge = _all.gauge(
    "penstock_engine", "The engine's own figures, by Penstock's names.", *BY_REPLICA, "figure", across="max"
)

reloads = _all.counter(
    "penstock_reloads_total", "Times the configuration was read again: applied, unchanged or refused.", "result"
)
config_refused = _all.gauge(
    "penstock_config_refused", "1 while the configuration file cannot be used and the one before it serves on."
)
model_version = _all.gauge(
    "penstock_model_version", "1 for the registered version that a served model has.", "model", "version", across="max"
)
alias_refused = _all.gauge(
    "penstock_alias_refused",
    "1 while a reference of the configuration (`of`) leads to a version that cannot be served.",
    "of",
    across="max",
)
version_moves = _all.counter(
    "penstock_version_moves_total", "Versions that were moved to, or could not be.", "of", "result"
)
replays = _all.counter(
    "penstock_replays_total", "Answers given again instead of generated: of the cache, or of an idempotency key.", "of"
)
log_lines_lost = _all.counter("penstock_log_lines_lost_total", "Lines of the log that nobody took in time.")
worker_restarts = _all.counter("penstock_worker_restarts_total", "Worker processes replaced.")
processes = _all.gauge("penstock_processes", "The gateway's processes: one, or the parent and its workers.")
process_cpu_seconds = _all.counter("process_cpu_seconds_total", "CPU time of the gateway's processes, in seconds.")
process_memory = _all.gauge("process_resident_memory_bytes", "Resident memory of the gateway's processes.")
process_open_fds = _all.gauge("process_open_fds", "Open file descriptors of the gateway's processes.")
process_max_fds = _all.gauge("process_max_fds", "How many file descriptors the gateway's processes may open.")
process_start = _all.gauge("process_start_time_seconds", "When the gateway started, since the epoch.", across="min")
gc_collections = _all.counter("python_gc_collections_total", "Garbage collections.", "generation")

READ = {
    meter.name: meter
    for meter in (process_cpu_seconds, process_memory, process_open_fds, process_max_fds, process_start)
}


def before_snapshots(flush: Callable[[], None]) -> None:
    """For what is counted in batches: `flush` brings the figures up to date."""
    _late.append(flush)


def snapshot() -> Snapshot:
    """Every figure of this process as it is now, as plain data that JSON can carry."""
    for flush in _late:
        flush()
    processes.set(1)
    for family in PROCESS_COLLECTOR.collect():
        for sample in family.samples:
            if sample.name in READ:
                READ[sample.name].set(sample.value)
    for generation, collected in enumerate(gc.get_stats()):
        gc_collections.set(collected["collections"], generation)
    return _all.snapshot()


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Several processes' figures as one."""
    return _all.merged(snapshots)


def lasting(snapshot: Snapshot) -> Snapshot:
    """What of a process that has ended still counts: all but its gauges."""
    return _all.lasting(snapshot)


def text(snapshot: Snapshot) -> bytes:
    """Prometheus' text format, of the content type `CONTENT_TYPE`."""
    return _all.text(snapshot)
