"""What an engine's stream must be, family by family, to be passed on: read as it comes, byte for byte where it is good.

One that is malformed, ends without saying how, or says that it was aborted is never a success. A `Reading` holds one
stream's state.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from engine import sse
from engine.failures import from_document
from engine.generated import RESPONSES_PIECES, as_text, beside_content
from penstock.errors import EngineError, PenstockError, StreamInterrupted

DONE_EVENT = b"data: [DONE]\n\n"
# vLLM's words for an answer that it gave up: what came until then is no whole answer.
GIVEN_UP = frozenset({"abort", "error"})
# Of a JSON string, what stands for itself and is one byte a character; never empty.
PLAIN = re.compile(rb"[ !#-\[\]-~]+")
NOTHING_LIKE_IT = b"\0"
NO_DATA = (b":", b"event:", b"id:", b"retry:")
NOT_JSON = "the engine sent an event that is not JSON"
NO_CHUNK = "the engine sent an event that is no part of an answer"
NO_END = "the engine's stream ended before the answer did"

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
STREAMING = frozenset({CHAT, TEXT, MESSAGES, RESPONSES})


class Reading:
    """One stream, read event by event. `feed` returns what may be passed on; once `failure` is set, nothing more may.

    `began`: an event with content has come, so that the answer can no longer be had elsewhere unnoticed.
    `over`: its proper end has come; whatever follows is dropped.
    `text`: the pieces of it that have come, where the family says so plainly; of several choices, the first one's.
    `beside`: those of what else was generated and is no text of the answer, by choice and kind: it costs as much.
    """

    def __init__(self) -> None:
        self.began = False
        self.over = False
        self.failure: PenstockError | None = None
        self.usage: Mapping[str, Any] | None = None
        self.text: list[str] = []
        self.beside: dict[tuple[int, str], list[str]] = {}
        self._splitter = sse.EventSplitter()

    @property
    def texts(self) -> Sequence[Sequence[str]]:
        """The pieces of all that was generated, of every choice: the first one's text, then the rest."""
        return (self.text, *self.beside.values())

    def _generated(self, choice: int, kind: str, piece: Any) -> None:
        """Something that is no text of the answer, which is to be counted: in whatever type the engine has put it."""
        if piece:
            self.beside.setdefault((choice, kind), []).append(as_text(piece))

    def feed(self, data: bytes) -> bytes:
        if not self._splitter.rest and data[-2:] == b"\n\n" and b"\r" not in data and b"\n\n\n" not in data:
            events = data[:-2].split(b"\n\n")
        else:
            try:
                events = [event for event in map(on_plain_lines, self._splitter.feed(data)) if event]
            except EngineError as error:
                self.failure = error
                return b""
            data = b""
        return self._pass(events, data)

    def _pass(self, events: list[bytes], data: bytes) -> bytes:
        """The good ones among the events; `data`, if it is given, where it is exactly these."""
        good: list[bytes] = []
        for event in events:
            try:
                changed = self._read(event)
            except PenstockError as error:
                self.failure = error
            except (TypeError, AttributeError, KeyError, ValueError):
                self.failure = StreamInterrupted(NO_CHUNK)
            if self.failure:
                break
            if changed is None:
                good.append(event)
            else:
                data = b""
                if changed:
                    good.append(changed)
            if self.over:
                break
        if data and len(good) == len(events):
            return data
        return b"".join([event + b"\n\n" for event in good])

    def _read(self, event: bytes) -> bytes | None:
        """Takes one event in; returns what goes out instead, None for itself, nothing for one that only we asked for.
        Raises what makes it no good."""
        raise NotImplementedError

    def closed(self) -> bytes:
        """The body has ended properly: what is to be added, if anything. Raises StreamInterrupted."""
        if self.over:
            return b""
        raise StreamInterrupted(NO_END)


