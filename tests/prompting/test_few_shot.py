"""Examples before the question."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.scripted import Scripted
from penstock.chat import ChatRequest, Usage
from penstock.errors import BadRequest, EngineError, StartError
from prompting.examples import K1, B, Lexical, loaded
from prompting.few_shot import FewShot
from tests.prompting.conftest import Bench, Compose, asking, told

pytestmark = pytest.mark.anyio

ROWS = [
    {"user": "How long is the Nile?", "assistant": "6650 km."},
    {"user": "Who painted the Mona Lisa?", "assistant": "Leonardo."},
    {"messages": [{"role": "user", "content": "How high is K2?"}, {"role": "assistant", "content": "8611 m."}]},
]


class Embedding(Bench):
    """With a served model of embeddings: how often a few letters are in a text."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[Mapping[str, Any]] = []
        self.letters = "npk"
        self.chats["embedder"] = Scripted()

    async def ask(self, model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert (model, path) == ("embedder", "/v1/embeddings")
        self.asked.append(body)
        await asyncio.sleep(0)
        rows = [
            {"index": index, "embedding": [text.casefold().count(letter) for letter in self.letters]}
            for index, text in enumerate(body["input"])
        ]
        return {"data": rows[::-1], "usage": {"prompt_tokens": len(rows)}}


@pytest.fixture
def bench(tmp_path: Path) -> Embedding:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8")
    return Embedding(tmp_path)


def shown(request: ChatRequest) -> list[str]:
    return [turn.text for turn in request.messages]


async def test_examples_stand_between_system_turn_and_conversation(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    await told(composed(engine, FewShot(examples="rows.jsonl", k=2)), asking(messages=turns, n=1))
    assert [turn.role for turn in engine.calls[0].messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert shown(engine.calls[0])[1:3] == ["How long is the Nile?", "6650 km."]


async def test_fixed_ones_begin_every_prompt_alike(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    chat = composed(engine, FewShot(examples="rows.jsonl"))
    for question in ("Is it?", "Who was it?"):
        await told(chat, asking(question))
    first, second = engine.calls
    assert first.messages[:-1] == second.messages[:-1]
    assert len(first.messages) == 7


async def test_they_can_be_text_in_the_system_turn(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    await told(composed(engine, FewShot(examples="rows.jsonl", k=1, form="text")), asking())
    assert engine.calls[0].messages[0].role == "system"
    assert "User: How long is the Nile?\nAssistant: 6650 km." in engine.calls[0].messages[0].text
    assert len(engine.calls[0].messages) == 2


async def test_similar_ones_share_words_and_the_most_similar_is_last(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    chat = composed(engine, FewShot(examples="rows.jsonl", choose="similar", k=2))
    await told(chat, asking("How high is the highest tower?"))
    assert shown(engine.calls[0])[::2] == ["How long is the Nile?", "How high is K2?", "How high is the highest tower?"]
    await told(chat, asking("WHO PAINTED IT?"))
    assert shown(engine.calls[1])[2] == "Who painted the Mona Lisa?"


async def test_a_served_model_says_what_is_similar(composed: Compose, bench: Embedding) -> None:
    engine = Scripted(["Yes."])
    chat = composed(engine, FewShot(examples="rows.jsonl", choose="similar", k=1, model="embedder"))
    replies = await asyncio.gather(*(told(chat, asking(text, cache_salt="s")) for text in ("kkk", "ppp", "kk")))
    assert sorted(shown(call)[0] for call in engine.calls) == ["How high is K2?"] * 2 + ["Who painted the Mona Lisa?"]
    asked = [body["input"] for body in bench.asked]
    assert sorted(map(len, asked)) == [1, 1, 1, 3]  # the examples' once, for all who wait
    assert [body.get("cache_salt") for body in bench.asked if len(body["input"]) == 1] == ["s"] * 3
    assert replies[0][0].usage.calls == (("few_shot.embedding", Usage(1)),)
    bench.letters = "np"
    await told(chat, asking("ppp"))
    assert shown(engine.calls[-1])[0] == "Who painted the Mona Lisa?"  # another size: embedded again


async def test_what_has_been_embedded_is_kept_when_a_request_ends(composed: Compose, bench: Embedding) -> None:
    rows = [{"user": "p" * number, "assistant": "x"} for number in range(1, 101)]
    (bench.folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    chat = composed(Scripted(["Yes."]), FewShot(examples="rows.jsonl", choose="similar", model="embedder"))
    running = asyncio.ensure_future(told(chat, asking("kp")))
    while [len(body["input"]) for body in bench.asked] != [1, 64, 36]:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await told(chat, asking("kp"))
    assert [len(body["input"]) for body in bench.asked] == [1, 64, 36, 1, 36]


async def test_what_is_no_embedding_is_an_error(composed: Compose, bench: Embedding) -> None:
    async def wrong(model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"data": [{"index": 0, "embedding": "AAAA"}]}

    bench.ask = wrong  # type: ignore[method-assign]
    chat = composed(Scripted(), FewShot(examples="rows.jsonl", choose="similar", model="embedder"))
    with pytest.raises(EngineError, match="no embeddings"):
        await told(chat, asking())


@given(st.lists(st.text("abc ", max_size=8), min_size=1, max_size=6), st.text("abc ", max_size=8))
@settings(max_examples=30)
def test_bm25_is_the_formula(questions: list[str], query: str) -> None:
    counts = [Counter(question.split()) for question in questions]
    mean = sum(count.total() for count in counts) / len(counts)

    def score(count: Counter[str]) -> float:
        total = 0.0
        for word in set(query.split()):
            within = sum(word in other for other in counts)
            idf = math.log(1 + (len(counts) - within + 0.5) / (within + 0.5))
            if count[word]:
                total += idf * count[word] * (K1 + 1) / (count[word] + K1 * (1 - B + B * count.total() / mean))
        return total

    assert Lexical(questions).scores(query) == pytest.approx([score(count) for count in counts])


def test_yaml_and_json_lines_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (tmp_path / "a.yaml").write_text(json.dumps(ROWS), encoding="utf-8")
    assert loaded(tmp_path / "a.jsonl") == loaded(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("name", "text", "told_"),
    [
        ("a.yaml", None, "cannot be read"),
        ("a.yaml", "[", "no YAML"),
        ("a.jsonl", "{", "no JSON lines"),
        ("a.yaml", "[]", "has no examples"),
        ("a.yaml", "- {user: a, answer: b}", "example 1: it has user and assistant"),
        ("a.yaml", "- {user: a, assistant: b}\n- {messages: []}", "example 2: its messages begin"),
        ("a.yaml", "- {messages: [{role: user, content: a}]}", "end with the assistant's"),
        ("a.yaml", "- {messages: [{role: usr, content: a}]}", "messages, 0, role"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path: Path, name: str, text: str | None, told_: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(StartError, match=told_):
        loaded(tmp_path / name)


async def test_what_cannot_be_is_refused(composed: Compose) -> None:
    chat = composed(Scripted(), FewShot(examples="rows.jsonl"))
    with pytest.raises(BadRequest, match="few_shot"):
        await told(chat, ChatRequest.completing("Once", model="m"))
    with pytest.raises(ValidationError, match="similar"):
        FewShot(examples="rows.jsonl", model="embedder")
