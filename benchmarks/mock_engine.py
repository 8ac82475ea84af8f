"""An engine that costs next to nothing, with vLLM's answers: `python -m benchmarks.mock_engine --ports 2`.

It prints one line of JSON, {"ports": [...], "socket": "..."}, once it listens. A request's `max_tokens` is the number
of tokens in its answer, its `seed` the milliseconds between two of them: both are OpenAI's own fields, so that every
gateway lets them through.
"""

import asyncio
import gc
import json
import tempfile
from collections import deque
from itertools import count
from pathlib import Path
from typing import Annotated, cast

import httptools
import orjson
import typer
import uvloop

CREATED = 1763800000
HEAD = b"HTTP/1.1 %s\r\ndate: Sat, 22 Nov 2025 12:00:00 GMT\r\nserver: uvicorn\r\n"
STREAM_HEAD = HEAD % b"200 OK" + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
WORDS = [b" The", b" water", b" comes", b" through", b" the", b" gate", b" and", b" turns", b" a", b" wheel", b"."]
MODELS = b'{"object":"list","data":[{"id":"m","object":"model","created":%d,"owned_by":"vllm","max_model_len":8192}]}'
METRICS = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 0.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.0
"""
PAGES = {
    b"/health": (b"text/plain", b""),
    b"/metrics": (b"text/plain; version=0.0.4; charset=utf-8", METRICS),
    b"/v1/models": (b"application/json", MODELS % CREATED),
}
request_numbers = count(1)


def whole(status: bytes, kind: bytes, body: bytes) -> bytes:
    return b"%scontent-length: %d\r\ncontent-type: %s\r\n\r\n%s" % (HEAD % status, len(body), kind, body)


def answer(number: int, tokens: int) -> bytes:
    """The JSON of a whole answer: 520 bytes with ten tokens."""
    text = b"".join(WORDS[n % len(WORDS)] for n in range(tokens))
    return (
        b'{"id":"chatcmpl-%032x","object":"chat.completion","created":%d,"model":"m","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"%s","refusal":null,"annotations":null,"audio":null,'
        b'"function_call":null,"tool_calls":[],"reasoning":null},"logprobs":null,"finish_reason":"length",'
        b'"stop_reason":null,"token_ids":null}],"service_tier":null,"system_fingerprint":null,"usage":'
        b'{"prompt_tokens":140,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null},'
        b'"prompt_logprobs":null,"kv_transfer_params":null}'
    ) % (number, CREATED, text, 140 + tokens, tokens)


def event(number: int, delta: bytes, finish: bytes = b"null") -> bytes:
    """One event of a stream, about 200 bytes."""
    return (
        b'data: {"id":"chatcmpl-%032x","object":"chat.completion.chunk","created":%d,"model":"m","choices":[{"index":0,'
        b'"delta":{%s},"logprobs":null,"finish_reason":%s,"token_ids":null}]}\n\n'
    ) % (number, CREATED, delta, finish)


def events(number: int, tokens: int) -> list[bytes]:
    """A whole stream: the role, `tokens` pieces of text, the end. `tokens` + 2 events."""
    pieces = [event(number, b'"role":"assistant","content":""')]
    pieces += [event(number, b'"content":"%s"' % WORDS[n % len(WORDS)]) for n in range(tokens - 1)]
    return [*pieces, event(number, b'"content":"."', b'"length"'), DONE]


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Connection(asyncio.Protocol):
    """One client's connection, one request after another. httptools calls only what is defined here."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.path = b""
        self.body: list[bytes] = []
        self.left: deque[bytes] = deque()
        self.pause_s = 0.0
        self.is_full = False
        self.is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def connection_lost(self, _error: Exception | None) -> None:
        self.left.clear()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.path = b""
        self.body = []

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        if self.path == b"/v1/chat/completions":
            self.generate(b"".join(self.body))
        elif self.path in PAGES:
            self.transport.write(whole(b"200 OK", *PAGES[self.path]))
        else:
            self.transport.write(whole(b"404 Not Found", b"application/json", b'{"detail":"Not Found"}'))

    def generate(self, body: bytes) -> None:
        request = orjson.loads(body)
        # Some gateways rewrite the older name to the newer.
        tokens = request.get("max_tokens") or request.get("max_completion_tokens") or 10
        number = next(request_numbers)
        if not request.get("stream"):
            self.transport.write(whole(b"200 OK", b"application/json", answer(number, tokens)))
            return
        self.pause_s = request.get("seed", 0) / 1000
        self.left.extend(map(chunked, events(number, tokens)))
        self.left[-1] += b"0\r\n\r\n"
        self.transport.write(STREAM_HEAD)
        self.say()

    def say(self) -> None:
        """Writes the next event; each in its own write, as vLLM does, and none into a full socket."""
        self.is_waiting = False
        if not self.left or self.is_full:
            return
        self.transport.write(self.left.popleft())
        if not self.left:
            return
        self.is_waiting = True
        if self.pause_s and len(self.left) > 1:  # the end comes with the last text
            self.loop.call_later(self.pause_s, self.say)
        else:
            self.loop.call_soon(self.say)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        if not self.is_waiting:
            self.say()


async def listen(ports: int, socket: Path) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024) for _ in range(ports)]
    await loop.create_unix_server(Connection, str(socket))
    gc.disable()  # nothing here makes cycles that last
    numbers = [server.sockets[0].getsockname()[1] for server in servers]
    typer.echo(json.dumps({"ports": numbers, "socket": str(socket)}))
    await asyncio.Event().wait()


def main(ports: Annotated[int, typer.Option(min=1, help="How many ports answer, each as an engine would")] = 1) -> None:
    """Answers until it is ended."""
    with tempfile.TemporaryDirectory(prefix="mock-") as folder:
        uvloop.run(listen(ports, Path(folder) / "engine.sock"))


if __name__ == "__main__":
    typer.run(main)
