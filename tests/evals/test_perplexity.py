"""Perplexity: windows, hand-computed numbers, and the demo model through transformers and through the real engine."""

import asyncio
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from evals.local import Local
from evals.perplexity import Perplexity, Window, perplexity, unread, windows
from evals.served import Served
from penstock.errors import BadRequest, EngineError, EngineUnavailable, ModelNotFound, NotFound
from tests.conftest import REPOSITORY
from tests.conftest import Served as Gateway
from tests.upstream import answers, upstream
from training.held_out import held_out

FOLDER = REPOSITORY / "recipes/demo/model"
TEXT = "".join(str(message["content"]) + "\n" for item in held_out("passages", 24) for message in item["messages"])
# Float32 sums in another order; no token was seen further apart.
PER_TOKEN = 1e-4
RELATIVE = 1e-5


class Bytes:
    """A token for each byte; each byte is as probable as `share` says of the one before it."""

    async def tokens(self, text: str) -> list[int]:
        return list(text.encode())

    async def text(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    async def logprobs(self, tokens: Sequence[int]) -> list[float]:
        return [math.log(0.5 if before % 2 else 0.25) for before in tokens[:-1]]


@pytest.fixture(scope="module")
def local() -> Local:
    return Local(FOLDER)


def measured(text: str, length: int = 1024, stride: int | None = None) -> Perplexity:
    return asyncio.run(perplexity(text, Bytes(), length, stride))


def test_the_numbers_of_a_text_by_hand() -> None:
    """ab c: after a (odd) 1/2, after b 1/4, after the space 1/4, that is five bits for three bytes and two words."""
    found = measured("ab c")
    assert (found.tokens, found.bytes, found.words) == (3, 3, 2)
    assert found.bits_per_byte == pytest.approx(5 / 3)
    assert found.token_perplexity == found.byte_perplexity == pytest.approx(2 ** (5 / 3))
    assert found.word_perplexity == pytest.approx(2 ** (5 / 2))


def test_a_text_without_spaces_has_no_finite_word_perplexity() -> None:
    assert measured("a" * 3000).word_perplexity == math.inf
    assert json.dumps(measured("ab").described())


def test_windows_by_hand() -> None:
    assert list(windows(10, 4, 2)) == [Window(0, 1, 4), Window(2, 4, 6), Window(4, 6, 8), Window(6, 8, 10)]
    assert list(windows(9, 4, 3)) == [Window(0, 1, 4), Window(3, 4, 7), Window(6, 7, 9)]
    assert list(windows(3, 4, 2)) == [Window(0, 1, 3)]


@given(st.integers(2, 300), st.integers(2, 50), st.data())
def test_each_token_is_scored_once_with_enough_before_it(tokens: int, length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length - 1))
    found = list(windows(tokens, length, stride))
    assert [place for window in found for place in range(window.score_from, window.end)] == list(range(1, tokens))
    for window in found:
        assert window.end - window.begin <= length
        for place in range(window.score_from, window.end):
            assert place - window.begin >= min(place, length - stride)


@given(st.text(min_size=2), st.integers(2, 9), st.data())
def test_windows_change_nothing_for_a_model_that_looks_one_token_back(
    text: str, length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length - 1))
    assert measured(text, length, stride).nats == pytest.approx(measured(text, 10_000).nats)


@pytest.mark.parametrize(
    ("text", "first", "rest"),
    [
        ("Hello", "Hel", "lo"),
        ("Hello", "<s>", "Hello"),
        ("Hello", "", "Hello"),
        ("é!", "\ufffd", "!"),
        ("\ufffd!", "\ufffd", "!"),
    ],
)
def test_the_first_token_is_taken_off_the_text(text: str, first: str, rest: str) -> None:
    assert unread(text, first) == rest


@pytest.mark.parametrize(("length", "stride"), [(1, None), (4, 4), (4, 5), (4, -1)])
def test_windows_that_cannot_be_are_refused(length: int, stride: int | None) -> None:
    with pytest.raises(BadRequest, match="above the stride"):
        measured("abc", length, stride)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_too_short_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="at least 2"):
        measured(text)


def test_a_text_whose_bytes_are_all_of_the_first_token_is_refused() -> None:
    """A tokenizer that takes one character apart: the first token has begun it, and nothing is left to count."""

    class Bytes:
        async def tokens(self, text: str) -> list[int]:
            return list(text.encode())

        async def text(self, tokens: Sequence[int]) -> str:
            return bytes(tokens).decode(errors="replace")

        async def logprobs(self, tokens: Sequence[int]) -> list[float]:
            return [-1.0] * (len(tokens) - 1)

    with pytest.raises(BadRequest, match="nothing after its first token"):
        asyncio.run(perplexity("é", Bytes()))
    assert asyncio.run(perplexity("éa", Bytes())).bytes == 1


def test_a_model_that_is_sure_of_something_else_has_no_finite_perplexity() -> None:
    found = Perplexity(nats=5000.0, tokens=1, bytes=1, words=1, length=2, stride=1)
    assert found.token_perplexity == found.byte_perplexity == found.word_perplexity == math.inf


