"""Our transformers beside Hugging Face's: the same loss, the same gradients, the same answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from training.model import Model, build, export, looks_back, positions_within
from training.pretrain_recipe import ModelPart
from training.tokenizer import train_tokenizer

VOCAB = 320
SHAPE = {"hidden_size": 96, "layers": 3, "heads": 6, "ffn_size": 160, "max_length": 64}
SHAPES = {
    "llama": ModelPart.model_validate({**SHAPE, "style": "llama", "tied": False, "rope_theta": 5e5}),
    "llama tied, grouped": ModelPart.model_validate({**SHAPE, "style": "llama", "key_value_heads": 2}),
    "qwen3": ModelPart.model_validate({**SHAPE, "style": "qwen3"}),
    "qwen3 untied, grouped": ModelPart.model_validate({**SHAPE, "key_value_heads": 3, "tied": False}),
    "gpt2": ModelPart.model_validate({**SHAPE, "style": "gpt2"}),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a small text, and a smaller one"] * 9, VOCAB, 64)


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> ModelPart:
    return SHAPES[request.param]


def shaken(shape: ModelPart, **options: bool) -> Model:
    """Norms and biases too, which begin as ones and zeros, and so would hide a mistake."""
    model = build(shape, VOCAB, seed=1, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.05)
    return model


def twin(model: Model, shape: ModelPart, tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedModel:
    export(model, shape, tokenizer, folder, dtype=torch.float32)
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    both: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    loaded: PreTrainedModel = both[0]
    told: dict[str, Any] = both[1]
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    loaded.train()
    return loaded


def tokens(rows: int = 4, length: int = 48) -> Tensor:
    """Not the padding token, 0: Hugging Face's embedding does not learn it; ours does, for it ends documents."""
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(3))


def loss(logits: Tensor, read: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), read[:, 1:].flatten())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_loss_and_every_gradient_are_hugging_faces(
    shape: ModelPart, tokenizer: PreTrainedTokenizerFast, checkpointed: bool, tmp_path: Path
) -> None:
    model = shaken(shape, checkpointed=checkpointed)
    theirs = twin(model, shape, tokenizer, tmp_path)
    read = tokens()
    ours_loss, their_loss = loss(model(read), read), theirs(input_ids=read, labels=read).loss
    ours_loss.backward()  # type: ignore[no-untyped-call]
    their_loss.backward()
    their_gradients = {name: weight.grad for name, weight in theirs.named_parameters()}

    assert ours_loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    assert {name for name, _ in model.named_parameters()} == set(their_gradients)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        expected = their_gradients[name]
        assert expected is not None
        assert (weight.grad - expected).norm() <= 2e-5 * expected.norm(), name


def test_documents_that_share_a_row_are_as_if_alone(shape: ModelPart) -> None:
    model = shaken(shape)
    alone = [tokens(1, length) + 0 for length in (17, 5, 26)]
    documents = torch.tensor([[0] * 17 + [1] * 5 + [2] * 26])
    together = model(torch.cat(alone, 1), positions_within(documents), looks_back(documents))

    assert positions_within(documents).tolist() == [[*range(17), *range(5), *range(26)]]
    expected = torch.cat([model(one) for one in alone], 1)
    assert torch.allclose(together, expected, atol=2e-5)
    assert not torch.allclose(model(torch.cat(alone, 1)), expected, atol=1e-2)


def test_a_token_depends_on_none_after_it(shape: ModelPart) -> None:
    model, read = shaken(shape), tokens(1)
    changed = read.clone()
    changed[0, 30] = (changed[0, 30] + 1) % VOCAB

    assert torch.equal(model(read)[:, :30], model(changed)[:, :30])
    assert not torch.allclose(model(read)[:, 30:], model(changed)[:, 30:])


def test_the_start_is_a_function_of_the_seed_and_is_even(shape: ModelPart) -> None:
    first, again, other = (build(shape, VOCAB, seed) for seed in (1, 1, 2))
    read = tokens()

    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first(read), other(read))
    assert loss(first(read), read).item() == pytest.approx(torch.tensor(float(VOCAB)).log().item(), abs=0.1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"heads": 5}, "5 heads do not divide a width of 96"),
        ({"key_value_heads": 4}, "6 heads cannot share 4 keys and values evenly"),
        ({"heads": 32}, "heads of even size, not 3"),
        ({"style": "gpt2", "tied": False}, "gpt2 is tied"),
        ({"style": "gpt2", "key_value_heads": 2}, "gpt2 is tied and has as many key_value_heads as heads"),
        ({"style": "mamba"}, "'qwen3', 'llama' or 'gpt2'"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ModelPart.model_validate({**SHAPE, **change})
