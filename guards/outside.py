"""A service outside as a guard, asked over HTTP in one of four ways.

`penstock`: POST {"direction": "input", "model": ..., "texts": [...]} -> {"kinds": {"KIND": 0.9}}, empty where nothing
is the matter; with `texts` beside it, those stand in the place of the ones sent. `litellm`: what LiteLLM's generic
guardrail API asks of a service, POST URL/beta/litellm_basic_guardrail_api -> `action` NONE, BLOCKED or
GUARDRAIL_INTERVENED with `texts`. `nemo`: the server of NeMo Guardrails, POST URL/v1/checks -> `status`;
`nemo_microservice`: NVIDIA's microservice of that name, POST URL/v1/guardrail/checks -> `status`.
"""

import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import httpx2
from pydantic import Field, field_validator, model_validator

from guards.classifier import conversation, joined
from guards.guard import NOTHING, Action, Asking, Look, Looked, Opinion
from penstock.chat import Message
from penstock.config import is_address
from penstock.errors import ConfigError, EngineError
from penstock.steps import Parts, circumstances

KIND = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NEMO_PASSES = frozenset({"success", "passed", "allowed"})


class Http(Asking):
    """An outside service that looks at whole texts. It is sent them: mind what they are."""

    operators: ClassVar[frozenset[str]] = frozenset({"url", "api_key_file"})

    action: Action = Field(  # type: ignore[assignment]
        "block", description="block, flag; or mask: the service's own texts stand in the place of those of the request"
    )
    url: str = Field(description="http://HOST:PORT/PATH; of all shapes but penstock without the path")
    shape: Literal["penstock", "litellm", "nemo", "nemo_microservice"] = Field(
        "penstock", description="how it is asked"
    )
    config_id: str | None = Field(None, description="NeMo's name for the rails [default: the server's own]")
    api_key_file: str | None = Field(
        None, description="a file with what is sent as `Authorization: Bearer KEY`, and to litellm as `x-api-key`, too"
    )

    @field_validator("url")
    @classmethod
    def url_is_one(cls, url: str) -> str:
        if not url.startswith("http") or not is_address(url):
            raise ValueError(f"{url!r} is no address: write http://HOST:PORT/PATH")
        return url.rstrip("/")

    @model_validator(mode="after")
    def only_requests_are_rewritten(self) -> "Http":
        if self.action == "mask" and self.on != "input":
            raise ValueError("with `action: mask` a service rewrites requests: say `on: input`")
        if self.action == "mask" and self.shape.startswith("nemo"):
            raise ValueError("NeMo Guardrails gives no texts that could stand in the place of others: block, or flag")
        return self

    def files(self, folder: Path) -> Sequence[Path]:
        return [folder / self.api_key_file] if self.api_key_file else []

    @property
    def target(self) -> str:
        return urlsplit(self.url).netloc.rpartition("@")[2]

    def look(self, parts: Parts) -> Look:
        context = ssl.create_default_context()  # made once: it takes longer than a request
        headers = self._signed(read(Path(parts.folder) / self.api_key_file)) if self.api_key_file else {}

        async def look(looked: Looked) -> Opinion:
            if not any(text.strip() for text in looked.texts):
                return NOTHING
            path, body = self.asked(looked)
            async with httpx2.AsyncClient(
                verify=context, timeout=self.timeout_s, trust_env=False, headers=headers
            ) as client:
                answer = await client.post(self.url + path, json=body)
            if answer.status_code != 200:
                raise EngineError(f"the guard at {self.target} answers {answer.status_code}")
            return self.understood(answer.json(), looked)

        return look

    def _signed(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}", **({"x-api-key": key} if self.shape == "litellm" else {})}

    def asked(self, looked: Looked) -> tuple[str, dict[str, Any]]:
        """The path behind `url`, and the body."""
        now = circumstances.get()
        body: dict[str, Any]
        if self.shape == "litellm":
            kind = "request" if looked.direction == "input" else "response"
            body = {"texts": list(looked.texts), "input_type": kind, "litellm_call_id": now.request_id}
            return "/beta/litellm_basic_guardrail_api", {**body, "model": now.model, "request_data": {}}
        if self.shape.startswith("nemo"):
            # its rails look at the last turn alone: all of a request has to be in it
            turns = conversation(looked) if looked.answer else [Message(role="user", content=joined(looked))]
            body = {"messages": [{"role": turn.role, "content": turn.text} for turn in turns]}
            rails: dict[str, Any] = {"config_id": self.config_id} if self.config_id else {}
            if self.shape == "nemo_microservice":
                return "/v1/guardrail/checks", {**body, "model": now.model, "guardrails": rails}
            # a model's name would take the place of the one that its own configuration asks
            return "/v1/checks", {**body, "model": "", "guardrails": {**rails, "rail_types": [looked.direction]}}
        return "", {"direction": looked.direction, "model": now.model, "texts": list(looked.texts)}

    def understood(self, answer: Any, looked: Looked) -> Opinion:
        """With `action: mask`, what it objects to without other texts does not pass. Raises EngineError for what is
        no verdict."""
        opinion = self._opinion(answer, looked)
        if self.action == "mask" and opinion.kinds and opinion.texts is None:
            return replace(opinion, refuses=True)
        return opinion

    def _opinion(self, answer: Any, looked: Looked) -> Opinion:
        if not isinstance(answer, Mapping):
            raise EngineError(f"the guard at {self.target} gives no verdict")
        if self.shape.startswith("nemo"):
            status = answer.get("status")
            if status in NEMO_PASSES:
                return NOTHING
            if status not in ("blocked", "modified"):
                raise EngineError(f"the guard at {self.target} gives no verdict")
            return Opinion({str(status): 1.0})
        if self.shape == "litellm":
            action = answer.get("action")
            if action == "NONE":
                return Opinion(texts=self._texts(answer, looked))
            if action not in ("BLOCKED", "GUARDRAIL_INTERVENED"):
                raise EngineError(f"the guard at {self.target} gives no verdict")
            return Opinion(
                {action.lower(): 1.0},
                self._texts(answer, looked),
                refuses=action == "BLOCKED" and self.action != "flag",
            )
        kinds = answer.get("kinds")
        if not isinstance(kinds, Mapping):
            raise EngineError(f"the guard at {self.target} gives no verdict")
        # what it names ends up in logs: no text of a request is to come back as a name
        named = {kind if KIND.fullmatch(str(kind)) else "unnamed": score_of(score) for kind, score in kinds.items()}
        return Opinion(named, self._texts(answer, looked))

    def _texts(self, answer: Mapping[str, Any], looked: Looked) -> list[str] | None:
        texts = answer.get("texts")
        if self.action != "mask" or looked.direction != "input" or texts is None:
            return None
        if not isinstance(texts, list) or len(texts) != len(looked.texts) or not all(map(is_text, texts)):
            raise EngineError(f"the guard at {self.target} gives other texts than it was asked about")
        return texts


def read(file: Path) -> str:
    """Raises ConfigError."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key {file} cannot be read: {type(error).__name__}") from error


def score_of(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 1.0


def is_text(value: Any) -> bool:
    return isinstance(value, str)