def test_one_window_is_the_naive_loss(local: Local) -> None:
    """The loss that transformers itself computes."""
    text = TEXT[:2000]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        loss = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)(input_ids=ids, labels=ids).loss
    found = asyncio.run(perplexity(text, local, length=2048))
    assert found.tokens == ids.size(1) - 1 < 2047
    assert found.token_perplexity == pytest.approx(math.exp(float(loss)), rel=RELATIVE)


def test_strided_windows_are_transformers_own_recipe(local: Local) -> None:
    """Labels of -100 where a window overlaps the one before, as the page on perplexity has it."""
    length, stride = 256, 64
    tokenizer = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    ids = torch.tensor([tokenizer(TEXT, verbose=False)["input_ids"][:1000]])
    nats, scored, before = 0.0, 0, 0
    for begin in itertools.count(0, stride):
        end = min(begin + length, ids.size(1))
        labels = ids[:, begin:end].clone()
        labels[:, : before - begin] = -100
        with torch.inference_mode():
            loss = model(input_ids=ids[:, begin:end], labels=labels).loss
        counted = int((labels[:, 1:] != -100).sum())
        nats, scored, before = nats + float(loss) * counted, scored + counted, end
        if end == ids.size(1):
            break

    class Given(Local):
        async def tokens(self, text: str) -> list[int]:
            return [int(one) for one in ids[0]]

    found = asyncio.run(perplexity(TEXT, Given(FOLDER), length, stride))
    assert found.tokens == scored == 999
    assert found.nats == pytest.approx(nats, rel=RELATIVE)


def test_more_context_never_hurt_here(local: Local) -> None:
    text = TEXT[: len(TEXT) // 2]
    short, long = (asyncio.run(perplexity(text, local, length, 32)) for length in (64, 512))
    assert (short.tokens, short.bytes) == (long.tokens, long.bytes)
    assert long.bits_per_byte < short.bits_per_byte


def test_a_window_longer_than_the_model_is_refused(local: Local) -> None:
    with pytest.raises(BadRequest, match="--window 2048"):
        asyncio.run(perplexity(TEXT * 4, local, length=4096))


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no model that transformers can load"):
        Local(tmp_path)


async def of_server(url: str, text: str, length: int, stride: int, model: str = "demo") -> Perplexity:
    source = Served(url, model)
    try:
        return await perplexity(text, source, length, stride)
    finally:
        source.close()


def test_the_engine_and_transformers_agree(exact: Gateway, local: Local) -> None:
    served = asyncio.run(of_server(f"{exact.url}/v1", TEXT, 256, 128))
    here = asyncio.run(perplexity(TEXT, local, 256, 128))
    assert (served.tokens, served.bytes, served.words) == (here.tokens, here.bytes, here.words)
    assert served.tokens > 2048
    assert served.nats == pytest.approx(here.nats, rel=RELATIVE)


async def both(url: str, local: Local) -> tuple[list[float], list[float]]:
    source = Served(url, "demo")
    try:
        tokens = (await source.tokens(TEXT))[:1500]
        assert tokens == (await local.tokens(TEXT))[:1500]
        return await source.logprobs(tokens), await local.logprobs(tokens)
    finally:
        source.close()


def test_every_token_has_the_same_log_probability_in_both(exact: Gateway, local: Local) -> None:
    there, here = asyncio.run(both(exact.url, local))
    assert max(abs(one - other) for one, other in zip(there, here, strict=True)) < PER_TOKEN


def test_a_window_longer_than_the_engines_context_is_told(exact: Gateway) -> None:
    with pytest.raises(BadRequest, match="2048"):
        asyncio.run(of_server(exact.url, TEXT * 2, 4096, 2048))


def test_a_model_that_is_not_there_is_told(exact: Gateway) -> None:
    with pytest.raises(ModelNotFound):
        asyncio.run(of_server(exact.url, TEXT, 256, 128, model="other"))


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (404, b'{"detail": "Not Found"}', NotFound, "folder of the weights"),
        (503, b"{}", EngineUnavailable, "no reason"),
        (200, b"nonsense", EngineError, "no JSON object"),
    ],
)
def test_a_server_without_tokens_is_told(status: int, body: bytes, kind: type[Exception], says: str) -> None:
    async def ask() -> None:
        async with upstream(answers(status, body)) as server:
            await of_server(server.url, "abc", 8, 4)

    with pytest.raises(kind, match=says):
        asyncio.run(ask())


@pytest.mark.parametrize(
    "logprobs",
    [None, {"token_logprobs": []}, {"token_logprobs": [None, -1.0]}, {"token_logprobs": [-0.5, -1, -1]},
     {"token_logprobs": [None, None, -1]}],
)  # fmt: skip
def test_a_server_that_tells_too_little_is_not_believed(logprobs: object) -> None:
    async def ask() -> None:
        said = json.dumps({"choices": [{"logprobs": logprobs}]}).encode()
        async with upstream(answers(200, said)) as server:
            await Served(server.url, "m").logprobs([1, 2, 3])

    with pytest.raises(EngineError, match="log-probabilities"):
        asyncio.run(ask())
