"""Stored prompts, by name and version."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.scripted import Scripted
from penstock.chat import ChatRequest
from penstock.errors import BadRequest, StartError
from prompting.stored import StoredPrompt
from tests.prompting.conftest import Bench, Compose, asking, told

pytestmark = pytest.mark.anyio

FIRST = """
variables: {product: {description: what is supported}, tone: {default: friendly}}
system: You support {{ product }} and are {{ tone }}.
"""
SECOND = FIRST + "messages: [{role: user, content: 'Hello from {{ product }}'}, {role: assistant, content: Hello.}]"
LETTER = "---\nvariables:\n  name: {}\n---\nWrite to {{ name }}.\n\n---\nBe short.\n"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    for place, text in {
        "support/9.yaml": FIRST,
        "support/10.yaml": SECOND,
        "letter/draft.md": LETTER,
        "support/notes.txt": "not a prompt",
    }.items():
        path = tmp_path / "prompts" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "secret.yaml").write_text("system: secret", encoding="utf-8")
    return Bench(tmp_path)


async def test_a_prompt_becomes_turns_before_the_conversation(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    prompt = {"id": "support", "version": "10", "variables": {"product": "Penstock"}}
    turns = [{"role": "system", "content": "Speak French."}, {"role": "user", "content": "Is it?"}]
    await told(composed(engine, StoredPrompt()), asking(messages=turns, prompt=prompt, temperature=0.5))
    assert [(turn.role, turn.text) for turn in engine.calls[0].messages] == [
        ("system", "You support Penstock and are friendly.\n\nSpeak French."),
        ("user", "Hello from Penstock"),
        ("assistant", "Hello."),
        ("user", "Is it?"),
    ]
    assert engine.calls[0].to_wire().keys() == {"model", "messages", "temperature"}


async def test_the_highest_version_is_taken_where_none_is_named(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    for version in ({}, {"version": "9"}, {"version": 9}):
        prompt = {"id": "support", "variables": {"product": "it"}, **version}
        await told(composed(engine, StoredPrompt()), asking(prompt=prompt))
    assert [len(call.messages) for call in engine.calls] == [4, 2, 2]


async def test_front_matter_has_the_variables_of_a_text(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    given = {"name": {"type": "input_text", "text": "{{ Ann }}"}}
    await told(composed(engine, StoredPrompt()), asking(prompt={"id": "letter", "variables": given}))
    assert engine.calls[0].messages[0].text == "Write to {{ Ann }}.\n\n---\nBe short."


async def test_the_default_is_for_requests_without_one(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    default = {"id": "letter", "variables": {"name": "Ann"}}
    chat = composed(engine, StoredPrompt.model_validate({"default": default}))
    await told(chat, asking())
    await told(chat, asking(prompt={"id": "letter", "variables": {"name": "Bob"}}))
    assert [call.messages[0].text.split("\n")[0] for call in engine.calls] == ["Write to Ann.", "Write to Bob."]
    await told(composed(engine, StoredPrompt()), asking())
    assert engine.calls[-1].messages == asking().messages


async def test_a_system_turn_that_becomes_nothing_is_left_out(composed: Compose, bench: Bench) -> None:
    text = "variables: {tone: {default: ''}}\nsystem: '{% if tone %}Be {{ tone }}.{% endif %}'"
    (bench.folder / "prompts" / "support" / "11.yaml").write_text(text, encoding="utf-8")
    engine = Scripted(["Yes."])
    await told(composed(engine, StoredPrompt()), asking(prompt={"id": "support"}))
    assert engine.calls[0].messages == asking().messages


@pytest.mark.parametrize(
    ("prompt", "message", "param"),
    [
        ({"id": "suport"}, "did you mean 'support'", "prompt.id"),
        ({"id": "../secret"}, "no prompt", "prompt.id"),
        ({"id": "support", "version": "11"}, "it has 9, 10", "prompt.version"),
        ({"id": "support", "version": "../../secret"}, "no version", "prompt.version"),
        ({"id": "support", "variables": {"prodct": "x"}}, "did you mean 'product'", "prompt.variables.prodct"),
        ({"id": "support"}, "needs the variable 'product'", "prompt.variables.product"),
        ({"id": "support", "variables": {"product": ["x"]}}, "neither a text", "prompt.variables.product"),
        ({"id": "support", "variables": {"product": "x" * 10_001}}, "10000 characters", "prompt.variables"),
        ({"id": "support", "name": "x"}, "prompt is", "prompt"),
        ("support", "prompt is", "prompt"),
    ],
)
async def test_what_there_is_not_is_told(composed: Compose, prompt: object, message: str, param: str) -> None:
    with pytest.raises(BadRequest, match=message) as error:
        await told(composed(Scripted(), StoredPrompt()), asking(prompt=prompt))
    assert error.value.param == param


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("system: '{{ a'", "system, line 1"),
        ("messages: [{role: user, content: '{{ x.y }}'}]", "'x', which is none of its variables"),
        ("variables: {tone: {}}\nsystem: '{{ ton }}'", "did you mean 'tone'"),
        ("description: nothing else", "neither system nor messages"),
        ("system: [", "no YAML"),
        ("sistem: x", "did you mean 'system'"),
        ("messages: [{role: system, content: x}]", "messages.0.role"),
    ],
)
def test_a_wrong_file_is_told_at_the_start(bench: Bench, text: str, message: str) -> None:
    (bench.folder / "prompts" / "support" / "11.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(StartError, match=message):
        StoredPrompt().around(bench)


def test_a_wrong_default_folder_or_version_is_told_at_the_start(bench: Bench) -> None:
    with pytest.raises(StartError, match=r"prompt\.default: the prompt needs"):
        StoredPrompt.model_validate({"default": {"id": "support"}}).around(bench)
    with pytest.raises(StartError, match="is not there"):
        StoredPrompt(folder="elsewhere").around(bench)
    (bench.folder / "prompts" / "support" / "9.md").write_text("x", encoding="utf-8")
    with pytest.raises(StartError, match="another ending"):
        StoredPrompt().around(bench)
    with pytest.raises(ValidationError):
        StoredPrompt.model_validate({"default": {"version": "1"}})


async def test_a_plain_prompt_is_refused(composed: Compose) -> None:
    with pytest.raises(BadRequest, match="step prompt"):
        await told(composed(Scripted(), StoredPrompt()), ChatRequest.completing("Once", model="m"))
