"""The simulated model: the same text for the same prompt, and from any cut exactly the rest."""

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sim import expected, simulator
from engine.sim.text import Prompt, words
from engine.sim.words import VOCABULARY, decode, encode

texts = st.text(max_size=40)


def said(prompt: Prompt, mean_tokens: int = 24) -> str:
    return "".join(word.text for word in words(prompt, mean_tokens))


@given(asked=texts, data=st.data())
def test_a_turn_cut_anywhere_is_continued_with_exactly_its_rest(asked: str, data: st.DataObject) -> None:
    given = f"<|user|>{asked}<|end|><|assistant|>"
    whole = said(Prompt(given, "", chat=True))
    cut = data.draw(st.integers(0, len(whole)))
    assert whole[:cut] + said(Prompt(given, whole[:cut], chat=True)) == whole


@given(prompt=st.builds(str.__add__, texts, st.sampled_from(["", " ", "\n", "\t "])), data=st.data())
def test_bare_text_cut_anywhere_is_continued_with_exactly_its_rest(prompt: str, data: st.DataObject) -> None:
    whole = said(Prompt("", prompt, chat=False))
    cut = data.draw(st.integers(0, len(whole)))
    assert whole[:cut] + said(Prompt("", prompt + whole[:cut], chat=False)) == whole


@given(st.text())
def test_any_text_is_encoded_and_decoded_again(text: str) -> None:
    assert decode(encode(text)) == text


@given(st.lists(st.integers(0, 2**63 - 1)))
def test_any_numbers_are_decoded_to_some_text(ids: list[int]) -> None:
    assert isinstance(decode(ids), str)


@given(asked=texts)
def test_what_was_said_has_as_many_tokens_as_words_were_generated(asked: str) -> None:
    prompt = Prompt(f"<|user|>{asked}<|end|><|assistant|>", "", chat=True)
    generated = list(words(prompt, 24))
    assert encode("".join(word.text for word in generated)) == [word.id for word in generated]


def test_every_word_of_the_vocabulary_is_one_token_of_its_own() -> None:
    every = [word for pair in VOCABULARY for word in pair]
    assert all(encode(word.text) == [word.id] for word in every)
    assert len({word.id for word in every}) == len({word.text for word in every})


def test_a_turn_has_between_half_and_one_and_a_half_of_the_mean() -> None:
    lengths = [len(list(words(Prompt(f"<|user|>{n}<|end|><|assistant|>", "", chat=True), 20))) for n in range(300)]
    assert min(lengths) >= 10
    assert max(lengths) <= 30
    assert 18 < sum(lengths) / len(lengths) < 22


def test_bare_text_has_the_mean_length() -> None:
    lengths = [len(list(words(Prompt("", str(n), chat=False), 20))) for n in range(2000)]
    assert 18 < sum(lengths) / len(lengths) < 22


def test_several_answers_to_one_prompt_differ() -> None:
    assert len({said(Prompt("p", "", chat=True, choice=choice)) for choice in range(8)}) == 8


@pytest.mark.anyio
async def test_the_same_prompt_gives_the_expected_text_on_every_engine() -> None:
    body = {"messages": [{"role": "user", "content": "Was fließt?"}]}
    async with simulator() as first, simulator(model="other") as second:
        async with httpx2.AsyncClient(trust_env=False) as client:
            for sim in (first, second):
                answer = await client.post(f"{sim.url}/v1/chat/completions", json=body)
                assert answer.json()["choices"][0]["message"]["content"] == expected(body).text
