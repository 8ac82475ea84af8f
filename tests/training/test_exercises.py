"""Exercises: what weighs in them can be known from what stands before it."""

from random import Random

from training.exercises import SHARED_START, repeated_sequence, shuffled_sequences


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
