"""Counters, gauges and histograms cheap enough for every request, and their sums over several processes.

prometheus_client's own cost microseconds a call, with a lock each; these are a dictionary look-up, about a fifth of
one. They belong to one thread, the event loop's. The text that Prometheus reads is still the library's.

    meters = Meters()
    answered = meters.counter("penstock_requests_total", "Requests answered.", "route", "status")
    answered.inc("/v1/models", 200)
    meters.text(meters.snapshot())
"""

import operator
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, TypeVar

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Label = str | int
Labels = tuple[Label, ...]
Row = tuple[Sequence[str], Sequence[float]]
# All figures of a process by metric name, as plain data: label values, then one number, or a histogram's counts per
# bucket, its count beyond the last bucket, and its sum.
Snapshot = Mapping[str, Sequence[Row]]
Across = Literal["sum", "max", "min"]

ACROSS: dict[Across, Callable[[float, float], float]] = {"sum": operator.add, "max": max, "min": min}


class Meter(ABC):
    """What the three have in common. `lasting`: whether its figures still count when their process has ended."""

    lasting = True

    def __init__(self, name: str, help: str, labels: Sequence[str], across: Across = "sum") -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.across = ACROSS[across]

    def checked(self, labels: Labels) -> Labels:
        """Raises TypeError for a wrong number of label values; asked once per combination."""
        if len(labels) != len(self.labels):
            raise TypeError(f"{self.name} has the labels {', '.join(self.labels) or 'none'}, not {labels}")
        return labels

    @abstractmethod
    def rows(self) -> Iterator[Row]: ...

    @abstractmethod
    def family(self, rows: Iterable[Row]) -> Metric: ...


class Number(Meter):
    """One number per combination of labels."""

    def __init__(self, name: str, help: str, labels: Sequence[str], across: Across = "sum") -> None:
        super().__init__(name, help, labels, across)
        self.values: dict[Labels, float] = {} if labels else {(): 0.0}

    def inc(self, *labels: Label, by: float = 1.0) -> None:
        try:
            self.values[labels] += by
        except KeyError:
            self.values[self.checked(labels)] = by

    def set(self, value: float, *labels: Label) -> None:
        """Of a counter, only to what somebody else has counted."""
        self.values[self.checked(labels)] = value

    def rows(self) -> Iterator[Row]:
        return ((as_text(labels), (value,)) for labels, value in self.values.items())

    def family(self, rows: Iterable[Row]) -> Metric:
        family = self.new_family()
        for labels, (value,) in rows:
            family.add_metric(labels, value)
        return family

    @abstractmethod
    def new_family(self) -> CounterMetricFamily | GaugeMetricFamily: ...


class Counter(Number):
    """Only grows. Its name ends in `_total`."""

    def new_family(self) -> CounterMetricFamily:
        return CounterMetricFamily(self.name, self.help, labels=self.labels)


class Gauge(Number):
    """Of the moment. `across`: what the figure of several processes is, their sum, the largest or the smallest."""

    lasting = False

    def forget(self, *labels: Label) -> None:
        """What the labels named is no more, such as a replica that has left."""
        self.values.pop(labels, None)

    def forget_all(self, *first: Label) -> None:
        """The same for everything whose first labels are these."""
        for labels in [labels for labels in self.values if labels[: len(first)] == first]:
            del self.values[labels]

    def new_family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self.name, self.help, labels=self.labels)


class Histogram(Meter):
    """Counts observations by size; `buckets` are the upper bounds, each included, growing."""

    def __init__(self, name: str, help: str, labels: Sequence[str], buckets: Sequence[float]) -> None:
        super().__init__(name, help, labels)
        self.buckets = tuple(buckets)
        self.counts: dict[Labels, list[float]] = {} if labels else {(): self._none()}

    def observe(self, value: float, *labels: Label) -> None:
        try:
            counts = self.counts[labels]
        except KeyError:
            counts = self.counts[self.checked(labels)] = self._none()
        counts[bisect_left(self.buckets, value)] += 1
        counts[-1] += value

    def _none(self) -> list[float]:
        return [0.0] * (len(self.buckets) + 2)

    def rows(self) -> Iterator[Row]:
        return ((as_text(labels), counts.copy()) for labels, counts in self.counts.items())

    def family(self, rows: Iterable[Row]) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        bounds = [*map(floatToGoString, self.buckets), "+Inf"]
        for labels, (*counts, total) in rows:
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return family


M = TypeVar("M", bound=Meter)


class Meters:
    """Everything that one process counts."""

    def __init__(self) -> None:
        self._all: list[Meter] = []

    def counter(self, name: str, help: str, *labels: str) -> Counter:
        return self._kept(Counter(name, help, labels))

    def gauge(self, name: str, help: str, *labels: str, across: Across = "sum") -> Gauge:
        return self._kept(Gauge(name, help, labels, across))

    def histogram(self, name: str, help: str, *labels: str, buckets: Sequence[float]) -> Histogram:
        return self._kept(Histogram(name, help, labels, buckets))

    def _kept(self, meter: M) -> M:
        self._all.append(meter)
        return meter

    def snapshot(self) -> Snapshot:
        """Every figure as it is now."""
        return {meter.name: list(meter.rows()) for meter in self._all}

    def merged(self, snapshots: Iterable[Snapshot]) -> Snapshot:
        """Several processes' figures as one: counters and histograms added up, gauges as each says."""
        snapshots = list(snapshots)
        return {meter.name: merged_rows(meter, snapshots) for meter in self._all}

    def lasting(self, snapshot: Snapshot) -> Snapshot:
        """What of a process that has ended still counts: all but its gauges."""
        return {meter.name: snapshot.get(meter.name, ()) for meter in self._all if meter.lasting}

    def text(self, snapshot: Snapshot) -> bytes:
        """Prometheus' text format."""
        return generate_latest(Families([meter.family(snapshot.get(meter.name, ())) for meter in self._all]))


class Families(Collector):
    """What `generate_latest` takes for a registry."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families


def merged_rows(meter: Meter, snapshots: Sequence[Snapshot]) -> list[Row]:
    rows: dict[tuple[str, ...], Sequence[float]] = {}
    for snapshot in snapshots:
        for labels, values in snapshot.get(meter.name, ()):
            before = rows.get(tuple(labels))
            rows[tuple(labels)] = list(map(meter.across, before, values)) if before else values
    return list(rows.items())


def as_text(labels: Labels) -> list[str]:
    return [str(label) for label in labels]
