"""Every fault of a stream, provoked over a socket; what arrives is compared with the same stream unharmed."""

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from engine import sse
from engine.sim import Fault, simulator
from engine.sim.broken_streams import STREAMS
from engine.sim.faults import KINDS
from tests.engine.sim.conftest import CHAT, STREAM, Heard, hear

pytestmark = pytest.mark.anyio

Check = Callable[[Heard, list[bytes]], bool]
ROUTES: dict[str, dict[str, Any]] = {
    CHAT: STREAM,
    "/v1/completions": {"prompt": "The river", "stream": True, "max_tokens": 12},
    "/v1/responses": {"input": "Where does the river go?", "stream": True},
    "/v1/messages": {"messages": STREAM["messages"], "max_tokens": 100, "stream": True},
}


def document(event: bytes) -> Any:
    return orjson.loads(sse.parse(event).data)


def is_json(event: bytes) -> bool:
    try:
        return bool(document(event))
    except orjson.JSONDecodeError:
        return False


def is_text(event: bytes) -> bool:
    try:
        return bool(event.decode())
    except UnicodeDecodeError:
        return False


def without_reason(events: list[bytes]) -> list[Any]:
    """The documents before [DONE], with every finish reason taken out."""
    documents = [document(event) for event in events[:-1]]
    for choice in (choice for one in documents for choice in one["choices"]):
        choice["finish_reason"] = None
    return documents


ERROR = {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
                   "type": "InternalServerError", "param": None, "code": 500}}  # fmt: skip

# After the role and three tokens, unless it says otherwise.
CASES: list[tuple[Fault, Check]] = [
    (Fault("cut", after=3), lambda heard, clean: heard.events == clean[:4] and heard.end == "closed"),
    (Fault("cut", after=0), lambda heard, clean: heard.events == clean[:1] and heard.end == "closed"),
    (Fault("cut", after=999), lambda heard, clean: heard.events == clean[:-3] and heard.end == "closed"),
    (Fault("reset_after", after=3), lambda heard, clean: heard.events == clean[:4] and heard.end == "reset"),
    (
        Fault("half_event", after=3),
        lambda heard, clean: (
            heard.events[:-1] == clean[:4] and not heard.events[-1].endswith(b"\n") and heard.end == "closed"
        ),
    ),
    (Fault("stall", after=3), lambda heard, clean: heard.events == clean[:4] and heard.end == "open"),
    (Fault("stall", after=3, delay_s=0.1), lambda heard, clean: heard.events == clean and heard.complete),
    (Fault("stall_before_content"), lambda heard, clean: heard.events == clean[:1] and heard.end == "open"),
    (Fault("no_done"), lambda heard, clean: heard.events == clean[:-1] and heard.complete),
    (
        Fault("no_finish"),
        lambda heard, clean: (
            b'"finish_reason":"' not in heard.body
            and heard.events[-1] == clean[-1]
            and without_reason(heard.events) == without_reason(clean)
        ),
    ),
    (
        Fault("after_done"),
        lambda heard, clean: heard.events[: len(clean)] == clean and is_json(heard.events[-1]) and heard.complete,
    ),
    (
        Fault("bad_json", after=3),
        lambda heard, clean: (
            not is_json(heard.events[4])
            and is_text(heard.events[4])
            and heard.events[:4] + heard.events[5:] == clean[:4] + clean[5:]
        ),
    ),
    (
        Fault("bad_utf8", after=3),
        lambda heard, clean: (
            not is_text(heard.events[4]) and heard.events[:4] + heard.events[5:] == clean[:4] + clean[5:]
        ),
    ),
    (
        Fault("nan", after=3),
        lambda heard, clean: (
            b"NaN}" in heard.events[4]
            and not is_json(heard.events[4])
            and bool(json.loads(sse.parse(heard.events[4]).data))
            and heard.events[:4] + heard.events[5:] == clean[:4] + clean[5:]
        ),
    ),
    (
        Fault("null_delta", after=3),
        lambda heard, clean: (
            document(heard.events[4])["choices"][0]["delta"] is None and heard.events[:4] + heard.events[5:] == clean
        ),
    ),
    (
        Fault("error_event", after=3),
        lambda heard, clean: (
            heard.events[:4] == clean[:4]
            and document(heard.events[4]) == ERROR
            and heard.events[5:] == [b"data: [DONE]\n\n"]
            and heard.complete
        ),
    ),
    (
        Fault("error_first"),
        lambda heard, clean: document(heard.events[0]) == ERROR and heard.events[1:] == [b"data: [DONE]\n\n"],
    ),
    (
        Fault("crlf"),
        lambda heard, clean: heard.events == [event.replace(b"\n", b"\r\n") for event in clean] and heard.complete,
    ),
    (
        Fault("comments"),
        lambda heard, clean: heard.events[1::2] == clean and set(heard.events[::2]) == {b": still here\n\n"},
    ),
    (
        Fault("multi_line"),
        lambda heard, clean: (
            [sse.parse(event).data.replace(b"\n", b"") for event in heard.events]
            == [sse.parse(event).data for event in clean]
            and all(event.count(b"data: ") == 2 for event in heard.events[:-1])
        ),
    ),
    (
        Fault("flood", after=3, events=2000),
        lambda heard, clean: heard.events[:4] + heard.events[2004:] == clean and is_json(heard.events[2003]),
    ),
]


@pytest.mark.parametrize(("fault", "check"), CASES, ids=[f"{fault.kind}-{fault.after}" for fault, _ in CASES])
async def test_a_stream_goes_wrong_as_it_was_told(fault: Fault, check: Check) -> None:
    async with simulator() as sim:
        clean = await hear(sim, STREAM)
        sim.faults.append(fault)
        heard = await hear(sim, STREAM)
        assert clean.complete
        assert clean.events[-1] == b"data: [DONE]\n\n"
        assert check(heard, clean.events), heard.events
        assert fault.struck == 1


def test_every_fault_of_a_stream_stands_in_the_table() -> None:
    assert {fault.kind for fault, _ in CASES} == {twist.__name__ for twist in STREAMS}
    assert {kind for kind, what in KINDS.items() if what.of == "stream"} | {"nan"} == {fault.kind for fault, _ in CASES}


@pytest.mark.parametrize("kind", [twist.__name__ for twist in STREAMS])
@pytest.mark.parametrize("path", ROUTES)
async def test_every_fault_shows_on_every_route(path: str, kind: str) -> None:
    async with simulator() as sim:
        clean = await hear(sim, ROUTES[path], path)
        sim.faults.append(Fault(kind, after=2, events=10))
        heard = await hear(sim, ROUTES[path], path)
    assert clean.complete
    assert (heard.events, heard.complete, heard.end) != (clean.events, clean.complete, clean.end)


async def test_a_fault_of_streams_leaves_whole_answers_alone() -> None:
    async with simulator(Fault("cut", times=1)) as sim:
        body = {**STREAM, "stream": False}
        del body["stream_options"]
        assert (await hear(sim, body)).json["choices"]
        assert (await hear(sim, STREAM)).end == "closed"


async def test_several_faults_lie_one_over_another() -> None:
    async with simulator() as sim:
        clean = (await hear(sim, STREAM)).events
        sim.faults += [Fault("cut", after=3), Fault("crlf")]
        heard = await hear(sim, STREAM)
    assert heard.events == [event.replace(b"\n", b"\r\n") for event in clean[:4]]
    assert heard.end == "closed"
