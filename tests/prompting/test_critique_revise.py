"""Critique and revise by written principles."""

from pathlib import Path

import pytest

from engine.scripted import Scripted
from penstock.errors import ConfigError, StartError
from prompting.critique_revise import CritiqueRevise, revised
from prompting.principles import Principle, drawn, load, own
from tests.prompting.conftest import Bench, Compose, asking, told

pytestmark = pytest.mark.anyio

TWO = """
principles:
  - {id: kind, critique: "Is it unkind?", revision: Be kind.}
  - {id: short, critique: "Is it long?", revision: Be short.}
"""


@pytest.fixture
def two(bench: Bench) -> str:
    (bench.folder / "two.yaml").write_text(TWO, encoding="utf-8")
    return "two.yaml"


async def test_each_principle_is_put_to_what_there_is(composed: Compose, two: str) -> None:
    engine = Scripted(["You fool.", "It insults.", "My dear good friend.", "It is long.", "Friend."])
    reply, streamed = await told(composed(engine, CritiqueRevise(principles=two, per_request=2)), asking())
    assert [[turn.text for turn in call.messages[1:]] for call in engine.calls] == [
        [],
        ["You fool.", "Is it unkind?"],
        ["You fool.", "Is it unkind?", "It insults.", "Be kind."],
        ["My dear good friend.", "Is it long?"],
        ["My dear good friend.", "Is it long?", "It is long.", "Be short."],
    ]
    assert reply.message.content == streamed.content() == "Friend."


async def test_the_loop_tells_training_what_it_did() -> None:
    principles = [Principle(id=name, critique=f"{name}?", revision=f"{name}!") for name in ("kind", "short")]
    engine = Scripted(["a", "b", "c", "d", "e"])
    trace = await revised(engine, asking(), principles)
    told = [
        (one.principle.id, one.draft.message.text, one.critique.message.text, one.revision.message.text)
        for one in trace.revisions
    ]
    assert told == [("kind", "a", "b", "c"), ("short", "c", "d", "e")]
    assert trace.reply.message.content == "e"
    assert trace.reply.usage.completion_tokens == 5
    assert "reasoning" not in trace.reply.message.model_dump()
    assert (await revised(Scripted(["a"]), asking(), [])).reply.message.content == "a"
    assert len((await revised(Scripted(["a"]), asking(), principles[:1] * 2)).revisions) == 2


async def test_drawn_principles_are_the_same_for_the_same_question(composed: Compose) -> None:
    engine = Scripted(["x"])
    chat = composed(engine, CritiqueRevise(choose="drawn", per_request=2, seed=1))
    asked = []
    for question in ("Why?", "Why?", "How?", "When?", "Who?"):
        engine.calls.clear()
        await told(chat, asking(question))
        asked.append([call.messages[-1].text for call in engine.calls if len(call.messages) == 3])
    assert asked[0] == asked[1]
    assert len({tuple(one) for one in asked}) > 1
    assert all(len(set(one)) == 2 for one in asked)


def test_own_principles_can_be_drawn() -> None:
    assert len(own()) == 8
    assert {one.id for one in drawn(own(), 8, "0")} == {one.id for one in own()}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("principles:\n  - {id: a, critique: b, revison: c}", r"p.yaml:2: unknown key .* did you mean 'revision'"),
        ("principles:\n  - {id: a, critique: b}", "p.yaml:2: principles.0.revision: Field required"),
        ("principles: []", "p.yaml:1: principles: List should have at least 1 item"),
        ("", "principles: Field required"),
        ("- a", "p.yaml: .*valid dictionary"),
        ("principles: [", "p.yaml:1 is not YAML"),
        ("principles:\n- &a {id: a, critique: b, revision: c}\n- *a", "the id 'a' stands here a second time"),
        (None, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "p.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        load(path)


def test_more_principles_than_there_are_are_an_error(bench: Bench, two: str) -> None:
    with pytest.raises(StartError, match="per_request is 3, of 2 principles that there are"):
        CritiqueRevise(principles=two, per_request=3).around(bench)
