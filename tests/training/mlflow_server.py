"""MLflow's REST API as far as runs are logged by it, in memory; it refuses what the real one refuses."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAME = re.compile(r"[/\w.\- :]{1,250}")


class Runs:
    """By id; `seen` is who asked."""

    def __init__(self) -> None:
        self.experiments = {"Default": "0"}
        self.runs: dict[str, dict[str, Any]] = {}
        self.seen: set[str | None] = set()

    def answer(self, call: str, said: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match call:
            case "experiments/get-by-name":
                found = self.experiments.get(said["experiment_name"])
                return (200, {"experiment": {"experiment_id": found}}) if found else (404, {"message": "no experiment"})
            case "experiments/create":
                self.experiments[said["name"]] = str(len(self.experiments))
                return 200, {"experiment_id": self.experiments[said["name"]]}
            case "runs/create":
                run = f"run{len(self.runs)}"
                tags = {tag["key"]: tag["value"] for tag in said["tags"]}
                self.runs[run] = {**said, "status": "RUNNING", "params": {}, "metrics": [], "tags": tags}
                return 200, {"run": {"info": {"run_id": run}}}
            case "runs/update":
                self.runs[said["run_id"]] |= said
                return 200, {}
            case "runs/get":
                one = self.runs[said["run_id"]]
                data = {name: [{"key": k, "value": v} for k, v in one[name].items()] for name in ("params", "tags")}
                return 200, {"run": {"info": {"status": one["status"], "run_name": one["run_name"]}, "data": data}}
            case "metrics/get-history":
                metrics = self.runs[said["run_id"]]["metrics"]
                return 200, {"metrics": [one for one in metrics if one["key"] == said["metric_key"]]}
            case "runs/log-batch":
                return self._batch(self.runs[said["run_id"]], said)
        return 404, {"message": call}

    def _batch(self, run: dict[str, Any], said: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        metrics, params, tags = (said.get(what, []) for what in ("metrics", "params", "tags"))
        if len(metrics) > 1000 or len(params) > 100 or len(tags) > 100:
            return 400, {"message": "too many at once"}
        if not all(NAME.fullmatch(one["key"]) for one in [*metrics, *params, *tags]):
            return 400, {"message": "a name that cannot be"}
        if any(run["params"].get(one["key"], one["value"]) != one["value"] for one in params):
            return 400, {"message": "a parameter does not change"}
        run["params"] |= {one["key"]: one["value"] for one in params}
        run["tags"] |= {one["key"]: one["value"] for one in tags}
        run["metrics"] += metrics
        return 200, {}


@contextmanager
def mlflow_server(port: int = 0) -> Iterator[tuple[str, Runs]]:
    runs = Runs()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _reply(self, said: dict[str, Any]) -> None:
            runs.seen.add(self.headers["authorization"])
            status, answer = runs.answer(urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/"), said)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *words: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", runs
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
