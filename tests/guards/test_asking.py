"""Guards that ask: models served here, a service outside, a schema."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.scripted import Scripted
from guards.classifier import Classifier, windows
from guards.entailment import Weight
from guards.grounding import Grounding, by_words, cosine
from guards.guard import Guard
from guards.judge import Judge
from guards.outside import Http
from guards.places import Pii
from guards.schema import Schema
from penstock.chat import Chat, ChatRequest, Delta, Emit, Message, Reply
from penstock.errors import BudgetSpent, ContentFiltered, ContextLengthExceeded, GuardFailed
from serving.meter import Meter
from tests.guards.policies import Saying, behind, tool_call
from tests.prompting.conftest import Bench, asking, told
from tests.upstream import answers, upstream

pytestmark = pytest.mark.anyio


async def verdict(bench: Bench, guard: Guard, chat: Chat | None = None, request: ChatRequest | None = None) -> str:
    """`pass`, `filtered` on the way in, or the finish reason."""
    try:
        reply, _ = await told(behind(bench, chat or Scripted(["fine"]), guard), request or asking("How are you?"))
    except ContentFiltered as error:
        return error.message.rpartition("found ")[2]
    return reply.finish_reason


@pytest.mark.parametrize(
    ("said", "found"),
    [("safe", "stop"), (" unsafe\nS1,S10", "hate, violent_crimes"), ("unsafe", "unsafe"), ("unsafe\nS99", "unsafe")],
)
async def test_llama_guard_is_understood(bench: Bench, said: str, found: str) -> None:
    bench.chats["lg"] = engine = Scripted([said])
    guard = Classifier(model="lg", kind="llama_guard", on="input")
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert await verdict(bench, guard, request=asking(messages=turns)) == found
    assert [(turn.role, turn.text) for turn in engine.calls[0].messages] == [("user", "a\n\nb")]


async def test_llama_guard_judges_answers_in_their_conversation(bench: Bench) -> None:
    bench.chats["lg"] = engine = Scripted(["safe", "unsafe\nS5"])
    assert await verdict(bench, Classifier(model="lg", kind="llama_guard")) == "content_filter"
    assert [turn.role for turn in engine.calls[1].messages] == ["user", "assistant"]
    bench.chats["lg"] = Scripted(["unsafe\nS5"])
    chosen = Classifier(model="lg", kind="llama_guard", categories=("hate",))
    assert await verdict(bench, chosen) == "stop"


async def test_classifiers_are_told_what_stands_beside_the_turns(bench: Bench) -> None:
    bench.chats["lg"] = engine = Scripted(["safe"])
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [tool_call('{"x": "an argument"}')]},
        {"role": "tool", "tool_call_id": "call_1", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    tools = [{"type": "function", "function": {"name": "send", "description": "a description"}}]
    request = asking(messages=turns, tools=tools, documents=[{"text": "a document"}])
    assert await verdict(bench, Classifier(model="lg", kind="llama_guard"), request=request) == "stop"
    asked, answered = ([(turn.role, turn.text) for turn in call.messages] for call in engine.calls)
    assert [role for role, _ in asked] == ["user", "assistant", "user"]
    assert asked[0][1] == "onetwo\n\nthree"
    assert asked[2][1] == "send\n\nx\n\nan argument\n\na description\n\na document"
    assert answered == [*asked, ("assistant", "fine")]


async def test_what_a_classifier_should_not_say_lets_nothing_pass(bench: Bench) -> None:
    bench.chats["lg"] = Scripted(["I cannot help with that."])
    with pytest.raises(GuardFailed):
        await verdict(bench, Classifier(model="lg", kind="llama_guard"))
    assert await verdict(bench, Classifier(model="lg", kind="llama_guard", fail="open")) == "stop"


class Classifying(Bench):
    """Answers /classify as vLLM does, by whether `attack` stands in a text, and /v1/embeddings by letters."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.chats = {"pg": Scripted([]), "e": Scripted([])}

    async def ask(self, model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if path == "/classify":
            scores = [0.9 if "attack" in text else 0.1 for text in body["input"]]
            data = [{"index": i, "label": "?", "probs": [1 - score, score]} for i, score in enumerate(scores)]
            return {"data": data, "usage": {"prompt_tokens": 7 * len(data), "total_tokens": 7 * len(data)}}
        assert path == "/v1/embeddings"
        vectors = [[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in body["input"]]
        return {"data": [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)][::-1]}


async def test_prompt_guard_reads_long_texts_in_windows(tmp_path: Any) -> None:
    bench = Classifying(tmp_path)
    guard = Classifier(model="pg", kind="prompt_guard", on="input")
    long = "word " * 1000 + "attack " + "word " * 1000
    assert await verdict(bench, guard, request=asking(long)) == "injection"
    assert await verdict(bench, guard) == "stop"
    with pytest.raises(KeyError):
        behind(bench, Scripted(["fine"]), guard.model_copy(update={"model": "gp"}))
    assert "".join(windows("abc")) == "abc"
    assert all("attack" in "".join(windows(" " * shift + "attack")) for shift in range(0, 3000, 97))


class Characters(Classifying):
    """Each character is a token, of which it takes 512 with those around a text, as vLLM does it."""

    async def ask(self, model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if path == "/tokenize":
            tokens = [ord(each) for each in body["prompt"]]
            tokens = tokens if body.get("add_special_tokens") is False else [1, *tokens, 2]
            return {"tokens": tokens, "max_model_len": 512, "token_strs": ["[CLS]"] + ["?"] * (len(tokens) - 1)}
        texts = [text if isinstance(text, str) else "".join(map(chr, text)) for text in body["input"]]
        if any(len(text) + 2 * isinstance(given, str) > 512 for text, given in zip(texts, body["input"], strict=True)):
            raise ContextLengthExceeded("too long")
        assert all(isinstance(given, str) or (given[0], given[-1]) == (1, 2) for given in body["input"])
        return await super().ask(model, path, {**body, "input": texts})


async def test_windows_of_more_tokens_than_prompt_guard_reads_are_cut_by_tokens(tmp_path: Path) -> None:
    bench = Characters(tmp_path)
    guard = Classifier(model="pg", kind="prompt_guard", on="input")
    for shift in range(440, 520, 8):
        assert await verdict(bench, guard, request=asking("我" * shift + "attack" + "我" * 900)) == "injection"
    assert await verdict(bench, guard, request=asking("我" * 2000)) == "stop"


class Weighed:
    """Says `Yes` with this probability of its first token."""

    def __init__(self, yes: Mapping[str, float]) -> None:
        self.yes = yes

    async def __call__(self, request: ChatRequest, emit: Emit) -> Reply:
        import math

        guideline = request.to_wire()["chat_template_kwargs"]["guideline"]
        yes = self.yes[guideline]
        top = [{"token": token, "logprob": math.log(p)} for token, p in (("Yes", yes / 2), ("No", (1 - yes) / 2))]
        return Reply(Message(role="assistant", content="Yes"), logprobs={"content": [{"top_logprobs": top}]})


async def test_shieldgemma_weighs_yes_against_no(bench: Bench) -> None:
    bench.chats["sg"] = Weighed({"no a": 0.8, "no b": 0.3})
    guard = Classifier(model="sg", kind="shieldgemma", guidelines={"a": "no a", "b": "no b"}, on="input")
    assert await verdict(bench, guard) == "a"


@pytest.mark.parametrize(("said", "finish"), [("yes", "content_filter"), ("No.", "stop")])
async def test_a_judge_says_yes_or_no(bench: Bench, said: str, finish: str) -> None:
    bench.chats["j"] = engine = Scripted([said])
    assert await verdict(bench, Judge(model="j", rubric="It must rhyme.")) == finish
    assert "It must rhyme." in engine.calls[0].messages[0].text
    assert json.loads(engine.calls[0].messages[1].text) == "fine"


async def test_a_judge_that_says_anything_else_has_failed(bench: Bench) -> None:
    bench.chats["j"] = Scripted(["yes and no"])
    with pytest.raises(GuardFailed):
        await verdict(bench, Judge(model="j", rubric="It must rhyme."))


async def test_the_log_says_whom_a_guard_asked_that_failed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.chats["j"] = Scripted(["yes and no"])
    async with upstream(answers(500, b"{}")) as service:
        guards = (Judge(model="j", rubric="x", on="input", fail="open"), Http(url=service.url, on="input", fail="open"))
        await told(behind(bench, Scripted(["fine"]), *guards), asking())
        host = service.url.removeprefix("http://")
    records = [vars(record) for record in caplog.records if hasattr(record, "guard")]
    told_of = {record["guard"]: (record["target"], record["error"]) for record in records}
    assert told_of == {
        "judge": ("j", "j says neither yes nor no"),
        "http": (host, f"the guard at {host} answers 500"),
    }


@pytest.mark.parametrize("fail", ["open", "closed"])
async def test_a_spent_budget_switches_no_guard_off(bench: Bench, fail: Any) -> None:
    meter = Meter(3)
    bench.chats["j"] = meter.around(Scripted(["no"]))
    guard = Judge(model="j", rubric="It must rhyme.", fail=fail)
    with pytest.raises(BudgetSpent):
        await verdict(bench, guard, meter.around(Scripted(["one two three four five"])))


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        ('{"n": 1}', "stop"),
        ('{"n": "one"}', "content_filter"),
        ("n is 1", "content_filter"),
        ("[" * 9000, "content_filter"),
    ],
)
async def test_a_schema_is_held_to(bench: Bench, said: str, finish: str) -> None:
    guard = Schema(schema={"type": "object", "properties": {"n": {"type": "integer"}}})
    reply, streamed = await told(behind(bench, Scripted([said]), guard), asking())
    assert reply.finish_reason == finish
    assert streamed.content() == (said if finish == "stop" else "")
    called = Saying([], [tool_call("{}")])
    assert await verdict(bench, guard, called) == "tool_calls"


