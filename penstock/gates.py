"""What a version must show before an alias may point to it: a gate, as a typed tree.

It stands in the configuration under `gates`, or in a YAML file of its own. What a field asks and why its default is
what it is: docs/design/gate.md.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Change = Literal["template", "tokenizer", "end"]
By = Literal["interval", "score"]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Asked(Part):
    """A task and what its score must be."""

    task: str = Field(description="a family of the demo's held-out items, or a file of JSON lines")
    items: int | None = Field(None, ge=1, description="the first items alone [default: 200 of a family, all of a file]")
    metric: str | None = Field(None, description="verbatim, exact, f1, number or contains [default: the task's]")
    max_tokens: int | None = Field(None, ge=1, description="of an answer [default: the task's]")
    at_least: float | None = Field(None, ge=0, le=1, description="the lowest score that passes; None: any")
    by: By = Field(
        "interval", description="whether the lower end of the score's interval must be that high, or the score itself"
    )
    regression: bool = Field(
        True, description="whether it must not be worse than what the alias points to now: needs 6 items"
    )


class Parity(Part):
    """vLLM's greedy tokens beside those of the training stack."""

    prompts: int = Field(32, ge=1, description="of the gate's tasks in turn, then of a list of ours")
    tokens: int = Field(64, ge=1, description="of an answer, at most")
    dtype: str | None = Field(
        None, description="in which the engine computes for this check [default: float32, or what is nearest to it]"
    )
    tie: float | None = Field(
        None, ge=0, description="nats by which two tokens may differ and still be as good as equal [default: by dtype]"
    )
    logprobs: float | None = Field(
        None, ge=0, description="nats by which a token's log-probability may differ [default: by dtype]"
    )


class Safety(Part):
    """Prompts that must be refused."""

    prompts: str | None = Field(
        None, description="a file with a `prompt` a line, or a family [default: a list of ours]"
    )
    items: int | None = Field(None, ge=1, description="the first alone")
    refusals: list[str] | None = Field(
        None, description="phrases, one of which stands in every refusal, in any case [default: a list of ours]"
    )
    exact: bool = Field(False, description="whether the whole answer must be one of `refusals`")
    max_tokens: int = Field(128, ge=1)
    at_least: float | None = Field(None, ge=0, le=1, description="the share that must be refused; None: any")
    by: By = "score"
    regression: bool = True

    @model_validator(mode="after")
    def exact_names_the_answers(self) -> Self:
        if self.exact and not self.refusals and self.prompts is None:
            raise ValueError("`exact` needs `refusals`: the answers that are right")
        return self


class Latency(Part):
    """How much slower it may be than what the alias points to, asked in turn on the same machine: medians."""

    requests: int = Field(16, ge=2)
    tokens: int = Field(64, ge=2, description="of an answer")
    first_token: float = Field(1.5, gt=0, description="times the incumbent's seconds to the first token")
    per_token: float = Field(1.5, gt=0, description="times its seconds for each further one")


class Gate(Part):
    """A check that is None is not made, and the report says so."""

    file: str | None = Field(None, description="where the rest of it stands instead")
    tasks: list[Asked] = []
    changed: list[Change] = Field([], description="what differs from the parent on purpose")
    exportable: bool = Field(True, description="whether vLLM can serve it at all, from its files alone")
    parity: Parity | None = Parity()
    safety: Safety | None = Safety()
    latency: Latency | None = Latency()
    options: dict[str, Any] = Field({}, description="vLLM's own flags for the engines of the gate, above those served")

    @model_validator(mode="before")
    @classmethod
    def a_text_is_a_file(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def a_file_has_all_of_it(self) -> Self:
        if self.file is not None and self.model_dump(exclude={"file"}) != Gate().model_dump(exclude={"file"}):
            raise ValueError("`file` names a gate that stands elsewhere: say the rest of it there")
        return self