class OpenAIReading(Reading):
    """Chat and plain completions: unnamed events of chunks, a finish reason for every choice, then `[DONE]`."""

    def __init__(self, choices: int, *, with_usage: bool = False, hide_usage: bool = False) -> None:
        """`with_usage`: the caller has asked for the usage, so that without it the stream is not whole.
        `hide_usage`: only we have, so that it is read and not passed on."""
        super().__init__()
        self._hide_usage = hide_usage
        self._with_usage = with_usage
        self.only_text = choices == 1
        self.identity: Mapping[str, Any] = {}
        self._unfinished = choices
        self._before = NOTHING_LIKE_IT
        self._after = b""
        self._finished: set[int] = set()
        self._others: dict[int, list[str]] = {}

    @property
    def texts(self) -> Sequence[Sequence[str]]:
        return (self.text, *self._others.values(), *self.beside.values())

    def feed(self, data: bytes) -> bytes:
        if data.startswith(self._before) and data.endswith(self._after) and not self._splitter.rest:
            text = data[len(self._before) : -len(self._after)]
            if PLAIN.fullmatch(text):
                self.text.append(text.decode())
                return data
        if data[:7] == b"data: {" and data[-3:] == b"}\n\n" and not self._splitter.rest:
            payload = data[6:-2]
            if b"\n" not in payload and b"\r" not in payload and self._is_text(payload):
                return data
        return super().feed(data)

    def _is_text(self, payload: bytes) -> bool:
        """Takes in the commonest event, a piece of one choice's text; everything else is for `_read`."""
        try:
            chunk = orjson.loads(payload)
            (choice,) = chunk["choices"]
            delta = choice["delta"]
            text = delta["content"]
            if len(delta) != 1 or type(text) is not str or choice["index"] != 0:
                return False
            if choice["finish_reason"] is not None or choice.get("logprobs") or chunk.get("usage"):
                return False
        except (ValueError, TypeError, KeyError, AttributeError):
            return False
        if not self.identity:
            return False
        if text:
            self.began = True
            self.text.append(text)
            self._learn(payload, text)
        return True

    def _learn(self, payload: bytes, text: str) -> None:
        """An engine's next event differs in the text alone: one that begins and ends like this is not parsed again.

        Between the two stands a JSON string, of which only what needs no parsing is let through, so that the event is
        the same JSON with another text.
        """
        before, quote, rest = payload.partition(b'"content":"')
        said, after = text.encode(), rest[len(text) :]
        if PLAIN.fullmatch(said) and rest.startswith(said + b'"') and b'"content"' not in before + after:
            self._before = b"data: " + before + quote
            self._after = after + b"\n\n"

    def _read(self, event: bytes) -> bytes | None:
        plain = event[:6] == b"data: " and b"\n" not in event
        payload = event[6:] if plain else data_of(event)
        if not payload:
            return None
        if payload == sse.DONE:
            if self._unfinished > 0:
                raise StreamInterrupted("the engine's stream ended without a finish reason")
            self.over = True
            return None if plain else DONE_EVENT[:-2]
        chunk = loaded(payload)
        choices = chunk.get("choices")
        if choices is None:
            raise from_document(500, chunk) if is_error(chunk) else StreamInterrupted(NO_CHUNK)
        if not self.identity:
            self.identity = {name: chunk.get(name) for name in ("id", "created", "model")}
        repaired = False
        for choice in choices:
            repaired |= self._read_choice(choice)
        usage = chunk.get("usage")
        if usage:
            self.usage = usage
            if self._hide_usage and not choices:
                return b""
        if plain and not repaired:
            return None
        # On one line, since clients that read events line by line are many.
        return b"data: " + (orjson.dumps(chunk) if repaired else payload.replace(b"\n", b" "))

    def _read_choice(self, choice: dict[str, Any]) -> bool:
        """Returns whether the choice had to be put right: some engines write a null for an empty delta."""
        repaired = False
        beside: Sequence[tuple[str, str]] = ()
        delta = choice.get("delta")
        if delta is None and "delta" in choice:
            choice["delta"] = delta = {}
            repaired = True
        if delta is None:
            text = choice["text"]
        else:
            text = delta.get("content")
            if len(delta) > 1 or (delta and text is None):
                beside = self._read_delta(delta)
        if choice.get("logprobs"):
            self.only_text = False
        reason = choice.get("finish_reason")
        if reason:
            self._finish(choice, reason)
        if text and type(text) is not str:
            raise StreamInterrupted(NO_CHUNK)
        for kind, piece in beside:
            self._generated(choice.get("index", 0), kind, piece)
        if text:
            self.began = True
            index = choice.get("index", 0)
            pieces = self._others.setdefault(index, []) if index else self.text
            pieces.append(text)  # last, for an event that is no good is not passed on
        return repaired

    def _read_delta(self, delta: dict[str, Any]) -> Sequence[tuple[str, str]]:
        """Returns what of it is generated and no content."""
        for name, value in delta.items():
            if value and name not in ("role", "content"):
                self.began = True
                self.only_text = False
                return list(beside_content(delta))
        return ()

    def _finish(self, choice: dict[str, Any], reason: str) -> None:
        if reason in GIVEN_UP:
            raise StreamInterrupted("the engine gave the answer up before its end")
        self.began = True
        index = choice.get("index", 0)
        if index not in self._finished:
            self._finished.add(index)
            self._unfinished -= 1

    @property
    def finished(self) -> bool:
        """Whether every choice has said how it ended."""
        return self._unfinished <= 0

    def closed(self) -> bytes:
        if self.over:
            return b""
        if self.finished and not self._splitter.rest and (self.usage or not self._with_usage):
            self.over = True
            return DONE_EVENT
        raise StreamInterrupted(NO_END)


