"""A run's folder, the same for every script of training/:

    recipe.yaml     the recipe with everything resolved; a resumed run must be given the same. There from the first step
    metrics.jsonl   one JSON object a line, each with its `step`; no times, so that two equal runs have equal files
    checkpoint.pt   what `--resume` goes on from, replaced in one move
    model/          the result, there once it is whole

    run = Run(out, recipe, steps=100, resume=resume)
    if run.saved: model.load_state_dict(run.saved["model"])
    for step in range(run.first_step, run.steps):
        ...
        run.log(step, tokens=batch.numel(), loss=loss.item())
        if (step + 1) % every == 0 or step + 1 == run.steps:
            run.checkpoint(step + 1, {"model": model.state_dict()})
    with run.writing_model() as folder:
        model.save_pretrained(folder)

A killed run (SIGKILL at any moment) continues on the same loss curve if whatever is random in a step is a function of
the seed and the step: draw batches so, and call `torch.manual_seed` before a step that has dropout.
"""

import argparse
import fcntl
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import yaml

from penstock.errors import Conflict, PenstockError, StartError
from training import tracking

PROGRESS_S = 5.0
RECIPE, METRICS, CHECKPOINT, MODEL, LOCK = "recipe.yaml", "metrics.jsonl", "checkpoint.pt", "model", ".lock"


class Train(Protocol):
    def __call__(self, recipe_path: Path, out: Path, *, resume: bool) -> None: ...


def command(train: Train, description: str) -> None:
    """A script's command line: RECIPE.yaml --out RUN [--resume]. What is wrong is told in a line, without a trace."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("recipe", type=Path, help="a YAML file, such as those in recipes/")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's last checkpoint")
    arguments = parser.parse_args()
    try:
        train(arguments.recipe, arguments.out, resume=arguments.resume)
    except PenstockError as error:
        sys.exit(f"penstock: {error.message}")
    except KeyboardInterrupt:
        print(f"stopped; go on with --out {arguments.out} --resume", file=sys.stderr)
        sys.exit(130)


class Run:
    """`first_step` is the one to begin with; `saved` is what the last `checkpoint` was given, None if there was none.

    Raises Conflict for a folder that another process writes to, that holds a run (without `resume`), another recipe's
    run, or anything else. With `resume` an empty folder begins from the start, so that a restarted job may always ask
    for it.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any], steps: int, resume: bool = False) -> None:
        self.folder = folder
        self.steps = steps
        self.first_step = 0
        self.saved: dict[str, Any] | None = None
        resolved = yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True)
        _check(folder, yaml.safe_load(resolved), resume)
        self._lock = _locked(folder)
        _check(folder, yaml.safe_load(resolved), resume)  # another process may just have come and gone
        self._cpu_before_s = -time.process_time()
        if resume and (folder / CHECKPOINT).exists():
            self.saved = _loaded(folder / CHECKPOINT)
            self.first_step = self.saved.pop("step")
            self._cpu_before_s += self.saved.pop("cpu_s")
        self._resolved = resolved
        self._begun_writing = False
        self._tokens = self._first_logged = 0
        self._begun = self._told = 0.0
        if self.finished:
            print(f"{folder} is finished: its result is {self.model}", flush=True)
        elif resume:
            print(f"{folder}: {f'on from step {self.first_step}' if self.saved else 'from the start'}", flush=True)
        self._tracking = None if self.finished else tracking.begin(folder)

    @property
    def model(self) -> Path:
        """Where the result is, or will be."""
        return self.folder / MODEL

    @property
    def finished(self) -> bool:
        return self.model.exists()

    @property
    def cpu_s(self) -> float:
        """CPU-seconds of this process, of those that made its rows, and of those before it, as far as they had come at
        their last checkpoint."""
        return self._cpu_before_s + time.process_time()

    def add_cpu(self, seconds: float) -> None:
        """Of another process that works for this run."""
        self._cpu_before_s += seconds

    def log(self, step: int, tokens: int = 0, loss: float | None = None, **more: Any) -> None:
        """Write a line about `step`, counted from 0; before the checkpoint that comes after the step.

        `tokens` are those of the step, for the rate. Raises StartError for a loss that is no number any more.
        """
        line = {"step": step, **({"loss": loss} if loss is not None else {}), **more}
        if tokens:
            line["tokens"] = tokens
        if loss is not None and not math.isfinite(loss):
            raise StartError(
                f"the loss is {loss} at step {step}: choose a lower learning rate, a longer warm-up or "
                f"`precision: float32`, and another --out"
            )
        self._begin_writing()
        with (self.folder / METRICS).open("a", encoding="utf-8") as metrics:
            metrics.write(json.dumps(line) + "\n")
        if step < self.steps:
            self._progress(step, tokens, {name: value for name, value in line.items() if isinstance(value, float)})
        else:
            print("  ".join(f"{name} {value}" for name, value in line.items() if name != "step"), flush=True)

    def checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Save what a resumed run needs to go on with `step`: the number of steps that are done."""
        import torch

        self._begin_writing()
        _synced(self.folder / METRICS)
        _replace(
            self.folder / CHECKPOINT,
            lambda path: torch.save({**state, "step": step, "cpu_s": self.cpu_s}, path),
        )

    @contextmanager
    def writing_model(self) -> Iterator[Path]:
        """An empty folder for the result, which is `model` once the block has ended well."""
        self._begin_writing()
        fresh = self.model.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        yield fresh
        for path in fresh.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if self.finished:
            shutil.rmtree(self.model)
        fresh.replace(self.model)
        if self._tracking:
            self._tracking.end()

    def _begin_writing(self) -> None:
        """Not before there is something to write: a run that fails at its data leaves no run behind."""
        if not self._begun_writing:
            _write(self.folder / METRICS, "".join(_lines_before(self.first_step, self.folder / METRICS)))
            _write(self.folder / RECIPE, self._resolved)
            self._begun_writing = True

    def _progress(self, step: int, tokens: int, figures: Mapping[str, float]) -> None:
        """The rate counts from the end of the first step, which is slower than those to come."""
        now = time.monotonic()
        words = [f"step {step + 1}/{self.steps}"]
        words += [f"{name} {value:.4g}" for name, value in figures.items()]
        if not self._begun:
            self._begun, self._first_logged = now, step
        else:
            self._tokens += tokens
            done = max(1, step - self._first_logged)
            words.append(f"{self._tokens / (now - self._begun):,.0f} tokens/s")
            words.append(f"{_duration((now - self._begun) / done * (self.steps - step - 1))} left")
        if now - self._told >= PROGRESS_S or step + 1 == self.steps:
            self._told = now
            print("  ".join(words), flush=True)


def resolved_recipe(folder: Path) -> dict[str, Any] | None:
    """The recipe as a run resolved it, for what a resumed run must not resolve anew; None where there is no run."""
    try:
        said = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return said if isinstance(said, dict) else None


def differing(old: Any, new: Any, at: str = "") -> list[str]:
    """{a: {b: 1}}, {a: {b: 2}} -> ["a.b: 1, now 2"]."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            one
            for name in names
            for one in differing(old.get(name), new.get(name), f"{at}.{name}" if at else str(name))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [one for i, pair in enumerate(zip(old, new, strict=True)) for one in differing(*pair, f"{at}[{i}]")]
    return [] if old == new else [f"{at}: {old!r}, now {new!r}"]


