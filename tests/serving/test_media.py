"""Media in a request: found wherever an engine would look, and fetched from nowhere that is not public."""

import asyncio
import base64
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from engine.sim import simulator
from penstock.callers import Caller
from penstock.errors import BadRequest, Overloaded
from serving import fetching, fields
from serving.fetching import Fetch, Resolve, Streams, connected, is_public
from serving.media import Address, Medium, found_in
from serving.policy import Unfetched
from tests.serving.conftest import Running
from tests.serving.test_pixels import PICTURE, image, policy
from tests.upstream import Say, answers

pytestmark = pytest.mark.anyio

USER = Caller("1", "ada", "ada")
ANY = replace(USER, scopes=USER.scopes | {"any-media"})
PNG = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
PUBLIC = "93.184.216.34"

# The names of a server on this machine or in its network, in whatever spelling a resolver or a library might take.
INSIDE = r"""http://127.0.0.1/ http://localhost/ http://LOCALHOST./ http://127.1/ http://127.0.1/ http://2130706433/
http://0x7f000001/ http://0x7f.1/ http://0177.0.0.1/ http://017700000001/ http://0/ http://0.0.0.0/ http://[::1]/
http://[::]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/ http://[::127.0.0.1]/ http://[64:ff9b::7f00:1]/
http://[64:ff9b:1::7f00:1]/ http://[2002:7f00:1::]/ http://[2001:0:7f00:1::]/ http://[fe80::1]/ http://[fe80::1%25lo]/
http://[fec0::1]/ http://[fd00:ec2::254]/ http://[ff02::1]/ http://169.254.169.254/latest/meta-data/ http://10.0.0.1/
http://192.168.1.1/ http://172.16.0.1/ http://100.100.100.200/ http://168.63.129.16/ http://192.0.0.192/
http://198.18.0.1/ http://224.0.0.1/ http://255.255.255.255/ http://240.0.0.1/ http://①②⑦.⓪.⓪.①/
http://user@127.0.0.1/ http://93.184.216.34@127.0.0.1/ http://93.184.216.34\@127.0.0.1/ http://127.0.0.1\.example.com/
http://93.184.216.34:80@127.0.0.1/ http://[::1%00.example.com]/ http:127.0.0.1 http:///127.0.0.1/ http://
//127.0.0.1/ file:///etc/passwd ftp://93.184.216.34/ gopher://127.0.0.1/ HTTP:/127.0.0.1 javascript:1 DATA:image/png,x
unix:/run/docker.sock http://93.184.216.34:22/ http://93.184.216.34:99999/ http://93.184.216.34:-1/
http://127.0.0.1:80#@93.184.216.34/""".split()
ODD = ["http://93.184.216.34/\r\nx: y", "http://93.184.216.34/ a", "http://\t127.0.0.1/", "http://a/" + "a" * 9000, ""]

PARTS: list[tuple[str, Callable[[str], dict[str, Any]], str]] = [
    (
        fields.CHAT,
        lambda url: {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]},
        "messages[0].content[0].image_url.url",
    ),
    (
        fields.CHAT,
        lambda url: {"messages": [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": url}}]}]},
        "messages[0].content[0].audio_url.url",
    ),
    (
        fields.CHAT,
        lambda url: {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": url}]}]},
        "messages[0].content[0].video_url",
    ),
    (
        fields.CHAT,
        lambda url: {"messages": [{"role": "tool", "content": [{"type": "text", "text": "x", "image_url": url}]}]},
        "messages[0].content[0].image_url",
    ),
    (
        fields.RESPONSES,
        lambda url: {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
        "input[0].content[0].image_url",
    ),
    (
        fields.RESPONSES,
        lambda url: {"input": [{"type": "function_call_output", "output": [{"type": "input_file", "file_url": url}]}]},
        "input[0].output[0].file_url",
    ),
    (
        fields.MESSAGES,
        lambda url: {
            "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}]
        },
        "messages[0].content[0].source.url",
    ),
    (
        fields.MESSAGES,
        lambda url: {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [
            {"type": "image", "source": {"type": "url", "url": url}}]}]}]},
        "messages[0].content[0].content[0].source.url",
    ),
    (
        fields.SCORE,
        lambda url: {"text_1": "x", "text_2": {"content": [{"type": "image_url", "image_url": {"url": url}}]}},
        "text_2.content[0].image_url.url",
    ),
    (
        fields.RERANK,
        lambda url: {"query": "x", "documents": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]},
        "documents[0].content[0].image_url.url",
    ),
    (
        fields.TOKENIZE,
        lambda url: {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]},
        "messages[0].content[0].image_url.url",
    ),
]  # fmt: skip


