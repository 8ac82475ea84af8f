"""A conversation at the terminal, with a gateway as the `Chat`."""

import asyncio

import httpx2
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from engine.failures import from_answer
from engine.openai import OpenAIChat
from engine.pool import Pool
from engine.replica import Replica
from penstock.chat import Chat, ChatRequest, Delta, Message
from penstock.errors import EngineUnavailable, PenstockError

TIMEOUT_S = 30


def served_models(url: str, key: str | None) -> list[str]:
    """What GET /v1/models lists. Raises PenstockError."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx2.get(f"{url.rstrip('/')}/v1/models", headers=headers, timeout=TIMEOUT_S, trust_env=False)
    except httpx2.HTTPError as error:
        raise EngineUnavailable(f"no gateway answers at {url}: `penstock serve` starts one") from error
    if answer.status_code != 200:
        raise from_answer(answer.status_code, answer.content)
    return [model["id"] for model in answer.json()["data"]]


def converse(url: str, key: str | None, model: str | None, message: str | None) -> None:
    """Answers `message`, or what the person types until end of file. Between turns nothing runs, so that Ctrl-C ends
    it at once."""
    name = model or served_models(url, key)[0]
    console = Console()
    replica = Replica.at("gateway", url, key)
    replica.set_ready(True)
    chat = OpenAIChat(Pool("gateway", [replica], wait_s=0))
    with asyncio.Runner() as runner:
        try:
            if message is not None:
                runner.run(streamed(chat, turn(name, [], message), console))
            else:
                conversation(runner, chat, name, console)
        finally:
            replica.close()


def conversation(runner: asyncio.Runner, chat: Chat, model: str, console: Console) -> None:
    """A turn that fails is told and forgotten; the ones before it stand."""
    history: list[Message] = []
    while True:
        try:
            asked = console.input("[bold]> [/]")
        except EOFError:
            return
        if not asked.strip():
            continue
        request = turn(model, history, asked)
        try:
            history = [*request.messages, runner.run(streamed(chat, request, console))]
        except PenstockError as error:
            console.print(error.message, style="red", markup=False)


def turn(model: str, history: list[Message], asked: str) -> ChatRequest:
    return ChatRequest(model=model, messages=[*history, Message(role="user", content=asked)])


async def streamed(chat: Chat, request: ChatRequest, console: Console) -> Message:
    """The answer, drawn as it comes: Markdown on a terminal, plain text elsewhere."""
    text = ""
    if not console.is_terminal:

        async def write(delta: Delta) -> None:
            console.out(delta.content, end="", highlight=False)

        reply = await chat(request, write)
        console.print()
        return reply.message
    with Live(console=console, vertical_overflow="visible") as live:

        async def draw(delta: Delta) -> None:
            nonlocal text
            text += delta.content
            live.update(Markdown(text))

        return (await chat(request, draw)).message