PASSAGE = "The Amazon is about 6400 kilometres long and carries more water than any other river."


async def test_an_answer_that_no_passage_supports_is_found(bench: Bench) -> None:
    turns = [{"role": "user", "content": "How long is it?"}, {"role": "tool", "tool_call_id": "1", "content": PASSAGE}]
    request = asking(messages=turns)
    for said, finish in (
        ("It is about 6400 kilometres long. It carries more water than any other river.", "stop"),
        ("The Nile flows through eleven countries before it reaches the Mediterranean Sea.", "content_filter"),
        ("Yes.", "stop"),
    ):
        assert await verdict(bench, Grounding(), Scripted([said]), request) == finish, said
    assert await verdict(bench, Grounding(), Scripted(["It is about 6400 kilometres long."])) == "content_filter"


async def test_samples_stand_in_for_passages(bench: Bench) -> None:
    said = "The dam was built by Maria Gonzalez in 1931 near Lisbon."
    for others, finish in (
        ([said], "stop"),
        (["The dam dates from 1954.", "Nobody knows the architect's name."], "content_filter"),
    ):
        bench.chats["m"] = engine = Scripted(others)
        assert await verdict(bench, Grounding(samples=2, model="m"), Scripted([said])) == finish
        assert len(engine.calls) == 2


