"""Server-sent events, incrementally (WHATWG HTML, section 9.2), as far as OpenAI's and Anthropic's streams use them."""

from dataclasses import dataclass

from penstock.errors import EngineError

DONE = b"[DONE]"
MAX_EVENT_BYTES = 16 * 2**20


class EventSplitter:
    """Bytes in any pieces in, whole events out, each with the blank line that ends it.

    `feed(b"data: 1\\n\\ndata")` -> [b"data: 1\\n\\n"]; `rest` is then b"data". A piece may end inside a UTF-8
    character: an event never does. CR LF line ends are understood.
    """

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Raises EngineError when an event grows beyond MAX_EVENT_BYTES without an end."""
        buffer = self.rest + piece
        events = []
        start = 0
        searched = max(0, len(self.rest) - 3)  # a blank line may have begun in the piece before
        while end := blank_line(buffer, max(start, searched)):
            events.append(buffer[start:end])
            start = end
        self.rest = buffer[start:]
        if len(self.rest) > MAX_EVENT_BYTES:
            raise EngineError("the engine sent an event without an end")
        return events


def blank_line(buffer: bytes, start: int) -> int:
    """The index just after the next empty line from `start`, 0 if there is none."""
    plain = buffer.find(b"\n\n", start)
    carriage = buffer.find(b"\r\n\r\n", start)
    if carriage != -1 and (plain == -1 or carriage < plain):
        return carriage + 4
    return plain + 2 if plain != -1 else 0


@dataclass(frozen=True, slots=True)
class Event:
    """An event's name, empty for OpenAI's, with its data lines joined."""

    name: str
    data: bytes


def parse(event: bytes) -> Event:
    """b"event: ping\\ndata: {}\\n\\n" -> Event("ping", b"{}"). Comments and other fields are left out."""
    name = ""
    data: list[bytes] = []
    for line in event.splitlines():
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if key == b"data":
            data.append(value)
        elif key == b"event":
            name = value.decode(errors="replace")
    return Event(name, b"\n".join(data))
