"""What Penstock measures about itself, for Prometheus. Times are in seconds."""

from prometheus_client import Counter, Gauge, Histogram

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

requests = Counter("penstock_requests", "Requests answered, by the status sent.", ["route", "model", "status"])
in_flight = Gauge("penstock_requests_in_flight", "Requests being answered.")
seconds = Histogram(
    "penstock_request_seconds",
    "From the request's first byte to the answer's last.",
    ["route"],
    buckets=LATENCY_BUCKETS,
)
first_byte_seconds = Histogram(
    "penstock_first_byte_seconds", "From the request to the answer's first byte.", ["route"], buckets=LATENCY_BUCKETS
)
disconnects = Counter("penstock_disconnects", "Clients that left before their answer was complete.", ["route"])
interrupted = Counter("penstock_streams_interrupted", "Streams that ended in an error event.", ["model"])

engine_ready = Gauge("penstock_engine_ready", "1 while the replica answers its probe.", ["engine", "replica"])
engine_restarts = Counter("penstock_engine_restarts", "Engine processes replaced.", ["engine", "replica"])
engine_start_seconds = Gauge("penstock_engine_start_seconds", "What the last start took.", ["engine", "replica"])
engine_gauge = Gauge(
    "penstock_engine", "The engine's own figures, by Penstock's names.", ["engine", "replica", "figure"]
)
