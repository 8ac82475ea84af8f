"""Callers that ask one served model again and again, streaming and not, and look at every answer to its end."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson

VERSION = "x-penstock-model-version"
POLL_S = 0.02
ALONE = 40


@dataclass
class Load:
    """`failed` are requests without a whole answer, `cut` streams without their end; `answers` are by version."""

    url: str
    model: str
    prompts: Sequence[Any]
    callers: int = 2
    pause_s: float = 0.1
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    cut: int = 0
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    last: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        numbers = itertools.count()
        stop = asyncio.Event()
        async with (
            httpx2.AsyncClient(base_url=self.url, timeout=60, trust_env=False) as client,
            asyncio.TaskGroup() as callers,
        ):
            for _ in range(self.callers):
                callers.create_task(self._ask_on(client, numbers, stop))
            try:
                yield
            finally:
                stop.set()

    async def until(self, version: str, within_s: float, *, alone: bool = False) -> float:
        """Seconds until it answers; `alone`: until nothing else does any more. Raises SystemExit."""
        began, seen = time.monotonic(), len(self.last)
        while time.monotonic() - began < within_s:
            new = self.last[seen:]
            if alone and len(new) >= ALONE and set(new[-ALONE:]) == {version}:
                return time.monotonic() - began
            if not alone and version in new:
                return time.monotonic() - began
            await asyncio.sleep(POLL_S)
        raise SystemExit(f"{version} did not answer within {within_s} s: {self.report()}")

    def report(self) -> dict[str, Any]:
        answers = {version: dict(counts.most_common(3)) for version, counts in self.answers.items()}
        return {"requests": self.requests, "failed": len(self.failed), "cut": self.cut, "answers": answers} | (
            {"failures": self.failed[:5]} if self.failed else {}
        )

    async def _ask_on(self, client: httpx2.AsyncClient, numbers: "itertools.count[int]", stop: asyncio.Event) -> None:
        while not stop.is_set():
            number = next(numbers)
            body = {"model": self.model, "messages": self.prompts[number % len(self.prompts)], "max_tokens": 24}
            body |= {"temperature": 0, "stream": number % 2 == 0}
            self.requests += 1
            try:
                await self._ask(client, body, f"session-{number}")
            except (httpx2.HTTPError, ValueError, LookupError) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(self.pause_s)

    async def _ask(self, client: httpx2.AsyncClient, body: dict[str, Any], session: str) -> None:
        answer = await client.post(
            "/v1/chat/completions", content=orjson.dumps(body), headers={"x-session-id": session}
        )
        if answer.status_code != 200:
            self.failed.append(f"{answer.status_code}: {answer.text[:200]}")
            return
        if not body["stream"]:
            text = orjson.loads(answer.content)["choices"][0]["message"]["content"]
        else:
            events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
            if not events or events[-1] != "[DONE]":
                self.cut += 1
                return
            said = [orjson.loads(event) for event in events[:-1]]
            text = "".join(c["delta"].get("content") or "" for one in said for c in one["choices"])
        version = answer.headers[VERSION]
        self.answers.setdefault(version, Counter())[text] += 1
        self.last.append(version)
