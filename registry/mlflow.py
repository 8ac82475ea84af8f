"""What runs are logged to MLflow by: a few calls of its REST API (https://mlflow.org/docs/latest/rest-api.html).

Its package brings eighty others and is imported for seven seconds. The environment is its own: MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME, MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import unquote, urlsplit

import httpx2

URI = "MLFLOW_TRACKING_URI"
TIMEOUT_S = 10
MOST_METRICS, MOST_NAMES = 1000, 100  # of one call, as the API says
LONGEST_NAME, LONGEST_VALUE = 250, 500
NOT_IN_NAMES = re.compile(r"[^\w.\-/ ]", re.ASCII)
Status = Literal["RUNNING", "FINISHED", "FAILED"]


class Away(Exception):
    """It does not answer, or not well; the message says how."""


class Point(NamedTuple):
    name: str
    value: float
    step: int


class MLflow:
    def __init__(self, uri: str, token: str | None = None, user: tuple[str, str] | None = None) -> None:
        """`uri` may have a user and a password, which are told to nobody else."""
        parts = urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
        if parts.username:
            user = unquote(parts.username), unquote(parts.password or "")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.uri = f"{parts.scheme}://{host}{parts.path}".rstrip("/")
        self._client = httpx2.Client(timeout=TIMEOUT_S, headers=headers, auth=None if token else user)

    @classmethod
    def configured(cls) -> Self | None:
        """None where no URI is set. Raises Away for one that is no server's."""
        uri = os.environ.get(URI)
        if not uri:
            return None
        if not uri.startswith(("http://", "https://")):
            raise Away(f"{URI} names no server: start one with `mlflow server` and name it by http://HOST:PORT")
        name = os.environ.get("MLFLOW_TRACKING_USERNAME")
        user = (name, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if name else None
        return cls(uri, os.environ.get("MLFLOW_TRACKING_TOKEN"), user)

    def begin(self, name: str, tags: Mapping[str, str]) -> str:
        """A new run in the environment's experiment; its id."""
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default")
        said = {"experiment_id": experiment, "run_name": name, "start_time": now_ms(), "tags": pairs(tags)}
        return str(self._post("runs/create", said)["run"]["info"]["run_id"])

    def log(
        self,
        run: str,
        points: Sequence[Point] = (),
        parameters: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        at = now_ms()
        metrics = [{"key": named(one.name), "value": one.value, "step": one.step, "timestamp": at} for one in points]
        for some in pieces(metrics, MOST_METRICS):
            self._post("runs/log-batch", {"run_id": run, "metrics": some})
        for some in pieces(pairs(parameters or {}), MOST_NAMES):
            self._post("runs/log-batch", {"run_id": run, "params": some})
        for some in pieces(pairs(tags or {}), MOST_NAMES):
            self._post("runs/log-batch", {"run_id": run, "tags": some})

    def status(self, run: str, status: Status) -> None:
        ended = {} if status == "RUNNING" else {"end_time": now_ms()}
        self._post("runs/update", {"run_id": run, "status": status, **ended})

    def close(self) -> None:
        self._client.close()

    def _experiment(self, name: str) -> str:
        found = self._ask("GET", "experiments/get-by-name", params={"experiment_name": name})
        if found.status_code == 404:
            made = self._ask("POST", "experiments/create", json={"name": name})
            if made.status_code == 200:
                return str(answer(made)["experiment_id"])
            found = self._ask("GET", "experiments/get-by-name", params={"experiment_name": name})  # another was quicker
        return str(answer(found)["experiment"]["experiment_id"])

    def _post(self, call: str, said: Mapping[str, Any]) -> dict[str, Any]:
        return answer(self._ask("POST", call, json=said))

    def _ask(self, method: str, call: str, **said: Any) -> httpx2.Response:
        try:
            return self._client.request(method, f"{self.uri}/api/2.0/mlflow/{call}", **said)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Away(f"it does not answer ({type(error).__name__}: {error})") from error


def answer(response: httpx2.Response) -> dict[str, Any]:
    """Raises Away with what the server says."""
    try:
        said = response.json()
    except ValueError:
        said = None
    if response.status_code == 200 and isinstance(said, dict):
        return said
    why = said.get("message") if isinstance(said, dict) else response.text
    raise Away(f"it answers {response.status_code}: {str(why)[:200]}")


def pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": named(name), "value": value[:LONGEST_VALUE]} for name, value in values.items()]


def pieces(values: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), most):
        yield values[start : start + most]


def named(name: str) -> str:
    """As MLflow takes names."""
    return NOT_IN_NAMES.sub("_", name)[:LONGEST_NAME]


def now_ms() -> int:
    return int(time.time() * 1000)
