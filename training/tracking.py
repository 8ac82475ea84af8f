"""Logs a run's folder to MLflow, beside the training, where MLFLOW_TRACKING_URI is set. Of a run that has ended, again:

    python -m training.tracking runs/demo

A thread reads what the run writes: parameters from recipe.yaml, metrics from metrics.jsonl; the training neither waits
for it nor fails with it. What a server has is noted in the folder, so that a resumed run goes on where its killed one
was, and a server that was away gets what it missed.
"""

import atexit
import json
import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from penstock.errors import PenstockError
from registry.run_folder import METRICS, MODEL, RECIPE, STATE, digests_of

if TYPE_CHECKING:
    from registry.mlflow import MLflow, Point, Status

PERIOD_S = 5.0
LONGEST_PERIOD_S = 60.0
CLOSE_S = 30.0
MOST_BYTES = 2**20


def begin(folder: Path) -> "Tracking | None":
    """None where no MLflow is configured, or none that can be reached by HTTP."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    try:
        from registry.mlflow import Away, MLflow
    except ImportError as error:
        tell(f"it needs {error.name}")
        return None
    try:
        server = MLflow.configured()
    except Away as away:
        tell(str(away))
        return None
    return Tracking(folder, server) if server else None


def tell(why: str) -> None:
    print(f"the run is not logged to MLflow: {why}", file=sys.stderr, flush=True)


class Tracking:
    """`end` is to be called once `model` is there; a process that ends without it has failed."""

    def __init__(self, folder: Path, server: "MLflow") -> None:
        self.folder = folder
        self.server = server
        self.was_away = False
        self._ending = threading.Event()
        self._status: Status = "FAILED"
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def end(self) -> None:
        self._status = "FINISHED"
        self.close()

    def close(self) -> None:
        """Sends what is left, or gives up after half a minute."""
        self._ending.set()
        self._thread.join(CLOSE_S)
        atexit.unregister(self.close)

    def _follow(self) -> None:
        from registry.mlflow import Away

        wait_s = PERIOD_S
        while True:
            ending = self._ending.wait(wait_s)
            try:
                if (self.folder / RECIPE).exists():  # it comes with the first step
                    sent = Sent(self.folder, self.server)
                    sent.all()
                    if ending:
                        sent.end(self._status)
                wait_s = PERIOD_S
            except (Away, PenstockError, OSError, ValueError) as why:
                self._tell(str(why))
                wait_s = min(2 * wait_s, LONGEST_PERIOD_S)
            if ending:
                return self.server.close()

    def _tell(self, why: str) -> None:
        """Once."""
        if not self.was_away:
            self.was_away = True
            again = f"it is tried again until the run ends, and by `python -m training.tracking {self.folder}`"
            tell(f"{self.server.uri}: {why}; {again}")


class Sent:
    """What a server has of a run's folder."""

    def __init__(self, folder: Path, server: "MLflow") -> None:
        self.folder = folder
        self.server = server
        self.state = self._noted()

    def all(self) -> None:
        """Raises Away."""
        recipe = yaml.safe_load((self.folder / RECIPE).read_text(encoding="utf-8"))
        if "run" not in self.state:
            self._begin(recipe)
        while self._more():
            pass
        if not self.state.get("described"):
            self.server.log(self.state["run"], parameters=dict(flat(recipe)))
            self._note(described=True)

    def end(self, status: "Status") -> None:
        """Raises Away."""
        if status == "FINISHED":
            model = (self.folder / MODEL).resolve()
            self.server.log(self.state["run"], tags={"penstock.model": str(model), "penstock.digest": digest_of(model)})
        self.server.status(self.state["run"], status)
        self._note(status=status)

    def _begin(self, recipe: Mapping[str, Any]) -> None:
        tags = {f"penstock.data.{Path(path).name}": digest for path, digest in digests_of(recipe).items()}
        tags |= {"mlflow.source.name": f"training.{recipe.get('script', '')}", "mlflow.source.type": "LOCAL"}
        self._note(run=self.server.begin(self.folder.resolve().name, tags), offset=0)

    def _more(self) -> bool:
        """The next lines; whether there may be others."""
        with (self.folder / METRICS).open("rb") as metrics:
            metrics.seek(self.state["offset"])
            data = metrics.read(MOST_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            return False
        if self.state.get("status") not in (None, "RUNNING"):  # a run that had failed goes on
            self.server.status(self.state["run"], "RUNNING")
        self.server.log(self.state["run"], list(points(whole)))
        self._note(offset=self.state["offset"] + len(whole), status="RUNNING")
        return len(data) == MOST_BYTES

    def _noted(self) -> dict[str, Any]:
        """Nothing, where it is of another server."""
        try:
            state = json.loads((self.folder / STATE).read_bytes())
        except (OSError, ValueError):
            state = None
        mine = isinstance(state, dict) and state.get("uri") == self.server.uri
        return state if mine and isinstance(state.get("offset"), int) else {"uri": self.server.uri}

    def _note(self, **more: Any) -> None:
        self.state |= more
        fresh = self.folder / f"{STATE}.new"
        fresh.write_text(json.dumps(self.state), encoding="utf-8")
        fresh.replace(self.folder / STATE)


def flat(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """{"optimizer": {"lr": 0.1}, "stages": [{"rows": 2}]} -> optimizer.lr: 0.1, stages.0.rows: 2."""
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        yield at, str(value)
        return
    for name, one in parts:
        yield from flat(one, f"{at}.{name}" if at else str(name))


def points(lines: bytes) -> "Iterator[Point]":
    """Every finite number of every line, but for the step itself."""
    from registry.mlflow import Point

    for line in lines.splitlines():
        try:
            said = json.loads(line)
            step = int(said.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # cut by a kill
        for name, value in said.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                yield Point(name, float(value), step)


def digest_of(model: Path) -> str:
    """What the version's will be when it is registered. Raises BadRequest where it cannot be."""
    from registry.directory import Taken, contents
    from registry.manifest import Manifest

    return Manifest({path: Taken.of(path, place).file for path, place in contents(model).items()}).digest


if __name__ == "__main__":
    from registry.mlflow import Away, MLflow

    try:
        server = MLflow.configured()
        if server is None:
            sys.exit("penstock: set MLFLOW_TRACKING_URI to the address of an MLflow server")
        sent = Sent(Path(sys.argv[1]), server)
        sent.all()
        if (Path(sys.argv[1]) / MODEL).is_dir():
            sent.end("FINISHED")
        print(f"{server.uri} has the run {sent.state['run']}")
    except IndexError:
        sys.exit("penstock: name the folder of a run: python -m training.tracking RUN")
    except PenstockError as error:
        sys.exit(f"penstock: {error.message}")
    except (Away, OSError) as error:
        sys.exit(f"penstock: {sys.argv[1]} is not logged to MLflow: {error}")
