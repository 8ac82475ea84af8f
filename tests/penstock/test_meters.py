"""Figures are counted as prometheus_client counts them, and the sum over processes is that of one process."""

from collections.abc import Sequence

import orjson
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import metrics
from penstock.meters import Meters

BUCKETS = (0.125, 1.0, 5.0)
# Sums of these are exact in whatever order.
OBSERVED = st.lists(st.tuples(st.sampled_from(["a", 'b"\n']), st.sampled_from([0.0, 0.125, 0.5, 1.0, 4.0, 5.0, 9.0])))


class Counted:
    """One process's figures, of each kind."""

    def __init__(self, observed: Sequence[tuple[str, float]] = ()) -> None:
        self.meters = Meters()
        self.asked = self.meters.counter("asked_total", "Asked.", "who")
        self.running = self.meters.gauge("running", "Running.")
        self.took = self.meters.histogram("took_seconds", "Took.", "who", buckets=BUCKETS)
        for who, value in observed:
            self.asked.inc(who)
            self.running.inc(by=value)
            self.took.observe(value, who)

    def text(self) -> bytes:
        return self.meters.text(self.meters.snapshot())


@given(OBSERVED)
def test_the_text_is_prometheus_clients_own(observed: list[tuple[str, float]]) -> None:
    registry = prometheus_client.CollectorRegistry()
    asked = prometheus_client.Counter("asked", "Asked.", ["who"], registry=registry)
    running = prometheus_client.Gauge("running", "Running.", registry=registry)
    took = prometheus_client.Histogram("took_seconds", "Took.", ["who"], registry=registry, buckets=BUCKETS)
    for who, value in observed:
        asked.labels(who).inc()
        running.inc(value)
        took.labels(who).observe(value)
    lines = prometheus_client.generate_latest(registry).splitlines()
    assert Counted(observed).text().splitlines() == [line for line in lines if b"_created" not in line]


@given(OBSERVED, OBSERVED)
def test_two_processes_merged_are_one_that_has_counted_everything(
    here: list[tuple[str, float]], there: list[tuple[str, float]]
) -> None:
    both = Counted(here + there)
    carried = orjson.loads(orjson.dumps(Counted(there).meters.snapshot()))
    merged = both.meters.merged([Counted(here).meters.snapshot(), carried])
    assert sorted(both.meters.text(merged).splitlines()) == sorted(both.text().splitlines())


@pytest.mark.parametrize(("across", "figure"), [("sum", 5.0), ("max", 3.0), ("min", 2.0)])
def test_gauges_are_merged_as_each_says(across: str, figure: float) -> None:
    meters = Meters()
    gauge = meters.gauge("g", "G.", "of", across=across)  # type: ignore[arg-type]  # one of the three
    gauge.set(2, "x")
    two = meters.snapshot()
    gauge.set(3, "x")
    assert meters.merged([two, meters.snapshot()])["g"] == [(("x",), [figure])]


def test_of_a_process_that_has_ended_all_but_the_gauges_stays() -> None:
    counted = Counted([("a", 0.5)])
    assert set(counted.meters.lasting(counted.meters.snapshot())) == {"asked_total", "took_seconds"}


def test_a_gauge_forgets_what_is_no_more() -> None:
    meters = Meters()
    gauge = meters.gauge("g", "G.", "of")
    gauge.set(1, "x")
    gauge.forget("x")
    gauge.forget("never there")
    assert meters.snapshot() == {"g": []}


def test_a_number_as_a_label_is_its_text() -> None:
    meters = Meters()
    meters.counter("c_total", "C.", "status").inc(200)
    assert meters.snapshot()["c_total"] == [(["200"], (1.0,))]


def test_a_wrong_number_of_labels_is_told_at_once() -> None:
    counted = Counted()
    with pytest.raises(TypeError, match="asked_total has the labels who, not"):
        counted.asked.inc("a", "b")
    with pytest.raises(TypeError, match="took_seconds has the labels who, not"):
        counted.took.observe(1.0)
    with pytest.raises(TypeError, match="running has the labels none, not"):
        counted.running.inc("x")


def test_the_process_itself_is_measured() -> None:
    now = dict(metrics.snapshot())
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        ((_, (figure,)),) = now[name]
        assert figure > 0
    assert [labels for labels, _ in now["python_gc_collections_total"]] == [["0"], ["1"], ["2"]]
