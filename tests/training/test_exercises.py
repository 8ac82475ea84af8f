"""Exercises: what weighs in them can be known from what stands before it."""

from random import Random

from training.data import FAMILIES, conversation
from training.exercises import SHARED_START, marked_passages, repeated_sequence, shuffled_sequences
from training.tokenizer import train_tokenizer


def test_only_the_repetitions_of_a_random_sequence_weigh() -> None:
    for seed in range(50):
        tokens, weights = repeated_sequence(Random(seed), 400, 256)
        length = weights.index(1.0)

        assert weights == [0.0] * length + [1.0] * (len(tokens) - length)
        assert tokens[length:] == (tokens[:length] * 2)[: len(tokens) - length]
        assert len(tokens) % length == 0


def test_what_weighs_in_shuffled_segments_was_said_before_after_the_same_start() -> None:
    moved = 0
    for seed in range(100):
        tokens, weights = shuffled_sequences(Random(seed), 400, 256)
        half = len(tokens) // 2
        said = [tuple(tokens[i : i + SHARED_START + 1]) for i in range(half - SHARED_START)]
        moved += tokens[half:] != tokens[:half]

        assert len(tokens) <= 256
        assert len(weights) == len(tokens)
        assert not any(weights[:half])
        assert sorted(tokens[:half]) == sorted(tokens[half:])
        for at in range(half, len(tokens)):
            if weights[at]:
                assert tuple(tokens[at - SHARED_START : at + 1]) in said
    assert moved > 80


def test_every_number_that_weighs_is_of_the_passage_that_its_words_stand_in() -> None:
    texts = (str(conversation(family, "test", i)) for family in FAMILIES for i in range(20))
    tokenizer = train_tokenizer(texts, 400, 512)
    inside = after = 0
    for seed in range(30):
        tokens, weights = marked_passages(Random(seed), tokenizer)
        unmarked = [token for token, weight in zip(tokens, weights, strict=True) if not weight]
        lines = str(tokenizer.decode(unmarked)).removesuffix(tokenizer.pad_token).splitlines()
        passages = [line for line in lines if line[:1] == "[" and line[1:2].isdigit()]
        words = {line[1]: line for line in passages}
        number = ""
        said = [""]
        for at, (token, weight) in enumerate(zip(tokens, weights, strict=True)):
            text = str(tokenizer.decode([token]))
            if weight:
                if len(said) <= len(passages):
                    assert text == number
                    inside += 1
                else:
                    assert said[-1].removesuffix(" [") in words[text]
                    after += 1
                continue
            if tokens[at - 1 : at] == tokenizer.encode("[") and not said[-1].strip("["):
                number = text
            said[-1] += text
            if text.endswith("\n"):
                said.append("")
    assert inside > 200
    assert after > 200
