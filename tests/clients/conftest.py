"""What the clients' tests share: a schema that any weights can fill, the engine behind the gateway, one with keys."""

import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio
import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import (
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageParam,
    ChatCompletionNamedToolChoiceParam,
)
from openai.types.responses import FunctionToolParam
from openai.types.shared_params import ResponseFormatJSONSchema
from pydantic import BaseModel, ConfigDict, Field

from engine import gauges
from tests.conftest import Served, free_port, running

KEY = "sk-of-the-clients-tests"
FREED_WITHIN_S = 1.0

# Room for a tool call: inside one the grammar allows white space, and untrained weights write plenty of it.
FORCED_TOKENS = 1500


class Weather(BaseModel):
    """The weather of some days."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Oslo", "Rome"]
    days: int = Field(ge=1, le=7)
    metric: bool


SCHEMA = Weather.model_json_schema()


HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]
TOO_LONG = "one two three " * 1000
LONG_TOKENS = 1900

# Whatever the weights, the answer is these words.
WORDS = "one two three"
BOUND = {"structured_outputs": {"regex": WORDS}}
ENDLESS = {"ignore_eos": True}

TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Tells the weather.", "parameters": SCHEMA},
}
THE_TOOL: ChatCompletionNamedToolChoiceParam = {"type": "function", "function": {"name": "get_weather"}}
FORMAT: ResponseFormatJSONSchema = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
RESPONSES_TOOL: FunctionToolParam = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}


class Engine:
    """vLLM itself, asked on its own socket what it is doing."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client

    def figure(self, name: str) -> float:
        return gauges.read(self.client.get("/metrics").text)[name]

    async def generates(self, tokens: int) -> None:
        """Returns once it has generated so many more."""
        enough = self.figure("generation_tokens") + tokens
        with anyio.fail_after(60):
            while self.figure("generation_tokens") < enough:
                await anyio.sleep(0.01)

    @asynccontextmanager
    async def freed_after(self, tokens: int) -> AsyncIterator[None]:
        """The block leaves a request that asks for so many tokens: its slot is free in time, not by having ended."""
        before = self.figure("generation_tokens")
        yield
        with anyio.fail_after(FREED_WITHIN_S):
            while self.figure("running"):
                await anyio.sleep(0.01)
        assert self.figure("generation_tokens") - before < tokens


@pytest.fixture(scope="session")
def engine(demo: Served) -> Iterator[Engine]:
    found = re.search(r"--uds (\S+)", demo.text)
    assert found
    transport = httpx2.HTTPTransport(uds=found[1])
    with httpx2.Client(transport=transport, base_url="http://engine") as client:
        yield Engine(client)


@pytest.fixture(scope="session")
def keyed(demo: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A second gateway, before the first, that lets in whoever has KEY."""
    folder = tmp_path_factory.mktemp("keyed")
    config = folder / "penstock.yaml"
    tree = {
        "gateway": {"keys": [KEY]},
        "engines": {"first": {"urls": [demo.url]}},
        "models": {"demo": {"engine": "first"}},
    }
    config.write_text(json.dumps(tree))
    port = free_port()
    command = [str(Path(sys.executable).with_name("penstock")), "serve", "-c", str(config), "--port", str(port)]
    unset = {name: "" for name in os.environ if name.startswith("PENSTOCK_")}  # meant for the first
    with running(command, port, folder, **unset) as served:
        yield served


@pytest.fixture(scope="module")
def client(demo: Served) -> Iterator[OpenAI]:
    url = f"{demo.url}/v1"
    with OpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture
async def async_client(demo: Served) -> AsyncIterator[AsyncOpenAI]:
    url = f"{demo.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture(scope="module")
def lenient(demo: Served) -> Iterator[OpenAI]:
    """For plain completions, whose nulls OpenAI itself sends and the client's types do not allow."""
    with OpenAI(base_url=f"{demo.url}/v1", api_key="any", max_retries=0) as client:
        yield client
