"""A run's file: a head that says what was asked of whom, then one line for each item as its answer came.

Lines are only ever added. An item that failed is asked again by the next run over the same file, and its last line
counts; a line that was cut by a kill is dropped.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, BinaryIO, Self

import orjson

from evals.metrics import Interval, interval
from penstock.errors import BadRequest


@dataclass(frozen=True)
class Head:
    task: str
    metric: str
    model: str
    digest: str
    items: int


@dataclass(frozen=True)
class Record:
    """What became of one item. `error`: why there is no answer; it then scores 0."""

    id: str
    score: float = 0.0
    output: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Result:
    """`score` is over all `n` items; those that failed (`errors`) count as 0. `cut`: answers that ran into max_tokens.
    `tokens_per_correct`: prompts and answers of all items for one whole point of score, None if there is none."""

    task: str
    model: str
    metric: str
    n: int
    errors: int
    cut: int
    score: float
    interval: Interval
    tokens_per_correct: float | None
    latency_s: float | None

    def described(self) -> dict[str, Any]:
        return {**asdict(self), "interval": list(self.interval)}


def result(head: Head, records: Sequence[Record]) -> Result:
    scores = [record.score for record in records]
    answered = [record for record in records if record.error is None]
    tokens = sum(record.prompt_tokens + record.completion_tokens for record in records)
    points = sum(scores)
    return Result(
        task=head.task,
        model=head.model,
        metric=head.metric,
        n=len(records),
        errors=len(records) - len(answered),
        cut=sum(record.finish_reason == "length" for record in answered),
        score=fmean(scores) if scores else 0.0,
        interval=interval(scores),
        tokens_per_correct=tokens / points if points else None,
        latency_s=median(record.latency_s for record in answered) if answered else None,
    )


class Run:
    """The records of a run, and their file, where there is one."""

    def __init__(self, head: Head, records: dict[str, Record], file: BinaryIO | None = None) -> None:
        self.head = head
        self._records = records
        self._file = file

    @classmethod
    def begin(cls, head: Head, path: Path | None) -> Self:
        """A new run, or the one in the file, to be gone on with. Raises BadRequest if that is another one."""
        if path is None:
            return cls(head, {})
        try:
            if path.exists() and path.stat().st_size:
                return cls._resumed(head, path)
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise BadRequest(f"cannot write the run {path}: {error.strerror or error}") from error
        file.write(line(asdict(head)))
        return cls(head, {}, file)

    @classmethod
    def _resumed(cls, head: Head, path: Path) -> Self:
        found = cls.read(path)
        for name, value in asdict(head).items():
            if (before := getattr(found.head, name)) != value:
                raise BadRequest(
                    f"{path} is another run: its {name} is {before!r}, not {value!r}; choose another file with --out"
                )
        whole = path.read_bytes().rfind(b"\n") + 1
        file = path.open("r+b", buffering=0)
        file.truncate(whole)
        file.seek(whole)
        return cls(head, found._records, file)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises BadRequest if it is no run."""
        try:
            first, *rest = path.read_bytes().rpartition(b"\n")[0].split(b"\n")
            head = Head(**orjson.loads(first))
            records = [Record(**orjson.loads(one)) for one in rest]
        except OSError as error:
            raise BadRequest(f"cannot read the run {path}: {error.strerror or error}") from error
        except (ValueError, TypeError) as error:
            raise BadRequest(f"{path} is no run: `penstock eval TASK --out FILE` writes one") from error
        return cls(head, {record.id: record for record in records})

    def add(self, record: Record) -> None:
        self._records[record.id] = record
        if self._file:
            self._file.write(line(asdict(record)))

    def close(self) -> None:
        if self._file:
            self._file.close()

    @property
    def answered(self) -> frozenset[str]:
        return frozenset(record.id for record in self._records.values() if record.error is None)

    @property
    def records(self) -> list[Record]:
        return list(self._records.values())

    @property
    def result(self) -> Result:
        return result(self.head, self.records)


def line(value: Any) -> bytes:
    return orjson.dumps(value) + b"\n"