def _check(folder: Path, recipe: dict[str, Any], resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise Conflict(f"{folder} is a file: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    if {path.name for path in folder.iterdir()} <= {LOCK, METRICS, f"{METRICS}.new", f"{RECIPE}.new"}:
        return
    before = resolved_recipe(folder)
    if before is None:
        raise Conflict(f"{folder} holds other things than a run: choose another --out")
    if not resume:
        raise Conflict(f"{folder} holds a run already: add --resume or choose another --out")
    if changed := differing(before, recipe):
        raise Conflict(
            f"{folder} holds the run of another recipe: {'; '.join(changed[:5])}. Choose another --out, "
            f"or give the recipe that it was begun with"
        )


def _locked(folder: Path) -> int:
    """A file descriptor whose lock is held until the process ends, however it ends."""
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Conflict(f"another process is at work in {folder}: wait for it, or choose another --out") from error
    return lock


def _lines_before(step: int, metrics: Path) -> Iterator[str]:
    """Without those that a resumed run will write again, and without one that a kill has cut."""
    if step and metrics.exists():
        for line in metrics.read_text(encoding="utf-8").splitlines(keepends=True):
            with suppress(ValueError):
                if json.loads(line)["step"] < step:
                    yield line


def _loaded(checkpoint: Path) -> dict[str, Any]:
    import torch

    try:
        saved: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no type for a damaged file
        raise StartError(f"{checkpoint} cannot be read: {error}. Begin again with another --out") from error
    return saved


def _write(path: Path, text: str) -> None:
    _replace(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write under another name and move it: a kill, or a power cut, leaves the old file or the new one whole."""
    fresh = path.with_name(path.name + ".new")
    write(fresh)
    _synced(fresh)
    fresh.replace(path)


def _synced(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _plain(value: Any) -> Any:
    """As YAML can say it: paths as words, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, os.PathLike) else value


def _duration(seconds: float) -> str:
    """125.0 -> "2 min 05 s"."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds_left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds_left:02} s" if minutes else f"{seconds_left} s"
