"""What the training stack says of an answer that was served: by hand, and by the bundled model itself."""

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.connection import Client
from evals.parity import Answer, NoReference, answer, judged, reference
from evals.reference import merged, parity, read
from evals.tasks import Item
from penstock.errors import EngineError
from penstock.gates import Parity
from tests.conftest import REPOSITORY
from tests.evals.adapters import lora
from tests.upstream import answers, upstream

DEMO = REPOSITORY / "recipes/demo/model"
ASKED = [{"role": "user", "content": "What is a penstock?"}]


def logits(*rows: Sequence[float]) -> torch.Tensor:
    """Rows of probabilities as logits."""
    return torch.tensor(rows).log()


def test_an_answer_is_read_as_by_hand() -> None:
    """Two tokens are the likeliest, the third is not: 0.25 beside 0.5."""
    rows = logits([0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5])
    found = read(rows, [0, 1, 0], [math.log(0.5), math.log(0.4), math.log(0.25)], "length", {2})
    assert found["differences"] == [[2, 0, 2, pytest.approx(math.log(2))]]
    assert found["apart"] == pytest.approx(math.log(0.5 / 0.4))
    assert found["end"] is None


@pytest.mark.parametrize(
    ("tokens", "finish", "says"),
    [
        ([0, 2], "stop", None),
        ([0, 1], "length", None),
        ([0, 1], "stop", "ends at the token 1, where the training stack goes on"),
        ([2, 1], "length", "goes on after its end at token 0"),
    ],
)
def test_an_end_elsewhere_is_told(tokens: list[int], finish: str, says: str | None) -> None:
    rows = torch.eye(3)[tokens]
    assert read(rows, tokens, [0.0, 0.0], finish, {2})["end"] == says


def item(id: str = "a", *, apart: float = 0.0, end: str | None = None, **differences: float) -> dict[str, Any]:
    """`p3=0.1`: at place 3 another token is likelier by 0.1."""
    places = [[int(name[1:]), 7, 8, nats] for name, nats in differences.items()]
    return {"id": id, "differences": places, "apart": apart, "end": end}


@pytest.mark.parametrize(
    ("items", "verdict", "says"),
    [
        ([item(), item("b")], "passed", "2 answers (9 tokens) are those of x"),
        ([item(p3=0.001), item("b")], "passed", "but for 1 ties"),
        ([item(p3=0.001, p4=0.5), item("b")], "failed", "1 of 2 answers differ from x: in a token 4 is 7 as served, 8"),
        ([item(p3=math.nan)], "failed", "1 of 1 answers differ"),
        ([item(apart=0.02)], "failed", "log-probabilities of equal tokens differ by 0.0200 nats, more than 0.001"),
        ([item(apart=math.nan)], "failed", "log-probabilities"),
        ([item(), item("b", end="goes on after its end at token 0")], "failed", "end elsewhere: b goes on after"),
        (
            [item(), {"id": "b", "rendered": 4}],
            "failed",
            "1 of 2 prompts are served otherwise than in training: b parts",
        ),
    ],
)
def test_what_was_read_is_judged(items: list[dict[str, Any]], verdict: str, says: str) -> None:
    found = judged({"by": "x", "items": items}, Parity(), 9)
    assert found.verdict == verdict
    assert says in found.why
    json.dumps(found.figures, allow_nan=False)  # the audit log takes nothing else


@pytest.mark.parametrize(
    ("asked", "dtype", "verdict"),
    [
        (Parity(), None, "failed"),
        (Parity(), "float32", "failed"),
        (Parity(), "bfloat16", "passed"),
        (Parity(tie=0.1), "bfloat16", "failed"),
        (Parity(logprobs=0.1), "bfloat16", "failed"),
        (Parity(tie=0.3, logprobs=0.3), "float32", "passed"),
    ],
)
def test_what_may_differ_goes_by_the_dtype_unless_the_gate_says_it(
    asked: Parity, dtype: str | None, verdict: str
) -> None:
    found = judged({"by": "x", "items": [item(p3=0.2, apart=0.2)]}, asked, 9, dtype)
    assert (found.verdict, found.figures["dtype"]) == (verdict, dtype)
    assert ("served in bfloat16" in found.why) == (dtype == "bfloat16")
    usual = 0.5 if dtype == "bfloat16" else 0.001
    assert found.figures["most"] == {"tie": asked.tie or usual, "logprobs": asked.logprobs or usual}


