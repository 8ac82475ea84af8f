"""Follows one publisher of KV events over ZeroMQ.

A message is (topic, number, payload): batches are numbered from 0 in a publisher's life, 8 bytes big-endian. What was
missed is asked for with a number and comes as (empty, topic, number, payload) each, until a number of -1.
"""

import asyncio
import logging
import secrets

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from engine.cached import Cached
from engine.kv_batch import AllBlocksCleared, BlockRemoved, BlockStored, Event, decoded, is_near
from engine.kv_events import Source
from penstock.errors import StartError

log = logging.getLogger(__name__)

# What a slow reader may have waiting before the publisher drops: vLLM's own default on its side.
MAX_WAITING = 100_000
RECONNECT_MS, RECONNECT_MAX_MS = 100, 5_000
# Without a sign of life for this long the publisher's machine counts as gone, and what it cached with it.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 15_000
NO_MORE = (-1).to_bytes(8, signed=True)

WATCHED = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.CONNECT_RETRIED | zmq.Event.DISCONNECTED
# The kinds of attention that need the whole prefix; a sliding window's blocks come and go inside it.
WHOLE_PREFIX = frozenset({None, "full_attention", "mla_attention", "sink_full_attention"})


class Subscriber:
    """`_next` is the number of the batch that must come next."""

    def __init__(self, source: Source, cached: Cached, replay_timeout_s: float) -> None:
        self.source = source
        self.cached = cached
        self.replay_timeout_s = replay_timeout_s
        self.context = zmq.asyncio.Context.instance()  # one ZeroMQ thread, whatever the number of replicas
        self._next = 0
        self._group: int | None = None
        self._warned: set[str] = set()

    async def run(self) -> None:
        self._start_over()
        with self.context.socket(zmq.SUB) as subscriber:
            subscriber.rcvhwm = MAX_WAITING
            subscriber.subscribe(self.source.topic)
            with subscriber.get_monitor_socket(WATCHED, f"inproc://{secrets.token_hex(8)}") as monitor:
                try:
                    connect(subscriber, self.source.endpoint)
                    await self._listen(subscriber, monitor)
                finally:
                    subscriber.disable_monitor()

    async def _listen(self, subscriber: zmq.asyncio.Socket, monitor: zmq.asyncio.Socket) -> None:
        poller = zmq.asyncio.Poller()
        poller.register(monitor, zmq.POLLIN)
        poller.register(subscriber, zmq.POLLIN)
        while True:
            ready = dict(await poller.poll())
            if monitor in ready:
                await self._connection(parse_monitor_message(await monitor.recv_multipart())["event"])
            elif subscriber in ready:
                await self._received(*await subscriber.recv_multipart())

    async def _connection(self, event: int) -> None:
        match event:
            case zmq.Event.HANDSHAKE_SUCCEEDED:
                log.info("following the KV events of %s", self.source.endpoint)
                self._warned.clear()
                if self.source.replay:
                    await self._catch_up(self.source.replay)
            case zmq.Event.CONNECT_RETRIED:
                self._warn("nothing listens there", "is the engine up, with --kv-events-config, and the port open?")
            case zmq.Event.DISCONNECTED:
                self._start_over()  # who publishes here next has another cache, or this one after changes

    async def _received(self, *frames: bytes) -> None:
        number, payload = int.from_bytes(frames[-2]), frames[-1]
        if number == 0:
            self._start_over()
        if number > self._next and self.source.replay:
            await self._catch_up(self.source.replay)
        if number >= self._next:  # else it came with what was repeated
            self._take(number, payload)

    async def _catch_up(self, replay: str) -> None:
        """Takes what the publisher still has from `_next` on."""
        with self.context.socket(zmq.DEALER) as socket:
            connect(socket, replay)
            await socket.send_multipart([b"", self._next.to_bytes(8)])
            try:
                while True:
                    async with asyncio.timeout(self.replay_timeout_s):
                        *_, number, payload = await socket.recv_multipart()
                    if number == NO_MORE:
                        return
                    self._take(int.from_bytes(number), payload)
            except TimeoutError:
                self._warn("what was missed is not repeated", f"is {replay} open?")

    def _start_over(self) -> None:
        self.cached.cleared()
        self._next = 0

    def _take(self, number: int, payload: bytes) -> None:
        if number != self._next:
            self.cached.cleared()  # a removal may have been among what was missed
        self._next = number + 1
        try:
            for event in decoded(payload):
                self._apply(event)
        except (msgspec.MsgspecError, ValueError) as error:
            self.cached.cleared()
            self._warn("a batch of events cannot be read, so nothing is known", str(error))

    def _apply(self, event: Event) -> None:
        match event:
            case AllBlocksCleared():
                self.cached.cleared()
            case BlockStored() if event.fills_blocks and self._counts(event):
                count = event.plain_blocks
                tokens = event.token_ids[: count * event.block_size]
                names, parent = event.block_hashes[:count], event.parent_block_hash
                self.cached.stored(names, parent, tokens, event.block_size, event.salt)
            case BlockRemoved() if is_near(event) and event.group_idx == self._group:
                self.cached.removed(event.block_hashes)

    def _counts(self, event: BlockStored) -> bool:
        """Layers of different kinds are cached in groups, with the same hashes: one group is followed."""
        if not is_near(event) or event.kv_cache_spec_kind not in WHOLE_PREFIX:
            return False
        if not len(self.cached):
            self._group = event.group_idx
        return event.group_idx == self._group

    def _warn(self, what: str, more: str) -> None:
        """Once per connection."""
        if what not in self._warned:
            log.warning("%s: %s: %s", self.source.endpoint, what, more)
        self._warned.add(what)


def connect(socket: zmq.asyncio.Socket, endpoint: str) -> None:
    """Now, or as soon as somebody listens there. Raises StartError for what is no endpoint."""
    socket.linger = 0
    socket.ipv6 = "[" in endpoint
    socket.reconnect_ivl, socket.reconnect_ivl_max = RECONNECT_MS, RECONNECT_MAX_MS
    socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise StartError(f"{endpoint!r} is no place to connect to: write tcp://HOST:PORT or ipc:///PATH") from error
