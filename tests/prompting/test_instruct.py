"""Standing instructions."""

import pytest
from pydantic import ValidationError

from engine.scripted import Scripted
from penstock.chat import ChatRequest
from penstock.errors import BadRequest
from prompting.instruct import Instruct
from tests.prompting.conftest import Compose, asking, told

pytestmark = pytest.mark.anyio


async def test_they_stand_before_the_conversation(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    await told(composed(engine, Instruct(text="Be brief.")), asking("Is it?"))
    assert [(turn.role, turn.content) for turn in engine.calls[0].messages] == [
        ("system", "Be brief."),
        ("user", "Is it?"),
    ]


async def test_the_callers_own_follow_in_the_same_turn(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    turns = [{"role": "system", "content": "Speak French."}, {"role": "user", "content": "Is it?"}]
    await told(composed(engine, Instruct(text="Be brief.")), asking(messages=turns))
    assert engine.calls[0].messages[0].content == "Be brief.\n\nSpeak French."
    assert len(engine.calls[0].messages) == 2


async def test_parts_stay_parts(composed: Compose) -> None:
    engine = Scripted(["Yes."])
    parts = [{"type": "text", "text": "Speak French."}]
    await told(composed(engine, Instruct(text="Be brief.")), asking(messages=[{"role": "system", "content": parts}]))
    assert engine.calls[0].messages[0].content == [{"type": "text", "text": "Be brief.\n\n"}, *parts]


async def test_a_plain_prompt_is_refused(composed: Compose) -> None:
    with pytest.raises(BadRequest, match="instruct"):
        await told(composed(Scripted(), Instruct(text="Be brief.")), ChatRequest.completing("Once", model="m"))


def test_no_instructions_are_an_error() -> None:
    with pytest.raises(ValidationError):
        Instruct(text="")
