"""A tiny model of entailment, trained here in seconds: `The door is red.`, of four things in four colours.

The same thing in the same colour is entailed, in another colour contradicted; another thing is neutral. Its tokenizer
makes pairs as RoBERTa's does.
"""

import itertools
from functools import cache
from typing import Any

THINGS = ("door", "roof", "boat", "gate")
COLOURS = ("red", "blue", "green", "white")
LABELS = ("contradiction", "entailment", "neutral")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
LONGEST = 40
STEPS = 200


def sentence(thing: str, colour: str) -> str:
    return f"The {thing} is {colour}."


def label(thing: str, colour: str, other: str, its: str) -> str:
    if thing != other:
        return "neutral"
    return "entailment" if colour == its else "contradiction"


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *THINGS, *COLOURS, "the", "is", "."]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", model_max_length=LONGEST, **names)  # type: ignore[no-untyped-call]


def untrained() -> Any:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=LONGEST + 2,  # RoBERTa counts from behind the padding's number
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
        id2label=dict(enumerate(LABELS)),
        label2id={name: number for number, name in enumerate(LABELS)},
        problem_type="single_label_classification",
    )
    return RobertaForSequenceClassification(config)  # type: ignore[no-untyped-call]


@cache
def trained() -> tuple[Any, Any]:
    """The model, and its tokenizer."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fitted(untrained().train(), tokenizer())


def fitted(model: Any, words: Any) -> tuple[Any, Any]:
    import torch

    told = list(itertools.product(THINGS, COLOURS, THINGS, COLOURS))
    premises, hypotheses = ([sentence(*each[at : at + 2]) for each in told] for at in (0, 2))
    pairs = words(premises, hypotheses, return_tensors="pt")["input_ids"]
    labels = torch.tensor([LABELS.index(label(*each)) for each in told])
    of_each = [(labels == number).nonzero().flatten() for number in range(len(LABELS))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(STEPS):
        some = torch.cat([rows[torch.randint(len(rows), (16,))] for rows in of_each])  # as many of each class
        loss = model(input_ids=pairs[some], labels=labels[some]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), words
