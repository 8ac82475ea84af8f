"""Every route with every kind of key gives what is written here, and no other path of an engine can be reached."""

import importlib.util
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from engine.sim import Simulator, simulator
from penstock.keyring import Keyring, pepper, wanted
from penstock.store import opened
from serving.routes import ROUTES
from tests.reliability.client import Caller
from tests.serving.conftest import Running

pytestmark = pytest.mark.anyio

CONFIGURED = "sk-of-the-configuration-0123456789abcdef"
SCOPED: dict[str, dict[str, Any]] = {
    "user": {"scopes": ["generate"]},
    "metrics": {"scopes": ["metrics"]},
    "admin": {"scopes": ["admin"]},
    "elsewhere": {"scopes": ["generate"], "models": ["other"]},
}
TURNS = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TURNS},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["a"]},
    "/v1/score": {"text_1": "hi", "text_2": "a"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1]},
    "/v1/moderations": {"input": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": TURNS, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": TURNS},
}

# Method and path, then the status without a key, with a wrong one, one that was revoked, one of the configuration, and
# the stored ones above.
TABLE = """
                                    none wrong revoked config user metrics admin elsewhere
GET     /health                     200  200   200     200    200  200     200   200
GET     /ready                      200  200   200     200    200  200     200   200
GET     /metrics                    401  401   401     200    403  200     403   403
GET     /openapi.json               401  401   401     200    200  200     200   200
GET     /v1/models                  401  401   401     200    200  200     200   200
GET     /v1/models/sim              401  401   401     200    200  200     200   403
GET     /v1/models/other            401  401   401     404    404  404     404   404
POST    /v1/chat/completions        401  401   401     200    200  403     403   403
POST    /v1/completions             401  401   401     200    200  403     403   403
POST    /v1/embeddings              401  401   401     200    200  403     403   403
POST    /v1/rerank                  401  401   401     400    400  403     403   403
POST    /v1/score                   401  401   401     400    400  403     403   403
POST    /tokenize                   401  401   401     200    200  403     403   403
POST    /detokenize                 401  401   401     200    200  403     403   403
POST    /v1/moderations             401  401   401     404    404  403     403   403
POST    /v1/responses               401  401   401     200    200  403     403   403
POST    /v1/messages                401  401   401     200    200  403     403   403
POST    /v1/messages/count_tokens   401  401   401     200    200  403     403   403
"""
KINDS, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]

# What else vLLM 0.32 answers to: adapters and weights from anywhere, remote calls, sleep, other requests' answers.
ENGINES_OWN = """/abort_requests /classify /cohere/v2/chat /cohere/v2/chat/render /collective_rpc /fault_tolerance/apply
/fault_tolerance/status /finish_weight_update /generative_scoring /get_world_size
/inference/v1/abort_requests /inference/v1/generate
/init_weight_transfer_engine /invocations /is_paused /is_scaling_elastic_ep /is_sleeping /kv_event_sources /load /pause
/ping /pooling /release_kv_cache_memory /rerank /reset_encoder_cache /reset_mm_cache /reset_prefix_cache /resume
/scale_elastic_ep /score /server_info /shutdown_weight_transfer_engine /sleep /start_draft_weight_update /start_profile
/start_weight_update /stop_profile /tokenizer_info /update_weight_version /update_weights
/v1/audio/transcriptions /v1/audio/translations /v1/chat/completions/batch /v1/chat/completions/derender
/v1/chat/completions/render /v1/completions/derender /v1/completions/render /v1/load_lora_adapter /v1/messages/render
/v1/realtime /v1/responses/render /v1/responses/resp_1 /v1/responses/resp_1/cancel /v1/systemone
/v1/unload_lora_adapter /v2/embed /v2/rerank /version /wake_up /weight_checker /weight_info""".split()
NOWHERE = ["/", "/docs", "/redoc", "/v1", "/v1/", "/admin", "/keys", "/debug", "/.env", "/sim/faults"]
# What a relay asks of an engine: the inference routes, and what its probe looks at.
REACHED = {*BODIES, "/health", "/v1/models", "/metrics"}


Headers = dict[str, dict[str, str]]


