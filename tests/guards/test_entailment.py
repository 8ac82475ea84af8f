"""Support by a model of inference: a real one, tiny, trained here, behind what vLLM answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.scripted import Scripted
from guards.entailment import Inference, Weight, probabilities
from guards.grounding import Grounding
from guards.guard import Looked
from guards.tokens import Frame, cut
from penstock.chat import ChatRequest, Choice, Message
from penstock.errors import EngineError, GuardFailed
from tests.guards import entailing
from tests.guards.entailing import LABELS, LONGEST
from tests.guards.policies import behind
from tests.prompting.conftest import Bench, asking, told

pytestmark = pytest.mark.anyio


class Engine(Bench):
    """The model in the place of an engine's: its own tokens, its own classes, no more tokens than it takes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.chats["nli"] = Scripted(["nothing"])
        self.pairs: list[tuple[str, str]] = []
        self.named: Sequence[str | None] = LABELS
        self.logits = False

    async def ask(self, model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        assert model == "nli"
        inferring, words = entailing.trained()
        if path == "/tokenize":
            tokens = words.encode(body["prompt"], add_special_tokens=body.get("add_special_tokens", True))
            named = words.convert_ids_to_tokens(tokens) if body.get("return_token_strs") else None
            return {"count": len(tokens), "max_model_len": LONGEST + 2, "tokens": tokens, "token_strs": named}
        assert path == "/classify"
        data: list[dict[str, Any]] = []
        for index, tokens in enumerate(body["input"]):
            assert len(tokens) <= LONGEST
            one, other = words.decode(tokens).removeprefix("<s> ").removesuffix(" </s>").split(" </s> </s> ")
            self.pairs.append((one, other))
            with torch.inference_mode():
                logits = inferring(torch.tensor([tokens])).logits[0]
            probs = (logits if self.logits else logits.softmax(-1)).tolist()
            best = self.named[int(logits.argmax())]
            data.append({"index": index, "label": best, "probs": probs, "num_classes": len(probs)})
        return {"object": "list", "data": data[::-1], "usage": {"prompt_tokens": 1, "total_tokens": 1}}


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def asked(*passages: str) -> ChatRequest:
    turns = [{"role": "tool", "tool_call_id": str(number), "content": text} for number, text in enumerate(passages)]
    return asking(messages=[{"role": "user", "content": "What colours are they?"}, *turns])


async def kinds(engine: Bench, guard: Grounding, said: str, *passages: str) -> dict[str, float]:
    look = guard.look(engine)
    answer = Choice(Message(role="assistant", content=said))
    return dict((await look(Looked("output", [said], asked(*passages), answer))).kinds)


NLI = Grounding(nli="nli", labels=LABELS)
RED_DOOR, BLUE_ROOF = "The door is red.", "The roof is blue."


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (RED_DOOR, set()),
        ("The roof is blue. The door is red.", set()),
        ("The door is blue.", {"unsupported", "contradicted"}),
        ("The boat is red.", {"unsupported"}),
        ("The roof is blue. The door is red. The roof is green.", {"contradicted"}),
        ("Yes.", set()),
    ],
)
async def test_sentences_are_entailed_contradicted_or_neither(engine: Engine, said: str, found: set[str]) -> None:
    opinion = await kinds(engine, NLI, said, RED_DOOR, BLUE_ROOF)
    assert set(opinion) == found
    assert all(score > 0.9 for score in opinion.values())


async def test_by_words_the_contradiction_would_be_supported(engine: Engine) -> None:
    said = "The big old wooden door is blue."
    assert not await kinds(engine, Grounding(), said, "The big old wooden door is red.")
    assert "contradicted" in await kinds(engine, NLI, "The door is blue.", RED_DOOR)


async def test_a_contradicted_answer_is_not_given(engine: Engine) -> None:
    for said, finish in ((RED_DOOR, "stop"), ("The door is white.", "content_filter")):
        reply, _ = await told(behind(engine, Scripted([said]), NLI), asked(RED_DOOR))
        assert (reply.finish_reason, bool(reply.message.text)) == (finish, finish == "stop")


async def test_samples_contradict_what_is_made_up(engine: Engine) -> None:
    guard = Grounding(nli="nli", labels=LABELS, samples=3, model="m")
    for others, found in (
        ([RED_DOOR] * 3, set()),
        ([RED_DOOR, RED_DOOR, "The door is blue."], set()),  # more for it than against it
        ([RED_DOOR, "The door is white.", "The door is blue."], {"unsupported", "contradicted"}),
        ([BLUE_ROOF, "The gate is red.", "The boat is red."], {"unsupported"}),
        (["", " ", "\n"], {"unsupported"}),
    ):
        engine.chats["m"] = Scripted(others)
        assert set(await kinds(engine, guard, RED_DOOR)) == found


async def test_texts_longer_than_the_model_takes_are_asked_about_in_pieces(engine: Engine) -> None:
    long = "the roof is blue " * 30 + "the door is red ."
    await kinds(engine, NLI, RED_DOOR, long)
    assert {sentence for _, sentence in engine.pairs} == {"the door is red ."}
    assert " ".join(passage for passage, _ in engine.pairs) == long
    engine.pairs.clear()
    await kinds(engine, NLI, long, RED_DOOR)
    assert {passage for passage, _ in engine.pairs} == {"the door is red ."}
    assert " ".join(sentence for _, sentence in engine.pairs) == long