async def fetched(url: str, fetch: Fetch | None = None, caller: Caller = ANY, **limits: Any) -> str:
    """What the engine is given in its place."""
    rules = policy(fetch, **limits)
    body = rules.applied(fields.CHAT, image(url), caller)
    if isinstance(body, Unfetched):
        body = await rules.fetched(body)
    given: str = body["messages"][0]["content"][0]["image_url"]["url"]
    return given


@pytest.mark.parametrize(("path", "holding", "where"), PARTS)
async def test_an_address_is_found_and_named_wherever_it_stands(
    path: str, holding: Callable[[str], dict[str, Any]], where: str
) -> None:
    within = {"model": "m", **holding(PNG)}
    assert policy().applied(path, within, USER) is within
    for url in ("https://example.com/a.png", "http://127.0.0.1/", "file:///etc/passwd"):
        with pytest.raises(BadRequest) as caught:
            policy().applied(path, {"model": "m", **holding(url)}, USER)
        assert caught.value.param == where


async def test_a_call_of_the_models_own_is_no_medium() -> None:
    turn = {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"image_url": "http://x/"}}]}
    body = {"model": "m", "max_tokens": 5, "messages": [turn]}
    assert policy().applied(fields.MESSAGES, body, USER) is body


@asynccontextmanager
async def canary() -> AsyncIterator[tuple[int, list[object]]]:
    """A server on this machine, its port, and whoever has connected to it."""
    seen: list[object] = []
    server = await asyncio.start_server(lambda reader, writer: seen.append(writer), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


async def test_nothing_inside_is_ever_connected_to() -> None:
    async with canary() as (port, seen):
        own = [
            f"http://{host}:{port}/" for host in ("127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "0x7f.1")
        ]
        for url in [*INSIDE, *ODD, *own]:
            with pytest.raises(BadRequest):
                await fetched(url)
        assert not seen


async def test_a_name_that_leads_inside_is_refused_even_beside_a_public_address() -> None:
    for addresses in (["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["::ffff:127.0.0.1"], []):
        async with canary() as (port, seen):
            with pytest.raises(BadRequest, match="not on the public internet"):
                await fetched(f"http://rebound.example:{port}/", Fetch(1000, resolve=found(addresses)))
            assert not seen


async def test_who_may_not_name_addresses_is_refused_before_any_name_is_looked_up() -> None:
    asked: list[str] = []
    with pytest.raises(BadRequest, match="only data: URLs"):
        await fetched("https://example.com/", Fetch(1000, resolve=found([PUBLIC], asked)), USER)
    assert not asked


def found(addresses: Sequence[str], asked: list[str] | None = None) -> Resolve:
    """A resolver that says so, whatever it is asked."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        if asked is not None:
            asked.append(host)
        return addresses

    return resolve


@dataclass
class Public:
    """A server on the public internet, as far as a fetch can tell."""

    port: int
    heads: list[bytes] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ips: list[str] = field(default_factory=list)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.names.append(host)
        return [PUBLIC]

    async def connect(self, ip: str, address: Address) -> Streams:
        self.ips.append(ip)
        return await asyncio.open_connection("127.0.0.1", self.port)

    @property
    def fetch(self) -> Fetch:
        return Fetch(1000, self.resolve, self.connect)


@asynccontextmanager
async def public(say: Say) -> AsyncIterator[Public]:
    """It answers every connection with `say`."""
    here = Public(0)
    answering: set[asyncio.Task[Any] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            here.heads.append(await reader.readuntil(b"\r\n\r\n"))
            await say(writer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        here.port = server.sockets[0].getsockname()[1]
        yield here
        await asyncio.gather(*filter(None, answering))


def picture(body: bytes = PICTURE, kind: bytes = b"image/png", more: bytes = b"") -> Say:
    async def say(writer: Any) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n" % (kind, len(body), more)
        writer.write(head + body)

    return say


async def test_a_public_picture_reaches_the_engine_as_data() -> None:
    async with public(picture(kind=b"image/png; x=y")) as there:
        given = await fetched("http://images.example:8080/a.png?b=c", there.fetch)
    assert given == "data:image/png;base64," + base64.b64encode(PICTURE).decode()
    assert (there.ips, there.names) == ([PUBLIC], ["images.example"])
    head = there.heads[0].lower()
    assert head.startswith(b"get /a.png?b=c http/1.1\r\n")
    assert b"host: images.example:8080\r\n" in head


async def test_a_host_of_the_configuration_is_fetched_from_for_everybody() -> None:
    hosts = ["images.example"]
    async with public(picture()) as there:
        assert (await fetched("http://Images.Example/", there.fetch, USER, media_hosts=hosts)).startswith("data:")
        with pytest.raises(BadRequest):
            await fetched("http://images.example.org/", there.fetch, USER, media_hosts=hosts)
    assert there.ips == [PUBLIC]


async def test_the_name_is_asked_for_once_and_what_was_judged_is_connected_to() -> None:
    answered = iter([[PUBLIC], ["127.0.0.1"]])

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return next(answered)

    async with public(picture()) as there:
        await fetched("http://rebinding.example/", Fetch(1000, rebinding, there.connect))
    assert there.ips == [PUBLIC]


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        (answers(302, b"", b"location: http://169.254.169.254/\r\n"), "redirects"),
        (answers(301, b"", b"location: http://images.example/b.png\r\n"), "redirects"),
        (answers(404, b"{}"), "answers 404"),
        (picture(kind=b"text/html"), "no image, audio or video"),
        (picture(kind=b"image/png,<x>"), "no image, audio or video"),
        (picture(body=b"x" * 20_000), "more than 1000 bytes"),
        (picture(more=b"x: y\r\n" * 10_000), "more than 1000 bytes"),
        (picture(more=b"content-encoding: gzip\r\n"), "compressed"),
    ],
)
async def test_what_is_no_picture_is_refused_with_the_reason(say: Say, reason: str) -> None:
    async with public(say) as there:
        with pytest.raises(BadRequest, match=reason) as caught:
            await fetched("http://images.example/", there.fetch)
    assert caught.value.param == "messages[0].content[0].image_url.url"
    assert len(there.heads) == 1


async def test_a_picture_that_breaks_off_or_never_comes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def half(writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 100\r\n\r\nhalf")

    async def nothing(writer: Any) -> None:
        await asyncio.sleep(0.5)

    async def nonsense(writer: Any) -> None:
        writer.write(b"\x16\x03\x01")

    monkeypatch.setattr(fetching, "FETCH_S", 0.2)
    for say, reason in ((half, "broke off"), (nothing, "did not answer"), (nonsense, "cannot be reached")):
        async with public(say) as there:
            with pytest.raises(BadRequest, match=reason):
                await fetched("http://images.example/", there.fetch)


async def test_parts_bytes_and_frames_are_counted_together() -> None:
    turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}] * 3}
    body = {"model": "m", "messages": [turn, turn]}
    assert policy(max_parts=6).applied(fields.CHAT, body, USER) is body
    frames = "data:video/jpeg;base64," + ",".join(["AAAA"] * 5000)
    audio = {"type": "input_audio", "input_audio": {"data": "A" * 2000, "format": "wav"}}
    for rules in (policy(max_parts=5), policy(max_media_bytes=50)):
        with pytest.raises(BadRequest):
            rules.applied(fields.CHAT, body, USER)
    with pytest.raises(BadRequest, match="pieces of media"):
        policy().applied(fields.CHAT, image(frames), USER)
    with pytest.raises(BadRequest, match="bytes of media"):
        policy(max_media_bytes=1000).applied(
            fields.CHAT, {"model": "m", "messages": [{"role": "user", "content": [audio]}]}, USER
        )


async def test_fetched_media_are_counted_with_the_others() -> None:
    async with public(picture(PICTURE + b"x" * 900)) as there:
        body = {"model": "m", "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": f"http://images.example/{number}"}} for number in range(3)
        ]}]}  # fmt: skip
        rules = policy(there.fetch, max_media_bytes=1000)
        unfetched = rules.applied(fields.CHAT, body, ANY)
        assert isinstance(unfetched, Unfetched)
        with pytest.raises(BadRequest, match="bytes of media"):
            await rules.fetched(unfetched)


async def test_many_media_have_no_more_room_than_one() -> None:
    async with public(picture(PICTURE + b"x" * 90_000)) as there:
        parts = [{"type": "image_url", "image_url": {"url": f"http://images.example/{n}"}} for n in range(10)]
        rules = policy(Fetch(100_000, there.resolve, there.connect), max_media_bytes=100_000)
        unfetched = rules.applied(fields.CHAT, {"model": "m", "messages": [{"role": "user", "content": parts}]}, ANY)
        assert isinstance(unfetched, Unfetched)
        with pytest.raises(BadRequest, match="have more than 100000 bytes"):
            await rules.fetched(unfetched)


def pictures(count: int, host: str) -> list[Medium]:
    urls = [{"url": f"http://{host}/{number}"} for number in range(count)]
    return [Medium(url, "url", f"[{number}]", is_image=True) for number, url in enumerate(urls)]


async def test_a_tenant_with_slow_servers_keeps_nobody_else_from_theirs() -> None:
    slow = asyncio.Event()

    async def connect(ip: str, address: Address) -> Streams:
        if address.host == "slow.example":
            await slow.wait()
        return await there.connect(ip, address)

    async with public(picture()) as there:
        fetch = Fetch(10_000, there.resolve, connect)
        flood = [asyncio.create_task(fetch(pictures(20, "slow.example"), "eve")) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert there.names == ["slow.example"] * fetching.OF_A_TENANT
        wanted = pictures(20, "images.example")
        await asyncio.wait_for(fetch(wanted, "ada"), 5)
        assert all(not medium.is_remote for medium in wanted)
        assert there.names.count("slow.example") == fetching.OF_A_TENANT
        slow.set()
        await asyncio.gather(*flood)
        assert there.names.count("slow.example") == 100


async def test_all_tenants_together_have_so_many_places_and_who_finds_none_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "WAIT_S", 0.1)
    names: list[str] = []

    async def never(host: str, port: int) -> Sequence[str]:
        names.append(host)
        await asyncio.Event().wait()
        raise AssertionError

    fetch = Fetch(1000, never)
    everybody = fetching.AT_ONCE // fetching.OF_A_TENANT
    flood = [
        asyncio.create_task(fetch(pictures(fetching.OF_A_TENANT, f"{one}.example"), f"{one}"))
        for one in range(everybody)
    ]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match=r"^\[0\]: too many media are being fetched") as caught:
        await fetch(pictures(1, "images.example"), "ada")
    assert (caught.value.param, caught.value.retry_after_s) == ("[0]", fetching.RETRY_AFTER_S)
    assert len(names) == fetching.AT_ONCE
    flood.pop().cancel()
    late = asyncio.create_task(fetch(pictures(1, "images.example"), "ada"))
    await asyncio.sleep(0.05)
    assert names[-1] == "images.example"
    for task in [*flood, late]:
        task.cancel()
    await asyncio.gather(*flood, late, return_exceptions=True)


async def test_media_nested_as_deep_as_json_goes_are_found() -> None:
    part: Any = {"type": "image_url", "image_url": {"url": "file:///x"}}
    for _ in range(400):
        part = {"type": "tool_result", "content": [part]}
    found = [medium for medium in found_in([part], "messages") if isinstance(medium, Medium)]
    assert [medium.text for medium in found] == ["file:///x"]


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", PUBLIC])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


async def test_through_the_gateway_the_engine_sees_data_and_never_an_address(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulator() as sim, public(picture()) as there:
        monkeypatch.setattr(fetching, "resolved", there.resolve)
        monkeypatch.setattr(fetching, "connected", there.connect)
        tree = {"engines": {"e": {"urls": [sim.url]}}, "models": {"sim": {"engine": "e"}}}
        async with gateway(**tree) as client:
            taken = await client.post(fields.CHAT, json=image("http://images.example/"))
            refused = await client.post(fields.CHAT, json=image("http://127.0.0.1:1/\\@x"))
        (seen,) = [request for request in sim.requests if request.path == fields.CHAT and b"image" in request.raw]
    assert taken.status_code == 200
    assert seen.body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[0].content[0].image_url.url")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not installed")
async def test_over_tls_the_host_must_be_who_the_url_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
    names = ["-addext", "subjectAltName=DNS:images.example", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)  # noqa: ASYNC221
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    asked: list[str | None] = []
    context.sni_callback = lambda connection, name, _: asked.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    fetching.trusted.cache_clear()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await picture()(writer)
            await writer.drain()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]

        async def connect(ip: str, address: Address) -> Streams:
            assert ip == PUBLIC
            return await connected("127.0.0.1", replace(address, port=port))

        fetch = Fetch(1000, found([PUBLIC]), connect)
        assert (await fetched("https://images.example/", fetch)).startswith("data:image/png")
        with pytest.raises(BadRequest, match="cannot be reached"):
            await fetched("https://other.example/", fetch)
    fetching.trusted.cache_clear()
    assert asked == ["images.example", "other.example"]


def test_a_path_is_written_only_where_it_is_needed() -> None:
    broad = {"type": "text", "text": "x", "x": {"A" * 10_000: {str(number): 0 for number in range(10_000)}}}
    assert list(found_in([broad], "content")) == []
    (found,) = found_in([{"B" * 10_000: {"image_url": "data:x"}}], "content")
    assert len(found.where) < 300


def test_more_values_than_anybody_needs_are_refused() -> None:
    with pytest.raises(BadRequest, match="values"):
        list(found_in([[] for _ in range(300_000)], "messages"))
