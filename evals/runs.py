"""A run's file: a head that says what was asked of whom, then one line for each item as its answer came.

Lines are only ever added, by one process at a time. An item that failed is asked again by the next run over the same
file, and its last line counts; a line that was cut by a kill is dropped.
"""

import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from statistics import fmean, median
from typing import Any, Self

import orjson

from evals.metrics import Interval, interval
from penstock.errors import BadRequest


@dataclass(frozen=True)
class Head:
    """`base_url`, and `served` and `composition`, by what the server says is behind the name, are None where they are
    not known."""

    task: str
    metric: str
    model: str
    digest: str
    items: int
    base_url: str | None = None
    served: str | None = None
    composition: str | None = None


MAY_BE_UNKNOWN = ("base_url", "served", "composition")
NAMED = {"composition": "composition (steps, guards, budget, and the models that they ask)"}


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

    def __init__(self, head: Head, records: dict[str, Record], file: FileIO | None = None) -> None:
        self.head = head
        self._records = records
        self._file = file

    @classmethod
    def begin(cls, head: Head, path: Path | None) -> Self:
        """A new run, or the one in the file, to be gone on with. Raises BadRequest if that is another one."""
        if path is None:
            return cls(head, {})
        try:
            file = path.open("a+b", buffering=0)
        except OSError as error:
            raise BadRequest(f"cannot write the run {path}: {error.strerror or error}") from error
        try:
            take(file, path)
            return cls._begun(head, path, file)
        except OSError as error:  # a full disk
            file.close()
            raise BadRequest(f"cannot write the run {path}: {error.strerror or error}") from error
        except BaseException:  # another's run, or Ctrl-C: the lock goes with the file
            file.close()
            raise

    @classmethod
    def _begun(cls, head: Head, path: Path, file: FileIO) -> Self:
        file.seek(0)
        data = file.read()
        if line(asdict(head)).startswith(data):  # nothing, or what a kill has left of this very line
            file.truncate(0)
            run = cls(head, {}, file)
            run._write(line(asdict(head)))
            return run
        found = cls.parsed(path, data)
        for name, value in asdict(head).items():
            before = getattr(found.head, name)
            if before != value and (name not in MAY_BE_UNKNOWN or None not in (before, value)):
                what = NAMED.get(name, name)
                raise BadRequest(
                    f"{path} is another run: its {what} is {before!r}, not {value!r}; choose another file with --out"
                )
        file.truncate(data.rfind(b"\n") + 1)
        return cls(found.head, found._records, file)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises BadRequest if it is no run."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BadRequest(f"cannot read the run {path}: {error.strerror or error}") from error
        return cls.parsed(path, data)

    @classmethod
    def parsed(cls, path: Path, data: bytes) -> Self:
        """Raises BadRequest."""
        first, *rest = data.rpartition(b"\n")[0].split(b"\n")
        try:
            head = Head(**orjson.loads(first))
        except (ValueError, TypeError) as error:
            raise BadRequest(f"{path} is no run: `penstock eval TASK --out FILE` writes one") from error
        records = {}
        for number, one in enumerate(rest, 2):
            try:
                record = Record(**orjson.loads(one))
            except (ValueError, TypeError) as error:
                raise BadRequest(
                    f"{path}, line {number} is no answer of a run: delete that line, and the item is asked again"
                ) from error
            records[record.id] = record
        return cls(head, records)

    def add(self, record: Record) -> None:
        """Raises BadRequest where it cannot be written."""
        self._records[record.id] = record
        self._write(line(asdict(record)))

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            raise BadRequest(f"cannot write the run: {error.strerror or error}; what was answered is there") from error

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


def take(file: FileIO, path: Path) -> None:
    """This process's alone until it is closed. Raises BadRequest."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise BadRequest(f"cannot write the run {path}: it is no file that can be read again")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BadRequest(f"another run writes {path} now: wait for it, or choose another file with --out") from error
    except OSError:
        return  # a file system without locks


def line(value: Any) -> bytes:
    return orjson.dumps(value) + b"\n"
