"""Images, audio and video in a body: found wherever an engine would look, counted, and their addresses judged.

An engine fetches what it is given an address of, from inside the network it stands in. So it is given none: media are
`data:` URLs, or are fetched here first (`serving/fetching.py`), from public addresses.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from engine.affinity import CHARS_PER_TOKEN
from penstock.errors import BadRequest
from serving.pixels import pixels_of

URLS = frozenset({"image_url", "audio_url", "video_url", "file_url"})
DATA = frozenset({"data", "file_data"})
# Serialized tensors, which the engine unpacks, and names of media that another request may have brought.
RAW_PARTS = frozenset({"image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "image_pil", "uuid"})
SCHEMAS = frozenset({"input_schema", "parameters"})
CALLS = frozenset({"tool_use", "server_tool_use"})  # their `input` is the model's own, and no part

# A dialect that leaves nothing to be read in two ways: no user, no backslash, no control character, no other script.
URL = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?(/[!-~]*|\?[!-~]*)?", re.I | re.A)
MAX_URL_CHARS = 8192
PORTS = {"http": 80, "https": 443}
FIRST_UNPRIVILEGED_PORT = 1024


@dataclass(frozen=True, slots=True)
class Medium:
    """`holder[key]` is its URL or its data; `where` is how the caller would write that."""

    holder: dict[str, Any]
    key: str
    where: str
    is_image: bool = False

    @property
    def text(self) -> str:
        text: str = self.holder[self.key]
        return text

    @property
    def is_remote(self) -> bool:
        return self.key not in DATA and not self.text.startswith("data:")

    @property
    def parts(self) -> int:
        """A `data:` URL may hold many: frames after commas."""
        return max(1, self.text.count(",")) if self.key not in DATA else 1

    @property
    def size_bytes(self) -> int:
        """About as much as its base64 decodes to."""
        return len(self.text) * 3 // 4

    @property
    def pixels(self) -> int | None:
        """Of an image, and of the images that a video may be; None where it cannot be told."""
        spec, _, data = ("", "", self.text) if self.key in DATA else self.text.partition(",")
        if self.is_image:
            return pixels_of(data) if self.key in DATA or spec.endswith(";base64") else None
        if not spec.startswith("data:video/jpeg"):
            return 0
        frames = [pixels_of(frame) for frame in data.split(",")]
        return None if None in frames else sum(filter(None, frames))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a URL leads. `path` is what a server is asked for."""

    scheme: str
    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class RawPart:
    """Something in a prompt's parts that takes the scope `raw-fields`."""

    name: str
    where: str


@dataclass(frozen=True, slots=True)
class Schema:
    """What a tool takes that is offered in the middle of a conversation."""

    value: Any
    where: str


Found = Medium | RawPart | Schema
Step = tuple["Step | None", str]
MOST_VALUES = 200_000
MOST_PATH_CHARS = 256


def found_in(value: Any, where: str) -> Iterator[Found]:
    """All that stands in a prompt, however deep: in parts, in results of tools, in documents."""
    stack: list[tuple[Any, Step]] = [(value, (None, where))]
    seen = 0
    while stack:
        node, step = stack.pop()
        seen += len(node) if type(node) in (dict, list) else 0
        if seen > MOST_VALUES:
            raise BadRequest(f"{where} holds more than {MOST_VALUES} values", param=where)
        if type(node) is list:
            stack.extend((item, (step, f"[{index}]")) for index, item in enumerate(node) if type(item) in (dict, list))
        elif type(node) is dict:
            yield from found_at(node, step, stack)


def found_at(node: dict[str, Any], step: Step, stack: list[tuple[Any, Step]]) -> Iterator[Found]:
    """What one object holds itself; what it holds deeper goes on the stack."""
    kind = node["type"] if type(node.get("type")) is str else ""
    if kind in RAW_PARTS:
        yield RawPart(kind, path_of(step))
    for name, inner in node.items():
        if name in RAW_PARTS and inner is not None:
            yield RawPart(name, path_of((step, name)))
        elif type(inner) is str:
            if name in URLS or (name in DATA and kind != "redacted_thinking"):
                yield Medium(node, name, path_of((step, name)), name == "image_url")
        elif type(inner) is dict and (name in URLS or name == "source"):
            for key in ("url", "data"):
                if type(inner.get(key)) is str:
                    where = path_of(((step, name), key))
                    yield Medium(inner, key, where, name == "image_url" or kind == "image")
        elif type(inner) in (dict, list) and not (name == "input" and kind in CALLS):
            if name in SCHEMAS:
                yield Schema(inner, path_of((step, name)))
            stack.append((inner, (step, name)))


def path_of(step: Step) -> str:
    """((None, "messages"), "[0]"), "content") -> messages[0].content. Written only where it is needed: a path for
    each of a million values would cost more than the values. Long ones lose their middle."""
    words: list[str] = []
    before: Step | None = step
    while before is not None:
        before, word = before
        words.append(word[:MOST_PATH_CHARS])
    path = words.pop()
    for word in reversed(words):
        path += word if word[0:1] == "[" else f".{word}"
        if len(path) > MOST_PATH_CHARS:
            return path[:MOST_PATH_CHARS] + "..."
    return path


def address_of(medium: Medium) -> Address:
    """Raises BadRequest for what is no http or https URL, or could be taken for two."""
    url = medium.text
    found = URL.fullmatch(url) if len(url) <= MAX_URL_CHARS and "\\" not in url else None
    if not found:
        raise refused(medium, "it must be a data: URL, or https://HOST/PATH in plain ASCII without user or backslash")
    scheme, host = found[1].lower(), found[2].lower().removesuffix(".")
    port = int(found[3]) if found[3] else PORTS[scheme]
    if port != PORTS[scheme] and not FIRST_UNPRIVILEGED_PORT <= port <= 65535:
        raise refused(medium, f"the port {port} is none that media are fetched from")
    if is_odd_number(host):
        raise refused(medium, "an IP address must be written in its usual form")
    path = found[4] or "/"
    return Address(scheme, host.strip("[]"), port, path if path.startswith("/") else f"/{path}")


def is_odd_number(host: str) -> bool:
    """Whether some resolver takes it for an IP address that is not written as one: 127.1, 0x7f000001, 2130706433."""
    if host.startswith("["):
        return not is_ip(host.strip("[]"))
    last = host.rpartition(".")[2]
    return bool(re.fullmatch(r"[0-9]+|0x[0-9a-f]*", last)) and not is_ip(host)


def is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def refused(medium: Medium, reason: str) -> BadRequest:
    return BadRequest(f"{medium.where}: {reason}", param=medium.where)


def characters(value: Any) -> int:
    """How much text there is in a prompt; a token's number is four characters, media are none."""
    total = 0
    stack = []
    for turn in value if type(value) is list else (value,):
        if type(turn) is dict and len(turn) == 2 and type(turn.get("content")) is str:
            total += len(turn["content"])
        else:
            stack.append(turn)
    while stack:
        node = stack.pop()
        kind = type(node)
        if kind is str:
            total += len(node)
        elif kind is int:
            total += CHARS_PER_TOKEN
        elif kind is list:
            stack.extend(node)
        elif kind is dict:
            stack.extend(inner for name, inner in node.items() if not is_medium(name, inner))
    return total


def is_medium(name: str, inner: Any) -> bool:
    if name in DATA or name in URLS:
        return True
    return name == "source" and isinstance(inner, Mapping)
