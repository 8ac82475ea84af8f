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
        answer = httpx2.get(f"{url.rstrip('/')}/v1/models", headers=headers, timeout=TIMEOUT_S)
    except httpx2.HTTPError as error:
        raise EngineUnavailable(f"no gateway answers at {url}: `penstock serve` starts one") from error
    if answer.status_code != 200:
        raise from_answer(answer.status_code, answer.content)
    return [model["id"] for model in answer.json()["data"]]


def converse(url: str, key: str | None, model: str | None, message: str | None) -> None:
    """Answers `message`, or what the person types until end of file."""
    name = model or served_models(url, key)[0]
    asyncio.run(talk(url, key, name, message, Console()))


async def talk(url: str, key: str | None, model: str, message: str | None, console: Console) -> None:
    replica = Replica.at("gateway", url, key)
    replica.ready.set()
    chat = OpenAIChat(Pool("gateway", [replica], wait_s=0))
    try:
        if message is not None:
            await streamed(chat, ChatRequest(model=model, messages=[Message(role="user", content=message)]), console)
        else:
            await conversation(chat, model, console)
    finally:
        await replica.close()


async def conversation(chat: Chat, model: str, console: Console) -> None:
    """Until end of file. A turn that fails is told and forgotten; the ones before it stand."""
    history: list[Message] = []
    while (asked := await typed(console)) is not None:
        if not asked.strip():
            continue
        request = ChatRequest(model=model, messages=[*history, Message(role="user", content=asked)])
        try:
            history = [*request.messages, await streamed(chat, request, console)]
        except PenstockError as error:
            console.print(error.message, style="red", markup=False)


async def typed(console: Console) -> str | None:
    """The next line, None at end of file."""
    try:
        return await asyncio.to_thread(console.input, "[bold]> [/]")
    except EOFError:
        return None


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