class AnthropicReading(Reading):
    """Messages: named events, content blocks, a stop reason, then `message_stop`.

    What `message_start` says of the usage is of the prompt alone: it is not kept once anything was generated.
    """

    EMPTY = frozenset({"message_start", "ping"})

    def __init__(self) -> None:
        super().__init__()
        self._stopped = False
        self._started: Mapping[str, Any] = {}

    def _read(self, event: bytes) -> bytes | None:
        data = data_of(event)
        if not data:
            return None
        document = loaded(data)
        kind = document.get("type")
        if kind == "error" or (kind is None and is_error(document)):
            raise from_document(500, document)
        if not isinstance(kind, str):
            raise StreamInterrupted(NO_CHUNK)
        if kind == "message_start":
            self.usage = (document.get("message") or {}).get("usage")
            self._started = self.usage or {}
        elif kind == "content_block_start":
            self._generated(0, "input_json_delta", (document.get("content_block") or {}).get("name"))
            self._distrust()
        elif kind == "content_block_delta":
            self._read_delta(document.get("delta") or {})
            self._distrust()
        elif kind == "message_delta" and document["delta"].get("stop_reason"):
            self._stopped = True
            if document.get("usage"):
                self.usage = {**self._started, **document["usage"]}
        if kind == "message_stop":
            if not self._stopped:
                raise StreamInterrupted("the engine's stream ended without a stop reason")
            self.over = True
        self.began = self.began or kind not in self.EMPTY
        return None

    def _read_delta(self, delta: dict[str, Any]) -> None:
        text = delta.get("text")
        if text:
            self.text.append(as_text(text))
        for name in ("thinking", "partial_json"):
            self._generated(0, delta.get("type") or name, delta.get(name))

    def _distrust(self) -> None:
        if not self._stopped and (self.text or self.beside):
            self.usage = None


class ResponsesReading(Reading):
    """Responses: named events, the last of which says how it ended."""

    LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})
    EMPTY = frozenset({"response.created", "response.queued", "response.in_progress"})

    def _read(self, event: bytes) -> bytes | None:
        data = data_of(event)
        if not data or data == sse.DONE:
            return None
        document = loaded(data)
        kind = document.get("type")
        if kind == "error" or (kind is None and is_error(document)):
            raise from_document(500, document)
        if not isinstance(kind, str):
            raise StreamInterrupted(NO_CHUNK)
        if kind == "response.failed" and not self.began:  # nothing is out: it can still be had elsewhere
            raise from_document(500, document["response"])
        self.began = self.began or kind not in self.EMPTY
        if kind == "response.output_text.delta":
            if document.get("delta"):
                self.text.append(as_text(document["delta"]))
        elif kind in RESPONSES_PIECES:
            self._generated(0, kind, document.get("delta"))
        elif kind == "response.output_item.added":
            self._generated(0, "response.function_call_arguments.delta", (document.get("item") or {}).get("name"))
        if kind not in self.LAST:
            return None
        self.over = True
        self.usage = document["response"].get("usage")
        # vLLM calls every end `response.completed`, also that of an answer which was cut short.
        if kind == "response.completed" and document["response"].get("status") == "incomplete":
            return b"event: response.incomplete\ndata: " + orjson.dumps(document | {"type": "response.incomplete"})
        return None


def reading_of(path: str, body: Mapping[str, Any], *, hide_usage: bool = False) -> Reading:
    """For the stream that this request is answered with."""
    if path == MESSAGES:
        return AnthropicReading()
    if path == RESPONSES:
        return ResponsesReading()
    usage = (body.get("stream_options") or {}).get("include_usage")
    return OpenAIReading(choices_wanted(body), with_usage=bool(usage) and not hide_usage, hide_usage=hide_usage)


def choices_wanted(body: Mapping[str, Any]) -> int:
    """`n` for each prompt: {"prompt": ["a", "b"], "n": 2} -> 4."""
    prompts = body.get("prompt")
    several = isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
    n = body.get("n")
    return (n if type(n) is int and n > 0 else 1) * (len(prompts) if several and prompts else 1)


def on_plain_lines(event: bytes) -> bytes:
    """An event without its end and with plain line ends: CR and CR LF are that too (WHATWG HTML, section 9.2)."""
    if b"\r" in event:
        event = event.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return event.strip(b"\n")


def data_of(event: bytes) -> bytes:
    """Its data; empty for a comment. Raises ValueError for one that is not text, StreamInterrupted for no event."""
    event.decode()  # what is no data is passed on too
    data = sse.parse(event).data
    if not data and not event.startswith(NO_DATA):
        raise StreamInterrupted(NO_CHUNK)
    return data


def loaded(data: bytes) -> dict[str, Any]:
    """An event's data. Raises StreamInterrupted for what is no JSON object: NaN, cut text, bad UTF-8."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise StreamInterrupted(NOT_JSON) from error
    if type(document) is not dict:
        raise StreamInterrupted(NO_CHUNK)
    return document


def is_error(document: Mapping[str, Any]) -> bool:
    return bool(document.get("error")) or document.get("object") == "error"
