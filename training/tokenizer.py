"""Learn a tokenizer from text:

    penstock train recipes/text/tokenizer.yaml --out runs/tokenizer

A pre-training recipe takes the result by `tokenizer: {folder: runs/tokenizer/model}`. Three algorithms:

- `bpe` (Sennrich et al. 2016), of bytes: any text survives the round trip;
- `unigram`, SentencePiece's (Kudo 2018), with bytes for what its vocabulary lacks: any text does but one that has the
  character by which it marks spaces, U+2581;
- `wordpiece`, BERT's (Devlin et al. 2018): words and marks survive, the white space between them does not, and a
  character that it has not seen is unknown.

The same texts make the same `bpe` each time; the library numbers the pieces of the others as chance has it.

Digits stand alone, so that a number is copied digit by digit. `<|im_end|>` ends every assistant turn and is the EOS
that training sees; `<tool_call>` is one token but not a special one, so it stays in the decoded text where the engine's
tool parser looks for it.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from penstock.errors import ConfigError
from training import corpus, recipe
from training.data import FAMILIES, conversation
from training.pretrain_recipe import Recipe
from training.recipe import Part, digests
from training.run import Run, command

PAD, TURN_START, TURN_END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "[UNK]"
MARKS = [PAD, TURN_START, TURN_END]
TOOL_MARKS = ("<tool_call>", "</tool_call>")
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

Algorithm = Literal["bpe", "wordpiece", "unigram"]
DIGITS = pre_tokenizers.Digits(individual_digits=True)


class TokenizerRecipe(Part):
    """`items` generated conversations of the families, and all of the files, are read.

    `chat_template`: a file of Jinja; without one the tokenizer has Penstock's ChatML.
    """

    script: Literal["tokenizer"]
    seed: int = 1
    algorithm: Algorithm
    vocab_size: int = Field(ge=300)
    max_length: PositiveInt = Field(2048, description="what `model_max_length` tells of the model to be")
    families: list[str] = Field([])
    items: PositiveInt = 10_000
    files: list[Path] = Field([])
    chat_template: Path | None = None
    digests: dict[str, str] = Field({})

    @model_validator(mode="after")
    def has_something_to_learn(self) -> "TokenizerRecipe":
        if unknown := set(self.families) - set(FAMILIES):
            raise ValueError(f"unknown families {sorted(unknown)}, there are {sorted(FAMILIES)}")
        if not self.families and not self.files:
            raise ValueError("a tokenizer needs `families` or `files` to learn from")
        if self.algorithm == "unigram" and self.vocab_size < 500:
            raise ValueError("unigram keeps 256 places for bytes: give it a vocab_size of at least 500")
        return self


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    max_length: int,
    algorithm: Algorithm = "bpe",
    chat_template: Path = CHAT_TEMPLATE,
) -> PreTrainedTokenizerFast:
    """Learn from plain texts; `vocab_size` counts the marks, too, and is not reached where the texts are few."""
    learned = LEARN[algorithm](texts, vocab_size - len(TOOL_MARKS))
    learned.add_tokens([AddedToken(mark, normalized=False) for mark in TOOL_MARKS])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=learned,
        eos_token=TURN_END,
        pad_token=PAD,
        extra_special_tokens=[TURN_START],
        model_max_length=max_length,
        chat_template=chat_template.read_text(encoding="utf-8"),
        clean_up_tokenization_spaces=False,
        **({"unk_token": UNKNOWN} if algorithm == "wordpiece" else {}),
    )


def bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=MARKS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def wordpiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, pre_tokenizers.BertPreTokenizer()])
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*MARKS, UNKNOWN], continuing_subword_prefix="##", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def unigram(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The library's trainer knows no bytes: they are added to what it has learned, as rarer than any piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, pre_tokenizers.Metaspace(prepend_scheme="never")])
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - 256, special_tokens=[*MARKS, UNKNOWN], unk_token=UNKNOWN, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    rarest = min(score for _, score in pieces) - 10.0
    pieces += [(f"<0x{byte:02X}>", rarest) for byte in range(256)]
    tokenizer.model = models.Unigram(pieces, unk_id=len(MARKS), byte_fallback=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


LEARN: dict[Algorithm, Callable[[Iterable[str], int], Tokenizer]] = {
    "bpe": bpe,
    "wordpiece": wordpiece,
    "unigram": unigram,
}


def tokenizer_of(recipe: Recipe) -> PreTrainedTokenizerFast:
    """The one that a pre-training recipe names, or one learned from what its first stage trains on."""
    part = recipe.tokenizer
    if part.folder:
        found = loaded(part.folder)
        found.model_max_length = recipe.model.max_length
        return found
    first = recipe.stages[0]
    texts = learned_from(list(first.families), f"tokenizer/{recipe.seed}", part.items, list(first.files))
    return train_tokenizer(texts, part.vocab_size, recipe.model.max_length)


def loaded(folder: Path) -> PreTrainedTokenizerFast:
    """Raises ConfigError for a folder without a tokenizer, or one that has no token to end a text with."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} holds no tokenizer that transformers can load: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"the tokenizer in {folder} has no tokenizer.json, which an engine needs")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer in {folder} has no eos_token: a model would never end a text")
    return tokenizer


def learned_from(families: list[str], seed: str, items: int, files: list[Path]) -> Iterator[str]:
    """Plain texts without the marks that a chat template sets between them."""
    for i in range(items if families else 0):
        yield from plain_texts(conversation(families[i % len(families)], seed, i))
    for path in files:
        for one in corpus.read(path):
            yield from [one.said] if isinstance(one.said, str) else plain_texts(one.said)


def plain_texts(item: dict[str, Any]) -> Iterator[str]:
    for message in item["messages"]:
        content = message.get("content") or ""
        yield content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        yield from (str(call["function"]["arguments"]) for call in message.get("tool_calls") or ())
    for tool in item.get("tools") or ():
        yield f"{tool['function']['name']}: {tool['function'].get('description', '')}"


def train(recipe_path: Path, out: Path, *, resume: bool) -> None:
    told = recipe.load(recipe_path, TokenizerRecipe)
    template = told.chat_template or CHAT_TEMPLATE
    found = digests([*told.files, template])
    run = Run(out, told.model_dump(mode="json") | {"digests": found}, 1, resume)
    if run.finished:
        return
    texts = list(learned_from(told.families, f"tokenizer/{told.seed}", told.items, told.files))
    tokenizer = train_tokenizer(texts, told.vocab_size, told.max_length, told.algorithm, template)
    sample = texts[:: max(1, len(texts) // 1000)]
    tokens = sum(map(len, tokenizer(sample, verbose=False)["input_ids"]))
    run.log(0, vocab_size=len(tokenizer), bytes_per_token=sum(len(text.encode()) for text in sample) / max(1, tokens))
    with run.writing_model() as folder:
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    command(train, "Learn a tokenizer.")