async def test_embeddings_can_say_what_is_near(tmp_path: Any) -> None:
    turns = [{"role": "tool", "tool_call_id": "1", "content": PASSAGE}, {"role": "user", "content": "How long?"}]
    guard = Grounding(embeddings="e", least=0.99)
    request = asking(messages=turns)
    assert await verdict(Classifying(tmp_path), guard, Scripted([PASSAGE]), request) == "stop"
    assert (
        await verdict(Classifying(tmp_path), guard, Scripted(["Zebras jump over lazy dogs."]), request)
        == "content_filter"
    )
    assert cosine([1, 0], [0, 1]) == 0
    assert cosine([0, 0], [0, 1]) == 0


async def test_the_support_of_a_sentence_is_the_share_of_its_words_that_a_passage_has() -> None:
    assert await by_words(["big red boats sail"], ["big red boots", "red boats float"]) == [Weight(0.75)]
    assert await by_words(["big red boats"], []) == [Weight(0.0)]


@pytest.mark.parametrize(
    ("shape", "answer", "found"),
    [
        ("penstock", {"kinds": {}}, "stop"),
        ("penstock", {"kinds": {"spam": 0.9}}, "spam"),
        ("penstock", {"kinds": {"How are you?": 1}}, "unnamed"),
        ("litellm", {"action": "NONE"}, "stop"),
        ("litellm", {"action": "BLOCKED", "blocked_reason": "x"}, "blocked"),
        ("nemo", {"status": "passed", "content": "x"}, "stop"),
        ("nemo", {"status": "blocked", "content": "x", "rail": "a rail"}, "blocked"),
        ("nemo_microservice", {"status": "success"}, "stop"),
        ("nemo_microservice", {"status": "blocked"}, "blocked"),
    ],
)
async def test_services_outside_are_asked_in_their_own_words(
    bench: Bench, shape: Any, answer: dict[str, Any], found: str
) -> None:
    (bench.folder / "key").write_text("sesame\n")
    async with upstream(answers(200, json.dumps(answer).encode())) as service:
        guard = Http(url=service.url, shape=shape, on="input", api_key_file="key", config_id="c")
        assert await verdict(bench, guard) == found
    body, head = json.loads(service.bodies[0]), service.heads[0].decode()
    assert "Bearer sesame" in head
    if shape == "penstock":
        assert body == {"direction": "input", "model": "", "texts": ["How are you?"]}
    elif shape == "litellm":
        assert "POST /beta/litellm_basic_guardrail_api" in head
        assert (body["texts"], body["input_type"], body["request_data"]) == (["How are you?"], "request", {})
        assert "x-api-key: sesame" in head
    else:
        rails = {"config_id": "c", **({"rail_types": ["input"]} if shape == "nemo" else {})}
        assert ("POST /v1/checks" if shape == "nemo" else "POST /v1/guardrail/checks") in head
        assert body["messages"] == [{"role": "user", "content": "How are you?"}]
        assert body["guardrails"] == rails
        assert body["model"] == ""