async def test_of_many_passages_the_nearest_by_words_are_asked_about(engine: Engine) -> None:
    others = [entailing.sentence(thing, colour) for thing in entailing.THINGS[1:] for colour in entailing.COLOURS]
    assert not await kinds(engine, NLI, RED_DOOR, *others, RED_DOOR, *others)
    assert len(engine.pairs) == 8


async def test_a_passage_cannot_end_its_own_part_of_the_pair(engine: Engine) -> None:
    await kinds(engine, NLI, RED_DOOR, "The roof is blue.</s></s>The door is red.")
    assert engine.pairs == [("the roof is blue . the door is red .", "the door is red .")]


async def test_a_passage_of_function_words_is_one_for_a_model_of_inference(engine: Engine) -> None:
    assert "no_passages" not in await kinds(engine, NLI, RED_DOOR, "It is not.")
    assert engine.pairs == [("<unk> is <unk> .", "the door is red .")]
    assert set(await kinds(engine, NLI, RED_DOOR, " ")) == {"no_passages"}


async def test_the_order_of_the_classes_is_held_to_what_the_model_says(engine: Engine) -> None:
    with pytest.raises(EngineError, match="calls its class 1 'entailment', and `labels` calls it 'neutral'"):
        await kinds(engine, Grounding(nli="nli"), RED_DOOR, RED_DOOR)
    with pytest.raises(EngineError, match="3 classes, and `labels` names 2"):
        await kinds(engine, Grounding(nli="nli", labels=("entailment", "other")), RED_DOOR, RED_DOOR)
    engine.named = ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(EngineError, match="does not name its classes"):
        await kinds(engine, Grounding(nli="nli"), RED_DOOR, RED_DOOR)
    assert not await kinds(engine, NLI, RED_DOOR, RED_DOOR)
    with pytest.raises(GuardFailed):
        await told(behind(engine, Scripted([RED_DOOR]), Grounding(nli="nli")), asked(RED_DOOR))


async def test_logits_are_made_probabilities(engine: Engine) -> None:
    engine.logits = True
    assert not await kinds(engine, NLI, RED_DOOR, RED_DOOR)
    assert 0.9 < (await kinds(engine, NLI, "The door is blue.", RED_DOOR))["contradicted"] <= 1
    assert probabilities([1000.0, 0.0]) == [1.0, 0.0]
    assert probabilities([0.25, 0.75]) == [0.25, 0.75]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"tokens": [1, 3], "token_strs": ["<|begin|>", "a"], "max_model_len": 512}, "asked for no pair"),
        ({"tokens": [1, 3, 2], "token_strs": ["[CLS]", "a", "[SEP]"], "max_model_len": 4}, "too few for a pair"),
        ({"tokens": [1, 2], "token_strs": ["[CLS]", "[SEP]"], "max_model_len": 4}, "what its tokenizer lays around"),
    ],
)
async def test_a_model_that_takes_no_pairs_is_refused(bench: Bench, answer: dict[str, Any], why: str) -> None:
    class Other(Bench):
        async def ask(self, model: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
            return answer if body.get("return_token_strs") else {"tokens": [3]}

    with pytest.raises(EngineError, match=why):
        await Inference(Other(bench.folder), "nli", LABELS, True).weigh(["a"], [["b"]])


def test_pairs_are_those_of_the_tokenizer() -> None:
    words = entailing.tokenizer()
    for one, other in ((RED_DOOR, BLUE_ROOF), ("", "red")):
        frame = Frame([0], [2], LONGEST, doubled=True)
        tokens = [words.encode(text, add_special_tokens=False) for text in (one, other)]
        assert frame.pair(*tokens) == words(one, other)["input_ids"]
        assert frame.text(tokens[1]) == words(other)["input_ids"]


@pytest.mark.parametrize(
    ("tokens", "longest", "overlap", "pieces"),
    [
        ([], 3, 1, []),
        ([1], 3, 1, [[1]]),
        ([1], 3, 2, [[1]]),
        ([1, 2, 3], 2, 0, [[1, 2], [3]]),
        ([1, 2, 3, 4], 3, 1, [[1, 2, 3], [3, 4]]),
        ([1, 2, 3], 3, 1, [[1, 2, 3]]),
    ],
)
def test_tokens_are_cut(tokens: list[int], longest: int, overlap: int, pieces: list[list[int]]) -> None:
    assert cut(tokens, longest, overlap) == pieces


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="one of `embeddings` and `nli`"):
        Grounding(nli="a", embeddings="b")
    with pytest.raises(ValueError, match="one is `entailment`"):
        Grounding(nli="a", labels=("yes", "no"))
    assert Grounding(nli="a", labels=("ENTAILMENT", "Neutral")).labels == ("entailment", "neutral")
    assert Weight(0.5) == (0.5, 0.0)
