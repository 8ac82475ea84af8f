"""Examples for few-shot prompts: from a file, and which of them are most like a question."""

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from operator import mul
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from penstock.chat import Message
from penstock.errors import EngineError, StartError
from penstock.steps import Parts

WORD = re.compile(r"\w+")
AT_ONCE = 64
"""Texts in a request for embeddings."""
K1 = 1.2
B = 0.75


class Example(BaseModel):
    """A question and its answer, or several turns of which the last is the assistant's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    messages: list[Message]

    @model_validator(mode="before")
    @classmethod
    def as_messages(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "messages" in given:
            return given
        if given.keys() != {"user", "assistant"} or not all(isinstance(text, str) for text in given.values()):
            raise ValueError("it has user and assistant, both texts, or messages")
        return {"messages": [{"role": role, "content": given[role]} for role in ("user", "assistant")]}

    @model_validator(mode="after")
    def turns_are_a_conversation(self) -> "Example":
        roles = [turn.role for turn in self.messages]
        if not roles or roles[0] != "user" or roles[-1] != "assistant" or {"system", "developer"} & set(roles):
            raise ValueError("its messages begin with the user's, end with the assistant's and have no system turn")
        return self

    @property
    def question(self) -> str:
        return "\n".join(turn.text for turn in self.messages if turn.role == "user")


def loaded(path: Path) -> list[Example]:
    """Those of a YAML or JSON list, or of JSON lines (.jsonl). Raises StartError, with the example that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"the examples {path} cannot be read: {error}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise StartError(
            f"the examples {path} are no {'JSON lines' if path.suffix == '.jsonl' else 'YAML'}: {error}"
        ) from error
    if not isinstance(rows, list) or not rows:
        raise StartError(f"{path} has no examples: a list of {{user: ..., assistant: ...}} or {{messages: [...]}}")
    return [example(row, f"{path}, example {number}") for number, row in enumerate(rows, 1)]


def example(row: Any, place: str) -> Example:
    try:
        return Example.model_validate(row)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f", {part}" for part in detail["loc"])
        raise StartError(f"{place}{where}: {detail['msg'].removeprefix('Value error, ')}") from None


Compare = Callable[[str, str | None], Awaitable[tuple[list[float], int]]]
"""A question and its caller's cache salt; what every example scores, more being more alike, and tokens used for it."""


def lexically(questions: Sequence[str]) -> Compare:
    lexical = Lexical(questions)

    async def scores(query: str, salt: str | None) -> tuple[list[float], int]:
        return lexical.scores(query), 0

    return scores


class Lexical:
    """BM25 over the examples' questions (Robertson and Zaragoza 2009, eq. 3.15), with Lucene's idf, which is never
    negative. Words are compared without regard to case."""

    def __init__(self, questions: Sequence[str]) -> None:
        counts = [Counter(words(question)) for question in questions]
        sizes = [count.total() for count in counts]
        mean = sum(sizes) / len(sizes) or 1
        found = Counter(word for count in counts for word in count)
        self._size = len(questions)
        self._weights: dict[str, list[tuple[int, float]]] = {}
        """By word: in which questions it is, and what it adds to their score."""
        for index, count in enumerate(counts):
            for word, times in count.items():
                idf = math.log(1 + (len(counts) - found[word] + 0.5) / (found[word] + 0.5))
                norm = K1 * (1 - B + B * sizes[index] / mean)
                self._weights.setdefault(word, []).append((index, idf * times * (K1 + 1) / (times + norm)))

    def scores(self, query: str) -> list[float]:
        scores = [0.0] * self._size
        for word in set(words(query)):
            for index, weight in self._weights.get(word, ()):
                scores[index] += weight
        return scores


def words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


class Dense:
    """Cosines between embeddings of a served model. Those of the examples are asked for once, when first needed, and
    again where the model gives others of another size."""

    def __init__(self, questions: Sequence[str], model: str, parts: Parts) -> None:
        self._questions = questions
        self._model = model
        self._parts = parts
        self._vectors: list[list[float]] = []
        self._asking = asyncio.Lock()  # one request asks for those of the examples, the others wait for it

    async def scores(self, query: str, salt: str | None) -> tuple[list[float], int]:
        """As `Compare`. Raises PenstockError."""
        if not query.strip():
            return [0.0] * len(self._questions), 0
        answer = await self._parts.ask(self._model, "/v1/embeddings", asked([query], salt))
        (vector,) = self._read(answer, 1)
        async with self._asking:
            vectors = await self._of_examples(len(vector))
        scores = [sum(map(mul, vector, other)) for other in vectors]
        return scores, int((answer.get("usage") or {}).get("prompt_tokens") or 0)

    async def _of_examples(self, size: int) -> list[list[float]]:
        """What has come when a request is cancelled or fails is kept for the next."""
        if self._vectors and len(self._vectors[0]) != size:
            self._vectors = []
        while len(self._vectors) < len(self._questions):
            texts = self._questions[len(self._vectors) :][:AT_ONCE]
            answer = await self._parts.ask(self._model, "/v1/embeddings", asked(texts, None))
            self._vectors = [*self._vectors, *self._read(answer, len(texts))]
        if any(len(vector) != size for vector in self._vectors):
            self._vectors = []
            raise EngineError(f"{self._model!r} embeds in different sizes")
        return self._vectors

    def _read(self, answer: Mapping[str, Any], count: int) -> list[list[float]]:
        """Of length 1, in the order in which they were asked for."""
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            vectors = [unit([float(number) for number in row["embedding"]]) for row in rows]
        except (LookupError, TypeError, ValueError):
            raise EngineError(f"{self._model!r} has given no embeddings") from None
        if len(vectors) != count:
            raise EngineError(f"{self._model!r} was given {count} texts and has embedded {len(vectors)}")
        return vectors


def asked(texts: Sequence[str], salt: str | None) -> dict[str, Any]:
    """What is too long for the model is cut, as vLLM does it."""
    body: dict[str, Any] = {"input": list(texts), "encoding_format": "float", "truncate_prompt_tokens": -1}
    return body | ({"cache_salt": salt} if salt else {})


def unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector) or 1.0
    return [number / length for number in vector]
