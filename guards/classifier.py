"""Guards that are models: served here like any other, asked for a class and not for an answer.

How each family is asked and what it says are its model card's: Llama Guard 3 (Meta, 2024), Prompt Guard 2 (Meta, 2025),
ShieldGemma (Google, arXiv:2407.21772).
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from guards.guard import NOTHING, Asking, Look, Looked, Opinion
from guards.texts import AS_ENGINES_JOIN, Noted, changed
from guards.tokens import cut, frame_of, tokens_of
from penstock.chat import Chat, ChatRequest, Message, silent
from penstock.errors import ContextLengthExceeded, EngineError
from penstock.steps import Parts

HAZARDS = (
    "violent_crimes nonviolent_crimes sex_crimes child_exploitation defamation specialized_advice privacy "
    "intellectual_property indiscriminate_weapons hate self_harm sexual elections code_interpreter_abuse"
).split()
"""Llama Guard's S1 to S14."""
GUIDELINES = {
    "dangerous": "The text must not help anybody to hurt themselves or others, such as by instructions for weapons.",
    "harassment": "The text must not threaten, bully or abuse a person.",
    "hate": "The text must not attack or dehumanize people for what they are, such as their origin or religion.",
    "sexual": "The text must not be sexually explicit.",
}
WINDOW_CHARS = 1200
"""Prompt Guard reads 512 tokens: longer texts come in windows, of which the worst counts. Where these have more tokens,
as Chinese has and as anybody can make them have, they are cut anew by the tokens themselves."""
OVERLAP_CHARS = 200
OVERLAP_TOKENS = 64


class Classifier(Asking):
    """A served model that says whether a text is harmful."""

    model: str = Field(description="the served model that is asked")
    kind: Literal["llama_guard", "prompt_guard", "shieldgemma"] = Field(description="how it is asked")
    threshold: float = Field(0.5, gt=0, le=1, description="how sure it must be, of 1; Llama Guard says yes or no")
    categories: tuple[str, ...] = Field((), description="those that count [default: all], as verdicts name them")
    guidelines: dict[str, str] = Field(GUIDELINES, description="what ShieldGemma is to hold a text to, by category")

    @property
    def target(self) -> str:
        return self.model

    def look(self, parts: Parts) -> Look:
        chat = parts.chat(self.model)  # also of one that is no chat: whether there is one
        if self.kind == "prompt_guard":
            return self._counted(lambda looked: injected(parts, self.model, looked.texts))
        if self.kind == "llama_guard":
            return self._counted(lambda looked: hazards(chat, self.model, looked))
        return self._counted(lambda looked: against(chat, self.model, looked, self.guidelines))

    def _counted(self, ask: Any) -> Look:
        async def look(looked: Looked) -> Opinion:
            found: Mapping[str, float] = await ask(looked)
            kinds = {
                kind: score
                for kind, score in found.items()
                if score >= self.threshold and (not self.categories or kind in self.categories)
            }
            return Opinion(kinds) if kinds else NOTHING

        return look


async def hazards(chat: Chat, model: str, looked: Looked) -> dict[str, float]:
    """Llama Guard's template makes the prompt of the conversation; it says `safe`, or `unsafe` and on the next line
    the hazards, S1,S10. Raises EngineError for anything else."""
    request = ChatRequest(model=model, messages=conversation(looked), temperature=0, max_tokens=32)
    said = (await chat(request, silent)).message.text.strip()
    if said.lower() == "safe":
        return {}
    verdict, _, named = said.partition("\n")
    if verdict.strip().lower() != "unsafe":
        raise EngineError(f"{model} says neither safe nor unsafe")
    numbers = [int(number) for number in re.findall(r"\bS(\d{1,2})\b", named)]
    return {HAZARDS[number - 1]: 1.0 for number in numbers if 0 < number <= len(HAZARDS)} or {"unsafe": 1.0}


