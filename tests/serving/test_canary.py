"""Secrets put through everything that can go wrong are found in no log, metric, answer, file or process."""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import REPOSITORY, Served, children, free_port, running
from tests.reliability.client import Caller
from tests.reliability.conftest import ASK, STREAM
from tests.reliability.test_processes import PENSTOCK, simulated

CHAT = "/v1/chat/completions"
CANARIES = {
    "caller's": "sk-canary-of-the-caller-5e1f",
    "engine's": "canary.of.the.engine.77aa",
    "admin's": "canary-of-the-admin-c0de-91",
    "pepper": "canary-pepper-0d0d-42-that-is-long-enough",
}
KEY = CANARIES["caller's"]
INSIDE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1"}}
FAULTS: list[list[dict[str, Any]]] = [
    *([{"kind": kind}] for kind in ("status", "reset", "garbage", "truncated", "nan", "hang", "empty", "html")),
    *([{"kind": kind, "after": 2}] for kind in ("cut", "error_event", "bad_json")),
    [],
]


@pytest.fixture
def config(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A configuration with every secret there is, and the address of its engine."""
    with simulated() as (_, url):
        tree = {
            "gateway": {"keys": [KEY], "workers": 2, "first_byte_timeout_s": 0.3, "first_token_timeout_s": 0.5},
            "admin": {"key": CANARIES["admin's"]},
            "state": {"pepper": CANARIES["pepper"]},
            "engines": {"e": {"urls": [url], "api_key": CANARIES["engine's"]}},
            "models": {"sim": {"engine": "e"}},
            "log": {"level": "debug", "style": "json"},
        }
        file = tmp_path / "penstock.yaml"
        file.write_text(json.dumps(tree))
        yield file, url


def a_stored_key(file: Path, home: Path) -> str:
    """Told once, by the command that makes it."""
    command = [*PENSTOCK, "keys", "create", "--name", "canary", "-c", str(file)]
    env = {**os.environ, "PENSTOCK_HOME": str(home)}
    made = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=env)
    (key,) = re.findall(r"sk-ps-\w{8}-\w{43}", made.stdout + made.stderr)
    return str(key)


def ways_to_fail(key: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Requests that bear the key, each refused or failed by another part of the gateway."""
    bearer = {"authorization": f"Bearer {key}"}
    bodies: list[Any] = [
        b"{", b"\xff", {}, {"model": "other"}, ASK | {"n": 99}, ASK | {"chat_template": "{{"}, ASK | {"zzz": 1},
        ASK | {"messages": [{"role": "user", "content": [INSIDE]}]},
        ASK | {"stop": ["x"] * 9}, ASK, STREAM,
    ]  # fmt: skip
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", CHAT, {"content": body if isinstance(body, bytes) else json.dumps(body), "headers": bearer})
        for body in bodies
    ]
    for headers in (
        {"authorization": f"Bearer {key}x"}, {"authorization": key}, {"authorization": f"Basic {key}"},
        {"x-api-key": key}, {"x-api-key": key[:-1]}, {"cookie": f"key={key}"}, {"proxy-authorization": f"Bearer {key}"},
    ):  # fmt: skip
        requests += [("POST", CHAT, {"json": ASK, "headers": headers}), ("GET", "/metrics", {"headers": headers})]
    for path in ("/nope", "/v1/models/none", f"/metrics?key={key}", f"/v1/models?api_key={key}", CHAT):
        requests += [("GET", path, {"headers": bearer}), ("PUT", path, {"headers": bearer})]
    return [
        *requests,
        ("POST", CHAT, {"json": ASK | {"model": "sim"}, "headers": bearer | {"x-request-timeout-s": "x"}}),
    ]


async def provoked(served: Served, engine_url: str, key: str) -> str:
    """All that the gateway answers, while its engine goes wrong in every way."""
    said = []
    async with httpx2.AsyncClient(base_url=served.url, timeout=10, trust_env=False) as client:
        for faults in FAULTS:
            async with httpx2.AsyncClient(base_url=engine_url, trust_env=False) as engine:
                assert (await engine.put("/sim/faults", json=faults)).status_code == 200
            requests = ways_to_fail(key)
            for method, path, request in requests if not faults else requests[-1:] + requests[9:11]:
                with suppress(httpx2.HTTPError):
                    answer = await client.request(method, path, **request)
                    said.append(f"{answer.status_code} {dict(answer.headers)} {answer.text}")
        said.append((await client.get("/metrics", headers={"x-api-key": key})).text)
    async with Caller(served.url) as caller:  # what is no HTTP
        broken = await caller.say(f"GET / HTTP/1.1\r\nauthorization: Bearer {key}\r\n{key}\r\n\r\n".encode())
        said.append(f"{broken.headers} {broken.body!r}")
    return "\n".join(said)


def test_secrets_are_found_nowhere(config: tuple[Path, str], tmp_path: Path) -> None:
    file, engine_url = config
    home = tmp_path / "home"
    home.mkdir()
    canaries = {**CANARIES, "holder's": a_stored_key(file, home)}
    canaries["holder's secret"] = canaries["holder's"].rpartition("-")[2]
    port = free_port()
    with running([*PENSTOCK, "serve", "-c", str(file), "--port", str(port)], port, home) as served:
        answers = "\n".join(asyncio.run(provoked(served, engine_url, canaries[of])) for of in ("caller's", "holder's"))
        processes = [served.process.pid, *children(served.process.pid)]
        assert len(processes) == 3
        proc = [Path(f"/proc/{pid}/{name}").read_text() for pid in processes for name in ("cmdline", "environ")]
        shown = subprocess.run(
            [*PENSTOCK, "config", "-c", str(file)], capture_output=True, text=True, cwd=REPOSITORY,
            env={**os.environ, "PENSTOCK_HOME": str(home)},
        )  # fmt: skip
    assert shown.returncode == 0
    assert '"status":200' in served.text.replace(" ", "")
    places = {"answers": answers, "config": shown.stdout + shown.stderr, "processes": "\n".join(proc)}
    places |= {str(path): path.read_text(errors="replace") for path in home.rglob("*") if path.is_file()}
    assert any("log" in place for place in places)
    for place, text in places.items():
        for whose, canary in canaries.items():
            assert canary not in text, f"the {whose} canary is in {place}"


def test_a_configuration_that_cannot_be_used_is_told_without_its_secrets(config: tuple[Path, str]) -> None:
    file, _ = config
    for wrong in ('"prot": 1,', f'"port": "{KEY}",'):
        tree = file.read_text().replace('"gateway": {', '"gateway": {' + wrong)
        broken = file.with_name("broken.yaml")
        broken.write_text(tree)
        shown = subprocess.run([*PENSTOCK, "config", "-c", str(broken)], capture_output=True, text=True, cwd=REPOSITORY)
        assert shown.returncode != 0
        for canary in CANARIES.values():
            assert canary not in shown.stdout + shown.stderr