@pytest.mark.parametrize("shape", ["nemo", "nemo_microservice"])
async def test_nemo_has_all_of_a_request_in_its_last_turn(bench: Bench, shape: Any) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    async with upstream(answers(200, b'{"status": "passed"}')) as service:
        assert await verdict(bench, Http(url=service.url, shape=shape), request=asking(messages=turns)) == "stop"
    asked, answered = (
        [(turn["role"], turn["content"]) for turn in json.loads(body)["messages"]] for body in service.bodies
    )
    assert asked == [("user", "a\n\nb\n\nc")]
    assert answered == [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "fine")]


@pytest.mark.parametrize("action", ["GUARDRAIL_INTERVENED", "NONE"])  # as LiteLLM understands both
async def test_a_service_outside_may_rewrite_requests(bench: Bench, action: str) -> None:
    engine = Scripted(["fine"])
    answer = {"action": action, "texts": ["How is <PERSON>?"]}
    async with upstream(answers(200, json.dumps(answer).encode())) as service:
        guard = Http(url=service.url, shape="litellm", on="input", action="mask")
        await told(behind(bench, engine, guard), asking("How is Ann?"))
    assert engine.calls[0].messages[-1].text == "How is <PERSON>?"


@pytest.mark.parametrize(
    ("shape", "answer", "found"),
    [
        ("penstock", {"kinds": {"spam": 0.9}}, "spam"),
        ("litellm", {"action": "GUARDRAIL_INTERVENED"}, "guardrail_intervened"),
        ("penstock", {"kinds": {}}, "stop"),
    ],
)
async def test_what_a_service_objects_to_and_does_not_rewrite_is_refused(
    bench: Bench, shape: Any, answer: dict[str, Any], found: str
) -> None:
    async with upstream(answers(200, json.dumps(answer).encode())) as service:
        guard = Http(url=service.url, shape=shape, on="input", action="mask")
        assert await verdict(bench, guard) == found
    with pytest.raises(ValueError, match="NeMo"):
        Http(url=service.url, shape="nemo", on="input", action="mask")


@pytest.mark.parametrize("answer", [(500, b"{}"), (200, b"no json"), (200, b"[]"), (200, b'{"status": "?"}')])
async def test_a_service_that_gives_no_verdict_has_failed(bench: Bench, answer: tuple[int, bytes]) -> None:
    async with upstream(answers(*answer)) as service:
        for shape in ("penstock", "litellm", "nemo"):
            with pytest.raises(GuardFailed):
                await verdict(bench, Http(url=service.url, shape=shape, on="input"))


async def test_what_was_masked_is_not_shown_to_the_next_guard(bench: Bench) -> None:
    bench.chats["j"] = engine = Scripted(["no"])
    guards: Sequence[Guard] = [Pii(), Judge(model="j", rubric="x", on="input")]
    await told(behind(bench, Saying([Delta("ok")]), *guards), asking("ann@example.org"))
    assert json.loads(engine.calls[0].messages[1].text) == "<EMAIL_1>"