def test_fewer_prompts_than_the_gate_says_are_told() -> None:
    found = {"by": "x", "items": [item(), item("b")]}
    assert "the gate says 3 prompts, and there are no more" in judged(found, Parity(prompts=3), 9).why
    assert "the gate says" not in judged(found, Parity(prompts=2), 9).why


def greedy(model: Any, prompt: list[int], most: int, end: int) -> tuple[list[int], list[float]]:
    """One token after the other, by the definition."""
    tokens: list[int] = []
    logprobs: list[float] = []
    while len(tokens) < most and tokens[-1:] != [end]:
        with torch.inference_mode():
            last = torch.log_softmax(model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].float(), -1)
        tokens.append(int(last.argmax()))
        logprobs.append(float(last.max()))
    return tokens, logprobs


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora(tmp_path_factory.mktemp("lora") / "adapter", DEMO, 0.3)


def test_reading_an_answer_tells_what_generating_it_would(adapter: Path) -> None:
    """An adapter's greedy answer is its own, and not its base's; a changed token is found where it was changed."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    text = str(tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False))
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    model = merged(AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32), adapter)
    tokens, logprobs = greedy(model, prompt, 40, 2)
    served = Answer(Item("a", ASKED, [""]), prompt, tokens, logprobs, "stop").plain
    (same,) = parity(DEMO, adapter, DEMO, [served])["items"]
    assert (same["differences"], same["end"]) == ([], None)
    assert same["apart"] < 1e-4
    (base,) = parity(DEMO, None, DEMO, [served])["items"]
    assert base["apart"] > 1e-2
    other = served | {"tokens": [*tokens[:3], (tokens[3] + 1) % 600, *tokens[4:]]}
    (found,) = parity(DEMO, adapter, DEMO, [other])["items"]
    assert found["differences"][0][:3] == [3, other["tokens"][3], tokens[3]]
    (rendered,) = parity(DEMO, adapter, DEMO, [served | {"prompt": [*prompt[:5], 9, *prompt[5:]]}])["items"]
    assert rendered == {"id": "a", "rendered": 5}


def test_lora_added_to_the_weights_is_pefts(adapter: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra `train` is not installed")
    ids = torch.tensor([list(range(40, 80))])
    models = [AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32) for _ in range(2)]
    with torch.inference_mode():
        ours = merged(models[0], adapter)(input_ids=ids).logits
        its = peft.PeftModel.from_pretrained(models[1], adapter)(input_ids=ids).logits
    assert float((ours - its).abs().max()) < 1e-4


@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"peft_type": "IA3"}, {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q": 2}}]
)
def test_what_is_more_than_lora_needs_peft(adapter: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match="install peft"):
        merged(None, tmp_path)


def test_why_the_training_stack_cannot_be_asked_is_told(tmp_path: Path) -> None:
    question: dict[str, Any] = {
        "work": "parity",
        "base": str(tmp_path),
        "adapter": None,
        "speaks": str(tmp_path),
        "asked": [],
    }
    with pytest.raises(NoReference, match="tokenizer"):
        asyncio.run(reference(question))


@pytest.mark.parametrize(
    "said",
    [
        {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]},
        {"prompt_token_ids": [1], "choices": [{"token_ids": [2, 3], "logprobs": {"content": [{"logprob": 0}]}}]},
        {"prompt_token_ids": None, "choices": [{"token_ids": None, "logprobs": None, "finish_reason": "stop"}]},
    ],
)
def test_a_server_that_tells_no_tokens_is_told(said: dict[str, Any]) -> None:
    async def asked() -> None:
        async with upstream(answers(200, json.dumps(said).encode())) as server:
            client = Client(server.url)
            try:
                await answer(client, "m", Item("a", ASKED, [""]), 8)
            finally:
                client.close()

    with pytest.raises(EngineError, match="does not tell its tokens"):
        asyncio.run(asked())