async def injected(parts: Parts, model: str, texts: Sequence[str]) -> dict[str, float]:
    """The worst of what Prompt Guard thinks of the texts: one less the probability of its first class, which is the
    harmless one of all its versions."""
    inputs: Sequence[Any] = [window for text in texts if text.strip() for window in windows(text)]
    if not inputs:
        return {}
    try:
        answer = await parts.ask(model, "/classify", {"input": inputs})
    except ContextLengthExceeded:
        inputs = await windows_of_tokens(parts, model, [text for text in texts if text.strip()])
        answer = await parts.ask(model, "/classify", {"input": inputs})
    scores = [1 - each["probs"][0] for each in answer["data"]]
    if len(scores) != len(inputs):
        raise EngineError(f"{model} has not classified all that it was given")
    return {"injection": max(scores)}


def windows(text: str) -> list[str]:
    step = WINDOW_CHARS - OVERLAP_CHARS
    return [text[start : start + WINDOW_CHARS] for start in range(0, max(len(text) - OVERLAP_CHARS, 1), step)]


async def windows_of_tokens(parts: Parts, model: str, texts: Sequence[str]) -> list[list[int]]:
    frame = await frame_of(parts, model)
    overlap = min(OVERLAP_TOKENS, frame.room // 4)
    found = await tokens_of(parts, model, texts, frame)
    return [frame.text(window) for tokens in found for window in cut(tokens, frame.room, overlap)]


async def against(chat: Chat, model: str, looked: Looked, guidelines: Mapping[str, str]) -> dict[str, float]:
    """ShieldGemma's template takes a guideline; how likely its first token is `Yes`, beside `No`."""
    found = {}
    for name, guideline in guidelines.items():
        request = ChatRequest(
            model=model,
            messages=conversation(looked),
            chat_template_kwargs={"guideline": guideline},
            temperature=0,
            max_tokens=1,
            logprobs=True,
            top_logprobs=20,
        )
        reply = await chat(request, silent)
        tokens = ((reply.logprobs or {}).get("content") or [{}])[0].get("top_logprobs") or ()
        weights = {each["token"].strip(): math.exp(each["logprob"]) for each in reversed(tokens)}
        yes, no = weights.get("Yes", 0.0), weights.get("No", 0.0)
        if not yes + no:
            raise EngineError(f"{model} says neither Yes nor No, or tells no log-probabilities")
        found[name] = yes / (yes + no)
    return found


def conversation(looked: Looked) -> list[Message]:
    """What is to be judged as its last turn: one of the user, or with an answer one of the assistant. What tools
    say, and what stands beside the turns, is told as what the user says, since these templates know no others."""
    turns: list[Message] = []
    for message in looked.request.messages if looked.request else [Message(role="user", content=joined(looked))]:
        role: Literal["assistant", "user"] = "assistant" if message.role == "assistant" else "user"
        text = message.text
        if not text:
            continue
        if turns and turns[-1].role == role:  # they alternate, or the template refuses
            turns[-1] = Message(role=role, content=f"{turns[-1].text}\n\n{text}")
        else:
            turns.append(Message(role=role, content=text))
    if others := beside(looked.request):
        if turns and turns[-1].role == "user":
            others = f"{turns.pop().text}\n\n{others}"
        turns.append(Message(role="user", content=others))
    if looked.answer:
        said = joined(looked)
        if not turns or turns[-1].role == "assistant":
            turns.append(Message(role="user", content="Go on."))
        turns.append(Message(role="assistant", content=said))
    return turns or [Message(role="user", content=joined(looked))]


def beside(request: ChatRequest | None) -> str:
    """What a model reads of a request that is in no turn's text: tools, documents, the arguments of earlier calls."""
    if request is None:
        return ""
    texts = Noted()
    changed(request, texts)
    said = {message.text for message in request.messages}
    for message in request.messages:
        if isinstance(message.content, list):
            in_parts = [part["text"] for part in message.content if isinstance(part.get("text"), str)]
            said |= {*in_parts, AS_ENGINES_JOIN.join(in_parts)}
    return "\n\n".join(text for text in dict.fromkeys(texts) if text.strip() and text not in said)


def joined(looked: Looked) -> str:
    return "\n\n".join(text for text in looked.texts if text.strip())
