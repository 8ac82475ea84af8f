"""What a gate has found: check by check, each with its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """`why`: in a sentence, with the figures. One that is `required` must not be skipped. No prompt and no answer
    stands in it: reports are kept in the audit log."""

    check: str
    verdict: Verdict
    why: str
    required: bool = True
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stops(self) -> bool:
        return self.verdict == "failed" or (self.verdict == "skipped" and self.required)


def passed(check: str, why: str, **figures: Any) -> Finding:
    return Finding(check, "passed", why, figures=figures)


def failed(check: str, why: str, **figures: Any) -> Finding:
    return Finding(check, "failed", why, figures=figures)


def skipped(check: str, why: str, *, required: bool = True) -> Finding:
    return Finding(check, "skipped", why, required)


@dataclass(frozen=True)
class Report:
    """Of `candidate` beside `incumbent`, which the alias points to; `gate` is the tree in full, `name` where it
    stands."""

    candidate: str
    digest: str
    incumbent: str | None
    alias: str | None
    name: str
    gate: Mapping[str, Any]
    findings: Sequence[Finding]
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why it does not pass."""
        return [f"{one.check}: {one.why}" for one in self.findings if one.stops]

    def described(self) -> dict[str, Any]:
        """For the history of the alias, as JSON."""
        return {**asdict(self), "passed": self.passed}
