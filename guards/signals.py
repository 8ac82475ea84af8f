"""Guards that weigh a whole text: signs of an injection, its length, the letters it is written in."""

from collections.abc import Callable, Sequence

from pydantic import Field, field_validator

from guards.guard import NOTHING, Guard, Look, Looked, Opinion, Unmasked, Where, aside
from guards.injection import score, signals
from guards.language import SCRIPTS, scripts
from penstock.config import nearest
from penstock.steps import Parts


class Weighing(Guard):
    """One whose look asks nobody else."""

    action: Unmasked = Field(
        "block", description="block: the request is refused, or the answer ends; flag: it is only logged and counted"
    )
    on: Where = Field("input", description="which way it looks")


class Injection(Weighing):
    """Signs of prompt injection and jailbreaks. Signals, no proof: what is blocked by them may be harmless."""

    action: Unmasked = Field("flag", description="block, or flag: it is only logged and counted")
    threshold: float = Field(0.6, gt=0, le=1, description="how much must speak for it, of 1")

    def look(self, parts: Parts) -> Look:
        def weighed(texts: Sequence[str]) -> Opinion:
            kinds: dict[str, float] = {}
            for text in texts:
                found = signals(text)
                if found and (weight := score(found)) >= self.threshold:
                    kinds |= {signal.name: max(weight, kinds.get(signal.name, 0)) for signal in found}
            return Opinion(kinds) if kinds else NOTHING

        return weighing(weighed)


class Size(Weighing):
    """How many characters all texts have together."""

    chars: int = Field(100_000, ge=1, description="the most that there may be")

    def look(self, parts: Parts) -> Look:
        async def look(looked: Looked) -> Opinion:
            over = sum(map(len, looked.texts)) > self.chars
            return Opinion({"size": 1.0}) if over else NOTHING

        return look


class Language(Weighing):
    """In which letters texts are written: of other scripts than these only a share may be. A script is no language."""

    scripts: tuple[str, ...] = Field(("latin",), min_length=1, description="those that are expected")
    share: float = Field(0.1, ge=0, lt=1, description="how many letters of a text may be of others, of 1")
    least: int = Field(5, ge=1, description="so many letters of others are needed, in a text, for a verdict")

    @field_validator("scripts")
    @classmethod
    def scripts_are_known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for script in given:
            if script not in SCRIPTS:
                raise ValueError(f"unknown script {script!r}{nearest(script, SCRIPTS)}; there are {', '.join(SCRIPTS)}")
        return given

    def look(self, parts: Parts) -> Look:
        def weighed(texts: Sequence[str]) -> Opinion:
            kinds: dict[str, float] = {}
            for text in texts:
                counts = scripts(text)
                foreign = {script: count for script, count in counts.items() if script not in self.scripts}
                others = sum(foreign.values())
                if others >= self.least and others > self.share * counts.total():
                    kinds |= {script: 1.0 for script in foreign}
            return Opinion(kinds) if kinds else NOTHING

        return weighing(weighed)


def weighing(weighed: Callable[[Sequence[str]], Opinion]) -> Look:
    """As it looks: at long texts in a thread."""

    async def look(looked: Looked) -> Opinion:
        return await aside(sum(map(len, looked.texts)), lambda: weighed(looked.texts))

    return look
