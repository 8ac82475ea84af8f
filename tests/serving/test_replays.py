"""One generation, and the same answer for all: Idempotency-Key and the response cache, before a simulated engine."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from engine.room import Room
from engine.sim import Fault, Simulator, simulator
from penstock.callers import Caller as Key
from penstock.config import Config
from penstock.errors import OverBudget, Overloaded, PenstockError, RateLimited
from serving.exchange import Exchange
from serving.recording import Recording
from serving.replays import Once, Replays, is_deterministic, name_of
from serving.shelf import Shelf
from serving.wire import OPENAI
from tests.reliability.client import CHAT, Caller, post
from tests.serving.conftest import Running

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"model": "sim", "messages": [{"role": "user", "content": "Where does the river go?"}]}
STREAM = {**ASK, "stream": True}
GREEDY = {**ASK, "temperature": 0}
KEY = {"idempotency-key": "order-7"}
REPLAYED = "idempotent-replayed"
CACHE = "x-penstock-cache"


def before(sim: Simulator, **tree: Any) -> dict[str, Any]:
    engine = {"urls": [sim.url], "probe": {"interval_s": 0.2, "timeout_s": 1}}
    return {"engines": {"e": engine}, "models": {"sim": {"engine": "e"}}, **tree}


def cached(sim: Simulator, **settings: Any) -> dict[str, Any]:
    return before(sim, response_cache={"enabled": True, **settings})


async def until(holds: Any) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
async def test_a_hundred_at_once_with_one_key_are_one_generation(gateway: Running, body: dict[str, Any]) -> None:
    async with simulator(ttft_s=0.1, itl_s=0.005) as sim, gateway(**before(sim)) as client:
        answers = await asyncio.gather(*(client.post(CHAT, json=body, headers=KEY) for _ in range(100)))
        assert sim.started == 1
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum(REPLAYED not in answer.headers for answer in answers) == 1
    assert len({answer.headers["x-request-id"] for answer in answers}) == 100


@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
async def test_who_asks_later_with_the_same_key_gets_the_same_bytes(gateway: Running, body: dict[str, Any]) -> None:
    async with simulator() as sim, gateway(**before(sim)) as client:
        first = await client.post(CHAT, json=body, headers=KEY)
        again = await client.post(CHAT, json=body, headers=KEY)
        assert sim.started == 1
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert (REPLAYED in first.headers, again.headers[REPLAYED]) == (False, "true")


async def test_another_request_with_the_same_key_is_refused_and_another_key_is_another_request(
    gateway: Running,
) -> None:
    async with simulator(ttft_s=0.2) as sim, gateway(**before(sim)) as client:
        running = asyncio.create_task(client.post(CHAT, json=ASK, headers=KEY))
        await until(lambda: sim.started == 1)
        for _ in range(2):  # while it runs, and when it is kept
            refused = await client.post(CHAT, json=STREAM, headers=KEY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")
            await running
        other = await client.post(CHAT, json=STREAM, headers={"idempotency-key": "order-8"})
        assert (other.status_code, sim.started) == (200, 2)
        path = "/v1/messages"
        ask = {**ASK, "max_tokens": 5}
        anthropic = await client.post(path, json=ask, headers=KEY)
        assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (422, "invalid_request_error")


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_a_key_of_no_use_is_refused(gateway: Running, key: str) -> None:
    async with simulator() as sim, gateway(**before(sim)) as client:
        refused = await client.post(CHAT, json=ASK, headers={"idempotency-key": key})
    assert (refused.status_code, sim.started) == (400, 0)


async def test_the_first_that_leaves_takes_nothing_from_those_who_wait(gateway: Running) -> None:
    async with simulator(itl_s=0.02) as sim, gateway(**before(sim)) as client:
        url = str(client.base_url)
        async with Caller(url) as first, Caller(url) as second:
            await first.send(post(STREAM, headers=KEY))
            await until(lambda: sim.running == 1)
            await second.send(post(STREAM, headers=KEY))
            await asyncio.sleep(0.1)
            first.leave()
            said = await second.answer()
        assert (said.text, said.done) == (sim.expected(STREAM).text, True)
        assert (sim.started, sim.aborted) == (1, 0)


async def test_when_all_have_left_the_engine_is_free_and_a_retry_generates(gateway: Running) -> None:
    async with simulator(itl_s=0.02) as sim, gateway(**before(sim)) as client:
        url = str(client.base_url)
        async with Caller(url) as first, Caller(url) as second:
            await first.send(post(STREAM, headers=KEY))
            await until(lambda: sim.running == 1)
            await second.send(post(STREAM, headers=KEY))
            await asyncio.sleep(0.1)
            first.leave()
            second.leave()
            await until(lambda: sim.aborted == 1)
            said = await first.ask(STREAM, headers=KEY)
        assert (said.text, said.done, REPLAYED in said.headers) == (sim.expected(STREAM).text, True, False)
        assert sim.started == 2


async def test_a_failure_is_for_all_who_wait_and_kept_for_nobody(gateway: Running) -> None:
    async with simulator(Fault("status", times=2), ttft_s=0.1) as sim, gateway(**before(sim)) as client:
        answers = await asyncio.gather(*(client.post(CHAT, json=ASK, headers=KEY) for _ in range(5)))
        assert {answer.status_code for answer in answers} >= {502}
        again = await client.post(CHAT, json=ASK, headers=KEY)
        assert (again.status_code, REPLAYED in again.headers) == (200, False)


async def test_a_stream_that_is_cut_ends_in_an_error_for_all_and_is_not_kept(gateway: Running) -> None:
    fixed = {**STREAM, "seed": 1, "temperature": 1}  # which no other replica could continue
    async with simulator(Fault("cut", after=3, times=1), itl_s=0.02) as sim, gateway(**before(sim)) as client:
        answers = await asyncio.gather(*(client.post(CHAT, json=fixed, headers=KEY) for _ in range(3)))
        for answer in answers:
            assert b"stream_interrupted" in answer.content
            assert b"[DONE]" not in answer.content
        again = await client.post(CHAT, json=fixed, headers=KEY)
        assert again.content.endswith(b"data: [DONE]\n\n")
        assert sim.started == 2


async def test_each_has_a_deadline_of_its_own(gateway: Running) -> None:
    async with simulator(ttft_s=0.6) as sim, gateway(**before(sim)) as client:
        patient = asyncio.create_task(client.post(CHAT, json=ASK, headers=KEY))
        await until(lambda: sim.started == 1)
        hasty = await client.post(CHAT, json=ASK, headers={**KEY, "x-request-timeout-s": "0.2"})
        assert (hasty.status_code, hasty.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert (await patient).status_code == 200
        alone = {"idempotency-key": "another", "x-request-timeout-s": "0.2"}
        assert (await client.post(CHAT, json=ASK, headers=alone)).status_code == 504
        await until(lambda: sim.aborted == 1)


async def test_who_reads_slowly_holds_up_nobody_but_the_engine_when_alone(gateway: Running) -> None:
    async with simulator(Fault("flood", after=2, events=60_000)) as sim, gateway(**before(sim)) as client:
        async with Caller(str(client.base_url), buffer_bytes=2**14) as slow:
            await slow.send(post(STREAM, headers=KEY))
            await asyncio.sleep(1)
            assert sim.running == 1
            quick = await client.post(CHAT, json=STREAM, headers=KEY)
            assert quick.content.count(b" flood") == 60_000
            assert (await slow.answer()).body == quick.content
        assert sim.started == 1


async def test_the_same_over_other_routes(gateway: Running) -> None:
    async with simulator() as sim, gateway(**before(sim)) as client:
        for path, body in {
            "/v1/messages": {**STREAM, "max_tokens": 5},
            "/v1/responses": {"model": "sim", "input": "hi", "stream": True},
            "/v1/completions": {"model": "sim", "prompt": "hi", "stream": True},
            "/tokenize": {"model": "sim", "prompt": "hi"},
        }.items():
            key = {"idempotency-key": path}
            first, again = [await client.post(path, json=body, headers=key) for _ in range(2)]
            assert (first.status_code, again.content, again.headers[REPLAYED]) == (200, first.content, "true")
            if path == "/v1/messages":
                assert again.headers["request-id"] == again.headers["x-request-id"]


async def test_the_cache_is_off_unless_configured(gateway: Running) -> None:
    async with simulator() as sim, gateway(**before(sim)) as client:
        answers = [await client.post(CHAT, json=GREEDY) for _ in range(2)]
        assert sim.started == 2
    assert not any(CACHE in answer.headers for answer in answers)


@pytest.mark.parametrize("body", [GREEDY, {**GREEDY, "stream": True}, {**ASK, "seed": 3}], ids=str)
async def test_an_equal_deterministic_request_is_a_hit(gateway: Running, body: dict[str, Any]) -> None:
    async with simulator() as sim, gateway(**cached(sim)) as client:
        miss = await client.post(CHAT, json=body)
        hit = await client.post(CHAT, json={"user": "somebody else", **body})
        assert sim.started == 1
    assert (miss.headers[CACHE], hit.headers[CACHE]) == ("miss", "hit")
    assert (hit.status_code, hit.content) == (200, miss.content)


async def test_equal_requests_at_the_same_time_are_one_miss(gateway: Running) -> None:
    async with simulator(ttft_s=0.1) as sim, gateway(**cached(sim)) as client:
        answers = await asyncio.gather(*(client.post(CHAT, json=GREEDY) for _ in range(30)))
        assert sim.started == 1
    assert sorted(answer.headers[CACHE] for answer in answers) == ["hit"] * 29 + ["miss"]


async def test_what_is_drawn_anew_each_time_is_not_cached(gateway: Running) -> None:
    async with simulator() as sim, gateway(**cached(sim)) as client:
        for body in (ASK, {**ASK, "temperature": 0.7}):
            answers = [await client.post(CHAT, json=body) for _ in range(2)]
            assert not any(CACHE in answer.headers for answer in answers)
        fresh = await client.post(CHAT, json=GREEDY, headers={"cache-control": "no-cache"})
        assert CACHE not in fresh.headers
        assert sim.started == 5


async def test_what_has_expired_is_generated_anew(gateway: Running) -> None:
    async with simulator() as sim, gateway(**cached(sim, ttl_s=0.3)) as client:
        for expected in ("miss", "hit"):
            assert (await client.post(CHAT, json=GREEDY)).headers[CACHE] == expected
        await asyncio.sleep(0.35)
        assert (await client.post(CHAT, json=GREEDY)).headers[CACHE] == "miss"
        assert sim.started == 2


async def test_a_full_cache_lets_go_what_was_not_used_the_longest(gateway: Running) -> None:
    async with simulator(mean_tokens=8) as sim, gateway(**cached(sim, max_bytes=8000)) as client:

        async def ask(number: int) -> str:
            turns = [{"role": "user", "content": f"about {number}"}]
            return str((await client.post(CHAT, json={**GREEDY, "messages": turns})).headers[CACHE])

        assert [await ask(number) for number in (0, 1, 0)] == ["miss", "miss", "hit"]
        for number in range(2, 20):
            await ask(number)
            assert await ask(0) == "hit"
        assert await ask(1) == "miss"


async def test_a_key_and_the_cache_work_together(gateway: Running) -> None:
    async with simulator() as sim, gateway(**cached(sim)) as client:
        first = await client.post(CHAT, json=GREEDY, headers=KEY)
        again = await client.post(CHAT, json=GREEDY, headers=KEY)
        hit = await client.post(CHAT, json=GREEDY)
        assert sim.started == 1
    assert (first.headers[CACHE], again.headers[REPLAYED], hit.headers[CACHE]) == ("miss", "true", "hit")
    assert CACHE not in again.headers
    assert first.content == again.content == hit.content


class Heard(Exchange):
    """What a client would have read."""

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        super().__init__("POST", CHAT, headers)
        self.request_id = "r"
        self.said = b""

    def send(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.said = status, body


@pytest.mark.parametrize("headers", [{}, {b"idempotency-key": b"k"}], ids=["cache", "key"])
async def test_tenants_never_share(headers: dict[bytes, bytes]) -> None:
    tree: dict[str, Any] = {"engines": {"s": {"kind": "scripted"}}, "models": {"sim": {"engine": "s"}}}
    replays = Replays(Config(**tree, response_cache={"enabled": True}))
    generated = 0

    async def generate(exchange: Exchange) -> None:
        nonlocal generated
        generated += 1
        exchange.send(200, [], b"answer %d" % generated)

    async def ask(tenant: str) -> bytes:
        exchange = Heard(headers)
        assert replays.concern(exchange, GREEDY)
        await replays.serve(exchange, Key(tenant, tenant, tenant), GREEDY, OPENAI, generate)
        return exchange.said

    assert [await ask(tenant) for tenant in ("a", "b", "a", "b")] == [b"answer 1", b"answer 2"] * 2


@pytest.mark.parametrize("headers", [{}, {b"idempotency-key": b"k"}], ids=["cache", "key"])
@pytest.mark.parametrize("refusal", [RateLimited("a's limit"), OverBudget("a's"), Overloaded("less urgent")])
async def test_a_refusal_is_its_own_keys_alone(headers: dict[bytes, bytes], refusal: PenstockError) -> None:
    tree: dict[str, Any] = {"engines": {"s": {"kind": "scripted"}}, "models": {"sim": {"engine": "s"}}}
    replays = Replays(Config(**tree, response_cache={"enabled": True}))
    began: list[str] = []

    async def ask(name: str) -> str:
        async def generate(exchange: Exchange) -> None:
            began.append(name)
            await asyncio.sleep(0.05)
            if name == "limited":
                raise refusal
            exchange.send(200, [], b"answer")

        exchange = Heard(headers)
        try:
            await replays.serve(exchange, Key(name, name, "tenant"), GREEDY, OPENAI, generate)
        except PenstockError as error:
            return error.message
        return exchange.said.decode()

    said = await asyncio.gather(*(ask(name) for name in ("limited", "limited", "rich", "richer", "limited")))
    assert said == [refusal.message, refusal.message, "answer", "answer", refusal.message]
    assert began[0] == "limited"
    assert len([name for name in began if name != "limited"]) == 1


class Reads(Heard):
    def start(self, status: int, headers: Any) -> None:
        self.status = status

    def write(self, piece: bytes) -> None:
        self.said += piece

    def end(self, piece: bytes = b"") -> None:
        self.response_complete = True

    async def drained(self) -> None:
        await asyncio.sleep(0)


async def test_what_is_too_large_to_be_kept_reaches_all_who_read_it_and_is_let_go() -> None:
    recording = Recording(CHAT, {}, "r", Room(100))
    over: list[Recording] = []

    async def generate() -> None:
        recording.start(200, [])
        for number in range(1000):
            recording.write(b"%03d." % number)
            await asyncio.sleep(0)
        recording.end()

    readers = [Reads({}) for _ in range(3)]
    recording.begin(generate(), over.append)
    await asyncio.gather(*(recording.give(reader, OPENAI, [], again=False) for reader in readers))
    assert {reader.said for reader in readers} == {b"".join(b"%03d." % number for number in range(1000))}
    assert len(recording._said) < 10
    assert (recording.good, over) == (False, [recording])


def test_only_what_depends_on_nothing_else_is_deterministic() -> None:
    chat, responses = CHAT, "/v1/responses"
    assert is_deterministic(chat, {"temperature": 0})
    assert is_deterministic(chat, {"temperature": 0.0, "tools": [{"type": "custom"}]})
    assert is_deterministic("/v1/completions", {"seed": 0, "temperature": 1})
    assert is_deterministic("/v1/embeddings", {"input": "x"})
    assert is_deterministic(responses, {"temperature": 0, "tools": [{"type": "function"}]})
    assert not is_deterministic(chat, {})
    assert not is_deterministic(chat, {"temperature": 0.01})
    assert not is_deterministic("/v1/messages", {"seed": 1})
    assert not is_deterministic(chat, {"temperature": 0, "web_search_options": {"x": 1}})
    assert not is_deterministic(responses, {"temperature": 0, "previous_response_id": "r"})
    assert not is_deterministic(responses, {"temperature": 0, "tools": [{"type": "web_search"}]})


def test_requests_are_the_same_if_their_answers_are() -> None:
    def name(body: dict[str, Any], path: str = CHAT, **headers: str) -> bytes | None:
        given = {key.replace("_", "-").encode(): value.encode() for key, value in headers.items()}
        return name_of(Exchange("POST", path, given), body)

    body = {"model": "m", "temperature": 0, "top_p": 0.5}
    assert name(body) == name({"top_p": 0.5, "temperature": 0, "model": "m"}) == name({**body, "user": "u"})
    others: list[bytes | None] = [
        name(body),
        name({**body, "stream": True}),
        name({**body, "seed": 1}),
        name(body, "/v1/completions"),
        name(body, "/v1/responses"),
        name({**body, "user": "u"}, "/v1/responses"),
        name(body, accept="text/event-stream"),
        name(body, anthropic_beta="x"),
    ]
    assert len(set(others)) == len(others)
    for url in ("https://example.org/a.png", "http://a", "file:///etc/hosts"):
        assert name({**body, "messages": [{"content": [{"image_url": {"detail": "low", "url": url}}]}]}) is None
    assert name({**body, "messages": [{"content": [{"image_url": {"url": "data:image/png;base64,AA"}}]}]})
    assert name(body, cache_control="no-store") is None


async def test_a_reload_forgets_what_was_cached_and_keeps_what_was_promised() -> None:
    tree: dict[str, Any] = {"engines": {"s": {"kind": "scripted"}}, "models": {"sim": {"engine": "s"}}}
    before = Config(**tree, response_cache={"enabled": True})
    replays = Replays(before)
    cache, keys = replays._cache, replays._keys
    replays.change(before, before.model_copy(update={"gateway": before.gateway.model_copy(update={"shutdown_s": 1})}))
    assert replays._cache is cache
    tree["engines"]["s"]["options"] = {"answers": ["other"]}
    after = Config(**tree, response_cache={"enabled": True})
    replays.change(before, after)
    assert replays._cache is not cache
    replays.change(after, Config(**tree))
    assert (replays._cache, replays._keys) == (None, keys)


async def test_what_a_tenant_has_recorded_at_once_is_bounded_and_no_other_tenants_matter() -> None:
    shelf = Shelf(10_000, 60)
    once, go_on = Once(shelf, "key", (), ()), asyncio.Event()

    async def ask(tenant: str, name: bytes, size_bytes: int) -> bytes:
        async def generate(exchange: Exchange) -> None:
            exchange.start(200, [])
            exchange.write(b"x" * size_bytes)
            await go_on.wait()
            exchange.end(b"end")

        reads = Reads({})
        await once.answer((tenant, name), name, tenant, reads, OPENAI, generate)
        return reads.said

    wanted = [("a", b"1", 6000), ("a", b"2", 6000), ("b", b"1", 1000)]
    asking = [asyncio.create_task(ask(*each)) for each in wanted]
    await asyncio.sleep(0.05)
    assert len(once._rooms) == 2
    go_on.set()
    assert await asyncio.gather(*asking) == [b"x" * size + b"end" for _, _, size in wanted]
    assert [bool(shelf.find((tenant, name))) for tenant, name, _ in wanted] == [True, False, True]
    assert len(await ask("a", b"2", 3000)) == 3003
    assert shelf.find(("a", b"2"))


async def test_a_recording_gives_its_room_back_when_it_is_over_and_nobody_reads_it() -> None:
    room = Room(100)

    async def generate(recording: Recording) -> None:
        recording.start(200, [])
        recording.write(b"x" * 80)
        await asyncio.sleep(0.02)
        recording.write(b"y" * 80)
        recording.end()

    for leaves in (False, True):
        recording = Recording(CHAT, {}, "r", room)
        recording.begin(generate(recording), lambda _: None)
        reading = asyncio.create_task(recording.give(Reads({}), OPENAI, (), again=False))
        await asyncio.sleep(0.01)
        assert room.held == 80
        if leaves:
            reading.cancel()
        await asyncio.wait([reading])
        await asyncio.sleep(0.01)
        assert room.held == 0
