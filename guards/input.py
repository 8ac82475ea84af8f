"""A request on its way in: what is masked, refused, or only noted."""

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import TypeVar

from guards.guard import Looked, aside, chars_to_look
from guards.looking import SPANS, Blocked, Spans, Watch, cleaning, opinion, unforeseen
from guards.texts import Noted, changed, chars_of
from guards.vault import Vault
from guards.verdicts import Verdicts, took
from penstock.chat import ChatRequest
from penstock.errors import ContentFiltered, PenstockError

T = TypeVar("T")


class Input:
    """Of one policy; made once."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self.watches = watches
        self.spans = Spans(watches, "input")
        self.looks = [watch for watch in watches if watch.look]

    async def request(self, request: ChatRequest, vault: Vault, verdicts: Verdicts) -> ChatRequest:
        """Raises ContentFiltered, GuardFailed; BadRequest for what is nested too deeply."""
        self._ran(verdicts)
        try:
            if self.spans.detectors:
                clean = cleaning(self.spans.filter(vault, verdicts))
                request = await self._timed(chars_of(request), lambda before=request: changed(before, clean), verdicts)  # type: ignore[misc]
            for watch in self.looks:
                texts = texts_of(request)
                found = await opinion(watch, Looked("input", texts, request), verdicts)
                if found.texts is not None:
                    now = dict(zip(texts, found.texts, strict=True))
                    request = changed(request, lambda text, now=now: now.get(text, text))  # type: ignore[misc]
        except Blocked as blocked:
            raise refused(verdicts.policy, blocked) from None
        return request

    async def texts(self, texts: Sequence[str], vault: Vault, verdicts: Verdicts) -> Sequence[str]:
        """Those of a request that generates nothing."""
        self._ran(verdicts)
        try:
            if self.spans.detectors:
                clean = cleaning(self.spans.filter(vault, verdicts))
                given = texts
                texts = await self._timed(sum(map(len, texts)), lambda: [clean(text) for text in given], verdicts)
            for watch in self.looks:
                found = await opinion(watch, Looked("input", texts), verdicts)
                texts = texts if found.texts is None else found.texts
        except Blocked as blocked:
            raise refused(verdicts.policy, blocked) from None
        return texts

    def _ran(self, verdicts: Verdicts) -> None:
        for watch in self.watches:
            verdicts.ran(watch.name, "input")

    async def _timed(self, size: int, work: Callable[[], T], verdicts: Verdicts) -> T:
        began = perf_counter()
        try:
            return await aside(chars_to_look(size, self.spans.detectors), work)
        except (Blocked, PenstockError):
            raise
        except Exception as error:  # a detector of any kind: what nobody has looked at does not pass
            raise unforeseen(verdicts.policy, error) from None
        finally:
            took(SPANS, "input", perf_counter() - began)


def texts_of(request: ChatRequest) -> list[str]:
    """All that guards look at, in its order."""
    texts = Noted()
    changed(request, texts)
    return texts


def given(request: ChatRequest, *, unmasks: bool) -> Callable[[], Iterable[str]]:
    """Those in which a placeholder would be the caller's own. What the assistant has said has ours, of the turns
    before, and the same values are to have the same ones again; unless they are put back, and so stand there as
    values."""
    if unmasks:
        return lambda: texts_of(request)
    others = [message for message in request.messages if message.role != "assistant"]
    return lambda: texts_of(request.with_messages(others))


def refused(policy: str, blocked: Blocked) -> ContentFiltered:
    return ContentFiltered(
        f"the guard {policy}/{blocked.guard} does not let this request through: it found {', '.join(blocked.kinds)}"
    )