async def made() -> Headers:
    """What each kind of caller sends, the keys of which are in the database of the test's own home."""
    async with opened(None) as store:
        ring = Keyring(store, pepper(None))
        keys = {name: (await ring.create(wanted({"name": name, **of}), "the test")).key for name, of in SCOPED.items()}
        keys["revoked"] = (await ring.create(wanted({"name": "revoked"}), "the test")).key
        await ring.revoke("revoked", "the test")
    keys |= {"config": CONFIGURED, "wrong": keys["user"][:-1] + "_"}
    return {kind: {"authorization": f"Bearer {keys[kind]}"} if kind in keys else {} for kind in KINDS}


@asynccontextmanager
async def guarded(gateway: Running) -> AsyncIterator[tuple[httpx2.AsyncClient, Simulator, Headers]]:
    headers = await made()
    async with simulator() as sim:
        tree = {
            "engines": {"e": {"urls": [sim.url], "probe": {"interval_s": 60}}},
            "models": {"sim": {"engine": "e"}},
            "gateway": {"keys": [CONFIGURED]},
        }
        async with gateway(**tree, stored=True) as client:
            yield client, sim, headers
            assert {request.path for request in sim.requests} <= REACHED


async def test_every_route_gives_each_key_what_is_written(gateway: Running) -> None:
    async with guarded(gateway) as (client, sim, keys):
        for method, path, *expected in ROWS:
            for (kind, headers), status in zip(keys.items(), expected, strict=True):
                before = len(sim.requests)
                body = {"model": "sim", **BODIES[path]} if path in BODIES else None
                answer = await client.request(method, path, json=body, headers=headers)
                assert answer.status_code == int(status), (method, path, kind, answer.text)
                reached = [request.path for request in list(sim.requests)[before:] if request.method == "POST"]
                assert reached == ([path] if path in BODIES and int(status) < 401 else []), (path, kind)


def test_every_route_is_written_down() -> None:
    written = {path for _, path, *_ in ROWS} - {"/v1/models/sim", "/v1/models/other"}
    assert written == ROUTES.keys()
    assert set(BODIES) == {path for path, route in ROUTES.items() if route.shape}


async def test_every_other_method_is_refused(gateway: Running) -> None:
    async with guarded(gateway) as (client, _, keys):
        for right, path, *_ in ROWS:
            for method in METHODS:
                if method == right:
                    continue
                answer = await client.request(method, path, headers=keys["user"])
                assert answer.status_code == 405, (method, path)
                assert answer.headers["allow"] == right


async def test_no_other_path_is_served_to_anybody(gateway: Running) -> None:
    async with guarded(gateway) as (client, sim, keys):
        for path in [*ENGINES_OWN, *NOWHERE]:
            for headers in keys.values():
                for method in ("GET", "POST", "DELETE", "OPTIONS"):
                    answer = await client.request(method, path, headers=headers)
                    assert (answer.status_code, "there is no route" in answer.text) == (404, True), (method, path)
        assert not sim.started


VLLM = importlib.util.find_spec("vllm")


@pytest.mark.skipif(VLLM is None, reason="vLLM is not installed here")
def test_every_route_of_the_installed_vllm_is_served_or_refused_by_name() -> None:
    assert VLLM
    assert VLLM.submodule_search_locations
    folder = Path(VLLM.submodule_search_locations[0]) / "entrypoints"
    found = set()
    for file in folder.rglob("*.py"):
        found |= set(re.findall(r"router\.\w+\(\s*\"(/[^\"]*)\"", file.read_text(encoding="utf-8")))
    assert len(found) > 40
    named = {path.replace("{response_id}", "resp_1") for path in found}
    assert named <= {*ENGINES_OWN, *ROUTES}


