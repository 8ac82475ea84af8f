"""A policy: guards with a name, around one stream of events, so that no route, call of a tool or choice goes past them.

A request passes on its way in (`input.py`): every text is looked at; what is masked gets a placeholder, what is blocked
is refused. Its answer passes on its way out (`output.py`).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field

from guards.guard import NOTHING, Guard, Looked, aside, chars_to_look
from guards.hold_back import found as spans_of
from guards.input import Input, given
from guards.looking import Watch, asked
from guards.output import Output, Passing
from guards.texts import MEDIA
from guards.vault import Vault
from guards.verdicts import Verdicts
from penstock.chat import Chat, ChatRequest, Emit, Reply
from penstock.errors import BadRequest
from penstock.steps import Around, OnInput, Parts, Step

SHOWING = (
    "logprobs top_logprobs prompt_logprobs logprob_token_ids return_token_ids return_tokens_as_token_ids "
    "return_token_offsets return_prompt_text enable_response_messages return_hidden_states echo"
).split()
"""Fields that show, beside the text of an answer, what is masked or held back in it."""
UNSEEN = (
    "prompt_embeds input_embeds previous_input_messages chat_template mm_payload kv_transfer_params "
    "ec_transfer_params disaggregated_params logits_processors custom_logit_processor"
).split()
"""Fields that bring into a prompt, or an answer, what no guard can look at."""

CONTINUED = "continue_final_message"
"""With it the model ends what the caller has begun: a match across both would be in no text."""


class Options(Step):
    """What holds for all guards of a policy: the entry `policy` in its list."""

    whole: Literal["buffer", "end"] = Field(
        "buffer",
        description="where a guard needs the whole answer: buffer: nothing is sent before its verdict; end: the answer "
        "streams, and a bad verdict ends it",
    )
    media: Literal["pass", "refuse"] = Field(
        "pass", description="images, audio and video, which no guard here looks into"
    )


class Policy(Options):
    """`guards`, each with the name that metrics and logs have for it."""

    name: str
    guards: tuple[tuple[str, Guard], ...]

    def files(self, folder: Path) -> Sequence[Path]:
        return [file for _, guard in self.guards for file in guard.files(folder)]

    def around(self, parts: Parts) -> Around:
        made = Made(self, parts)

        return lambda chat: partial(made.answer, chat)

    def on_input(self, parts: Parts) -> OnInput | None:
        made = Made(self, parts)
        return made.texts


class Made:
    """A policy's guards as they are used. Raises StartError for options that cannot be."""

    def __init__(self, policy: Policy, parts: Parts) -> None:
        watches = [Watch.of(name, guard, parts.for_guard(f"{policy.name}.{name}")) for name, guard in policy.guards]
        self.policy = policy
        self.watches = watches
        self.unmasks = any(watch.guard.unmasks for watch in watches)
        self.input = Input([watch for watch in watches if watch.guard.on != "output"])
        self.output = Output([watch for watch in watches if watch.guard.on != "input"], policy.whole)

    @property
    def kinds(self) -> list[str]:
        """All that can be told beforehand."""
        return sorted({kind for watch in self.watches for detector in watch.detectors for kind in detector.kinds})

    async def weighed(self, text: str) -> dict[str, float]:
        """What all guards find in a text, by kind, from 0 to 1, whichever way they look and whatever they would do.
        Raises GuardFailed."""
        verdicts = Verdicts(self.policy.name)
        found: dict[str, float] = {}
        try:
            for watch in self.watches:
                verdicts.ran(watch.name, "input")
                chars = chars_to_look(len(text), watch.detectors)
                spans = await aside(chars, lambda watch=watch: spans_of(watch.detectors, text))  # type: ignore[misc]
                kinds = [span.kind for span in spans]
                opinion = await asked(watch, Looked("input", [text]), verdicts) if watch.look else NOTHING
                for kind, score in {**dict.fromkeys(kinds, 1.0), **opinion.kinds}.items():
                    verdicts.found(watch.name, "input", "flag", kind)
                    found[kind] = max(score, found.get(kind, 0.0))
        finally:
            verdicts.tell()
        return found

    async def answer(self, chat: Chat, request: ChatRequest, emit: Emit) -> Reply:
        """Raises ContentFiltered for a request that is blocked, GuardFailed for what could not be looked at."""
        self._check(request)
        verdicts = Verdicts(self.policy.name)
        vault = Vault(given(request, unmasks=self.unmasks))
        try:
            request = await self.input.request(request, vault, verdicts)
            if self.output.nothing_to_do(vault):
                return await chat(request, emit)
            across = await self.output.across(request, verdicts)
            with Passing(self.output, request, emit, vault, verdicts, across) as passing:
                try:  # here and in no call of its own: each one costs every piece of the answer
                    reply = await chat(request, passing.heard)
                except Exception:  # of a step that has wrapped `Ended` in its own, too
                    if not passing.over:
                        raise
                    return await passing.ended()
                return await passing.whole(reply)
        finally:
            verdicts.tell()

    async def texts(self, texts: Sequence[str]) -> Sequence[str]:
        """Those of a request that generates nothing."""
        verdicts = Verdicts(self.policy.name)
        try:
            return await self.input.texts(texts, Vault(lambda: texts), verdicts)
        finally:
            verdicts.tell()

    def _check(self, request: ChatRequest) -> None:
        """Raises BadRequest for what would go past the guards."""
        name = self.policy.name
        extra = request.model_extra or {}  # none of these has a field of its own
        for field in UNSEEN:
            if extra.get(field):
                raise BadRequest(f"{field} is not for a model with guards: {name} cannot look into it", param=field)
        for field in SHOWING if self.output.watches else ():
            value = extra.get(field)
            if value is not None and value is not False:  # `logprobs: 0` asks for those of the tokens themselves
                raise BadRequest(
                    f"{field} is not for a model whose answers pass guards: it would show what {name} holds back",
                    param=field,
                )
        if self.output.watches and continues(request):
            raise BadRequest(
                f"{CONTINUED} is not for a model whose answers pass guards: {name} would not see what the answer "
                "begins with; let the last turn be the user's",
                param=CONTINUED,
            )
        if self.policy.media == "refuse" and has_media(request):
            raise BadRequest(
                f"images, audio and video are refused here: {name} cannot look into them", param="messages"
            )


def continues(request: ChatRequest) -> bool:
    told = getattr(request, "chat_template_kwargs", None)
    return bool(getattr(request, CONTINUED, None) or (isinstance(told, dict) and told.get(CONTINUED)))


def has_media(request: ChatRequest) -> bool:
    return any(
        isinstance(part, dict) and (part.get("type") in MEDIA or not MEDIA.isdisjoint(part))
        for message in request.messages
        if isinstance(message.content, list)
        for part in message.content
    )
