"""Whether passages entail sentences, as a served model of natural language inference (NLI) sees it.

A sentence's support is the greatest probability of entailment that a passage gives it, its contradiction the greatest
of contradiction (the zero-shot way of SummaC, Laban et al., 2022, arXiv:2111.09525). An engine's /classify takes one
text and no pair, so pairs are made of the model's own tokens, as its tokenizer makes them: `<s> passage </s></s>
sentence </s>` for RoBERTa and XLM-R, `[CLS] passage [SEP] sentence [SEP]` for ModernBERT. A model that tells the two
apart by segment ids, as BERT does, cannot be asked in this way.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from guards.tokens import Frame, cut, frame_of, tokens_of
from penstock.errors import EngineError
from penstock.steps import Parts

ENTAILMENT, CONTRADICTION = "entailment", "contradiction"
UNNAMED = re.compile(r"LABEL_\d+")
"""How transformers calls the classes of a model that does not name them."""


class Weight(NamedTuple):
    """A sentence, beside passages: each from 0 to 1."""

    support: float
    contradiction: float = 0.0


@dataclass(frozen=True, slots=True)
class Inference:
    """A served model. `labels`: its classes, in its own order; `sure`: whether somebody has said so, and not only
    nobody said otherwise."""

    parts: Parts
    model: str
    labels: Sequence[str]
    sure: bool

    async def weigh(self, said: Sequence[str], passages: Sequence[Sequence[str]]) -> list[Weight]:
        """`passages`: for each sentence those that it is held against. A sentence longer than half of what the model
        takes counts as its weakest piece. Raises EngineError where the model is none of inference."""
        frame = await self._frame()
        texts = list(dict.fromkeys([*said, *(passage for some in passages for passage in some)]))
        tokens = dict(zip(texts, await tokens_of(self.parts, self.model, texts, frame), strict=True))
        pieces = [cut(tokens[sentence], frame.room_of_pair // 2) for sentence in said]
        pairs = [
            [[pair for passage in some for pair in paired(frame, tokens[passage], piece)] for piece in own]
            for own, some in zip(pieces, passages, strict=True)
        ]
        asked = [pair for own in pairs for of_piece in own for pair in of_piece]
        answers = iter(await self._classified(asked) if asked else [])
        weighed = [[strongest([next(answers) for _ in of_piece]) for of_piece in own] for own in pairs]
        return [
            Weight(min(each.support for each in own), max(each.contradiction for each in own)) if own else Weight(0)
            for own in weighed
        ]

    async def _frame(self) -> Frame:
        frame = await frame_of(self.parts, self.model)
        if len(frame.begin) != 1 or len(frame.end) != 1:
            raise EngineError(f"{self.model} marks no beginning and end of a text, so it is asked for no pair")
        if frame.room_of_pair < 2:
            raise EngineError(f"{self.model} takes {frame.longest} tokens, too few for a pair")
        return frame

    async def _classified(self, pairs: Sequence[Sequence[int]]) -> list[Weight]:
        answer = await self.parts.ask(self.model, "/classify", {"input": pairs})
        data = sorted(answer["data"], key=lambda each: each["index"])
        if len(data) != len(pairs):
            raise EngineError(f"{self.model} has not classified all that it was given")
        return [self._weighed(each) for each in data]

    def _weighed(self, answer: Mapping[str, Any]) -> Weight:
        classes = probabilities(answer["probs"])
        if len(classes) != len(self.labels):
            raise EngineError(f"{self.model} has {len(classes)} classes, and `labels` names {len(self.labels)}")
        best = classes.index(max(classes))
        name = answer.get("label")
        if not isinstance(name, str) or UNNAMED.fullmatch(name):
            if not self.sure:
                raise EngineError(f"{self.model} does not name its classes: say with `labels` in which order they are")
        elif name.casefold() != self.labels[best]:
            raise EngineError(
                f"{self.model} calls its class {best} {name!r}, and `labels` calls it {self.labels[best]!r}"
            )
        by_name = dict(zip(self.labels, classes, strict=True))
        return Weight(by_name[ENTAILMENT], by_name.get(CONTRADICTION, 0.0))


def paired(frame: Frame, passage: Sequence[int], sentence: Sequence[int]) -> list[list[int]]:
    """One pair, where both are short enough together; else the passage in pieces."""
    return [frame.pair(piece, sentence) for piece in cut(passage, frame.room_of_pair - len(sentence))]


def strongest(weighed: Sequence[Weight]) -> Weight:
    return Weight(
        max((each.support for each in weighed), default=0.0), max((each.contradiction for each in weighed), default=0.0)
    )


def probabilities(classes: Sequence[float]) -> list[float]:
    """`classes` itself, unless they are logits, as of models whose configuration says that nothing is to be done with
    those."""
    if min(classes) >= 0 and abs(sum(classes) - 1) < 0.01:
        return list(classes)
    greatest = max(classes)
    weights = [math.exp(each - greatest) for each in classes]
    return [weight / sum(weights) for weight in weights]