# A path that is another than it seems, or is spelt so that two readers may read it as two.
SPELLINGS = r"""//v1/chat/completions /v1//chat/completions /v1/../v1/chat/completions /v1/./chat/completions
/v1/chat/completions/ /v1/chat/completions/../../../metrics /v1/chat%2fcompletions /v1%2fchat%2fcompletions
/%76%31/chat/completions /v1/chat/completions;x=1 /v1;x/chat/completions /v1/chat/completions%00 /V1/chat/completions
/v1/chat/completions%20 /v1/chat/completions%3fx=1 /v1/chat/completions%23x /v1/%2e%2e/metrics /%2e%2e/metrics
/v1/..;/metrics //metrics /metrics/ /./metrics /metrics;x /metrics%00 /health/../metrics /health%2f..%2fmetrics
/health;/../metrics /v1\chat\completions /v1/..\metrics \metrics http://127.0.0.1/v1/chat/completions
http://127.0.0.1/metrics https://x@y/metrics http://127.0.0.1//metrics /v1/models/../../metrics /v1/models/..%2fmetrics
/v1/models/../load_lora_adapter //sleep /v1/../sleep /v1/chat/completions/../../../collective_rpc /%73leep * metrics
/v1/chat/completions?x=/metrics /health?/../metrics""".split()


async def say(url: str, method: str, target: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """The status and the body."""
    body = b'{"model": "sim", "messages": [{"role": "user", "content": "hi"}]}' if method == "POST" else b""
    head = f"{method} {target} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    async with Caller(url) as caller:
        await caller.send(head.encode() + b"\r\n" + body)
        status, answered = await caller.head()
        return status, await caller.body(answered) if "content-length" in answered else await caller.until_closed()


async def test_no_spelling_of_a_path_reaches_what_its_key_may_not(gateway: Running) -> None:
    async with guarded(gateway) as (client, sim, keys):
        url = str(client.base_url)
        for target in SPELLINGS:
            for method in ("GET", "POST"):
                for kind in ("none", "wrong", "revoked", "admin"):
                    status, body = await say(url, method, target, keys[kind])
                    assert b"penstock_" not in body, (method, target, kind)
                    assert status in (400, 401, 403, 404, 405) or body == b'{"status":"ok"}', (method, target)
        assert not [request for request in sim.requests if request.method == "POST"]


async def test_a_user_reaches_only_the_inference_routes_however_a_path_is_spelt(gateway: Running) -> None:
    async with guarded(gateway) as (client, sim, keys):
        url = str(client.base_url)
        for target in SPELLINGS:
            for method in ("GET", "POST"):
                status, _ = await say(url, method, target, keys["user"])
                assert status < 500, (method, target)
        assert {request.path for request in sim.requests if request.method == "POST"} == {"/v1/chat/completions"}


NAMES = [
    "../../etc/passwd",
    "/etc/passwd",
    "sim/../other",
    "file:///etc/passwd",
    "sim\\u0000",
    "SIM",
    " sim",
    "~/x",
    "%2e%2e",
]


async def test_a_model_is_a_name_that_is_looked_up_and_never_a_path(gateway: Running) -> None:
    async with guarded(gateway) as (client, sim, keys):
        for name in NAMES:
            body = {"model": name, **BODIES["/v1/chat/completions"]}
            asked = await client.post("/v1/chat/completions", json=body, headers=keys["user"])
            assert (asked.status_code, asked.json()["error"]["code"]) == (404, "model_not_found")
        assert not sim.started


KEY = CONFIGURED
CREDENTIALS = [
    *("Bearer ' OR '1'='1", "Bearer sk-x'; DROP TABLE keys; --", f"Bearer {KEY}' --", "Bearer %", "Bearer *", "Bearer"),
    *("Bearer sk-ps-' OR '1'='1", "Bearer sk-ps-", "Bearer sk-ps-%%%%%%%%-x", 'Bearer {"$ne": null}', "Basic Og=="),
    *(f"Bearer {KEY} {KEY}", f"bearer\t{KEY}", f"Token {KEY}", f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}", ""),
    *(f"Bearer sk-\xff{KEY}", "Bearer " + "x" * 60_000, "null"),
]


async def test_no_odd_credentials_open_anything(gateway: Running) -> None:
    body = b'{"model": "sim", "messages": [{"role": "user", "content": "hi"}]}'
    async with guarded(gateway) as (client, sim, _):
        for credentials in CREDENTIALS:
            for header in ("authorization", "x-api-key"):
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
                async with Caller(str(client.base_url)) as caller:
                    said = await caller.say(f"{head}{header}: {credentials}\r\n\r\n".encode("latin-1") + body)
                assert (said.status, said.error and said.error["code"]) == (401, "invalid_api_key"), credentials
        assert not sim.started
