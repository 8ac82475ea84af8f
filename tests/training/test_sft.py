"""Supervised fine-tuning: its loss, every method, a run that is killed."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import BadRequest, Conflict, PenstockError
from tests.training.tuning import DEMO, REPOSITORY, killed, metrics, sft_recipe
from training.base import Base, digest_of
from training.examples import documents
from training.masking import Document
from training.recipe import load
from training.rows import batch
from training.sft import Forward, answer_loss, check_packing, mean_loss, split, train
from training.tuned import prepared, quantized
from training.tuning_recipe import Dpo, Sft

ENDS: dict[str, Any] = {"vocab_size": 50, "bos_token_id": None, "eos_token_id": 0}
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS = [
    LlamaConfig(**SMALL, **ENDS),
    Qwen3Config(**SMALL, **ENDS, num_key_value_heads=2, head_dim=16),
    GPT2Config(n_embd=32, n_layer=2, n_head=2, **ENDS),
]
FIRST = Document([1, 2, 3, 4, 5], [False, False, True, True, True])
SECOND = Document([6, 7, 8, 9], [False, True, True, True])


def test_the_loss_is_that_of_the_learned_tokens_alone() -> None:
    """Three tokens in a vocabulary of two: odds of 3 to 1 for the right one, then of 1 to 4."""
    logits = torch.tensor([[[math.log(3), 0.0], [0.0, math.log(4)], [9.0, -9.0]]])
    tokens = torch.tensor([[1, 0, 0]])

    both = answer_loss(logits, tokens, torch.tensor([[False, True, True]])).item()
    assert both == pytest.approx(-math.log(3 / 4) - math.log(1 / 5))
    last = answer_loss(logits, tokens, torch.tensor([[True, False, True]])).item()
    assert last == pytest.approx(-math.log(1 / 5))


def from_scratch(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).train(False)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_documents_in_a_packed_row_do_not_see_each_other(config: Any) -> None:
    forward = Forward(from_scratch(config), "float32", 0)
    packed = batch([[FIRST, SECOND], [SECOND]], 0, packed=True)
    with torch.no_grad():
        together = forward.logits(packed)
        alone = [forward.logits(batch([[one]], 0, packed=False))[0] for one in (FIRST, SECOND)]

    torch.testing.assert_close(together[0, :5], alone[0])
    torch.testing.assert_close(together[0, 5:9], alone[1])
    torch.testing.assert_close(together[1, :4], alone[1])
    check_packing(forward, FIRST, SECOND)


def test_a_model_that_reads_across_documents_is_not_packed() -> None:
    class Mixing(nn.Module):
        """One that has no use for positions."""

        def __init__(self) -> None:
            super().__init__()
            self.model = from_scratch(CONFIGS[0])

        def forward(self, position_ids: Any, **given: Any) -> Any:
            return self.model(**given)

    with pytest.raises(BadRequest, match="packing: false"):
        check_packing(Forward(Mixing(), "float32", 0), FIRST, SECOND)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run that nothing has disturbed; its recipe lies beside it."""
    folder = tmp_path_factory.mktemp("whole")
    train(sft_recipe(folder, "lora", merge=True), folder / "run", resume=False)
    return folder / "run"


def test_an_adapter_learns_what_the_base_does_not_do(whole: Path) -> None:
    lines = metrics(whole)

    assert [line["step"] for line in lines] == list(range(12))
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert lines[-1]["held_out_loss"] < lines[0]["loss"] / 2


def test_a_killed_run_ends_as_if_it_had_not_been(whole: Path, tmp_path: Path) -> None:
    """Dropout included, which is drawn anew in the steps that come after."""
    recipe = whole.parent / "recipe.yaml"
    killed("sft", recipe, tmp_path / "run", after_lines=6)
    assert len(metrics(tmp_path / "run")) < 12
    train(recipe, tmp_path / "run", resume=True)

    assert metrics(tmp_path / "run") == metrics(whole)
    for file in ("model/adapter_model.safetensors", "merged/model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes()


def test_rows_in_parts_are_the_same_step(whole: Path, tmp_path: Path) -> None:
    change = {"adapter": {"rank": 8, "alpha": 16}, "steps": 4}
    for name, more in (("at once", {}), ("in parts", {"rows_at_once": 1})):
        (tmp_path / name).mkdir()
        train(sft_recipe(tmp_path / name, "lora", **change, **more), tmp_path / name / "run", resume=False)

    at_once, in_parts = metrics(tmp_path / "at once/run"), metrics(tmp_path / "in parts/run")
    for one, other in zip(at_once, in_parts, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


def held_out_of(recipe: Sft) -> list[Document]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(DEMO)
    return split(documents(tokenizer, recipe.data, recipe.length, 0), recipe.held_out, recipe.seed)[1]


@pytest.mark.parametrize("method", ["full", "dora", "qlora", "prefix", "prompt"])
def test_what_a_run_saves_is_what_it_has_trained(tmp_path: Path, method: str) -> None:
    """Loaded again, it has the held-out loss that the run measured at its end."""
    change: dict[str, Any] = {"packing": method not in ("prefix", "prompt"), "steps": 3, "merge": method == "dora"}
    if method in ("prefix", "prompt"):
        change["optimizer"] = {"lr": 0.3}
    path = sft_recipe(tmp_path, method, **change)
    train(path, tmp_path / "run", resume=False)
    recipe = load(path, Sft)
    trained = metrics(tmp_path / "run")[-1]["held_out_loss"]

    def loss_of(model: nn.Module) -> float:
        return mean_loss(Forward(model, "float32", 0, method in ("prefix", "prompt")), held_out_of(recipe), 4)

    folder = tmp_path / "run/model"
    base: Any = (
        quantized(Base(str(DEMO), str(DEMO)), torch.float32)
        if method == "qlora"
        else AutoModelForCausalLM.from_pretrained(folder if method == "full" else DEMO, dtype=torch.float32)
    )
    model = base if method == "full" else peft.PeftModel.from_pretrained(base, folder)
    assert loss_of(model) == pytest.approx(trained, rel=1e-5)
    assert {"chat_template.jinja", "tokenizer.json", "README.md"} <= {file.name for file in folder.iterdir()}
    card = ModelCard.load(folder / "README.md")
    relation = "finetune" if method == "full" else "adapter"
    assert (card.data.base_model, card.data.to_dict()["base_model_relation"]) == (str(DEMO), relation)
    assert "- `conversations.jsonl`, SHA-256 `" in card.text
    if method == "dora":
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run/merged", dtype=torch.float32)
        assert loss_of(merged) == pytest.approx(trained, rel=1e-5)


def test_gradients_through_a_quantized_base_are_those_of_its_dense_twin(tmp_path: Path) -> None:
    """Also after a forward pass outside training, for which some CPUs would repack the weights."""
    recipe = load(sft_recipe(tmp_path, "qlora", adapter={"rank": 8}), Sft)
    part = batch([[one] for one in held_out_of(recipe)[:2]], 0, packed=True)
    model = prepared(recipe, Base(str(DEMO), str(DEMO)), "float32")
    twin = prepared(load(sft_recipe(tmp_path, "lora", adapter={"rank": 8}), Sft), Base(str(DEMO), str(DEMO)), "float32")
    dense(model, twin)
    gradients = []
    for one in (model, twin):
        with torch.no_grad():
            Forward(one.train(False), "float32", 0).logits(part)
        logits = Forward(one.train(), "float32", 0).logits(part)
        answer_loss(logits, part.tokens, part.learned).backward()  # type: ignore[no-untyped-call]
        gradients.append([weight.grad for name, weight in one.named_parameters() if "lora_B" in name])

    assert len(gradients[0]) == 7 * json.loads((DEMO / "config.json").read_text())["num_hidden_layers"]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def dense(model: nn.Module, twin: nn.Module) -> None:
    """Give the twin the weights that NF4 stands for."""
    from bitsandbytes.functional import dequantize_4bit

    layers = dict(twin.named_modules())
    for name, module in model.named_modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            layers[name].weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state)


def test_bad_rows_stop_a_run_before_anything_is_written(tmp_path: Path) -> None:
    recipe = sft_recipe(tmp_path, "lora")
    with (tmp_path / "conversations.jsonl").open("a") as data:
        data.write('\n{"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "x"}]}')
        data.write('\n{"messages": []}')
    with pytest.raises(BadRequest) as refused:
        train(recipe, tmp_path / "run", resume=False)

    assert "conversations.jsonl, line 42: messages are a list of turns" in refused.value.message
    assert "conversations.jsonl, line 41: turn 1 says '<|im_end|>'" in refused.value.message
    assert not (tmp_path / "run").exists()


def test_rows_that_are_too_long_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(DEMO)
    recipe = load(sft_recipe(tmp_path, "lora"), Sft)
    lengths = sorted(len(one.tokens) for one in documents(tokenizer, recipe.data, 2048, 0))
    kept = documents(tokenizer, recipe.data, lengths[30], 0)

    assert 30 < len(kept) < 40
    assert f"{40 - len(kept)} of 40 rows are longer than `length: {lengths[30]}`" in capsys.readouterr().err
    with pytest.raises(BadRequest, match=f"the shortest has {lengths[0]} tokens"):
        documents(tokenizer, recipe.data, 5, 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"method": "dora"}, "vLLM does not serve DoRA"),
        ({"adapter": {"rank": 600}}, "the rank 600 is above vLLM's largest, 512"),
        ({"eos_token": "<|endoftext|>"}, "do not stop at '<|endoftext|>'"),
        ({"chat_template": "other.jinja"}, "another than it learns"),
    ],
)
def test_what_vllm_cannot_serve_is_told_before_a_run(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    if "chat_template" in change:
        (tmp_path / "other.jinja").write_text((DEMO / "chat_template.jinja").read_text().replace("assistant", "bot"))
        change = {"chat_template": str(tmp_path / "other.jinja")}
    recipe = sft_recipe(tmp_path, **{"method": "lora", "export": "required", **change})
    with pytest.raises(BadRequest, match=why):
        train(recipe, tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("sft-lora", Sft), ("dpo", Dpo), ("demo/sft", Sft), ("demo/dpo", Dpo), ("demo/terse", Sft), ("demo/caller", Sft)],
)
def test_the_recipes_of_the_repository_are_understood(recipe: str, kind: type[Sft | Dpo]) -> None:
    base = "registry:demo@production" if recipe.startswith("demo/") else "recipes/demo/model"
    assert load(REPOSITORY / f"recipes/{recipe}.yaml", kind).base == base


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"method": "prefix"}, "packing: false"),
        ({"method": "full", "merge": True}, "nothing to merge"),
        ({"epochs": 2}, "either `steps` or `epochs`"),
        ({"held_out": 0.999}, "leaves nothing on one of the sides"),
        ({"length": 4096}, "more than the 2048 positions"),
        ({"base": "nowhere/to/be/found"}, "has no tokenizer that can be read"),
        ({"adapter": {"targets": ["c_attn"]}}, "the adapter cannot be put on"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused_with_its_reason(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    with pytest.raises(PenstockError, match=why):
        train(sft_recipe(tmp_path, **{"method": "lora", **change}), tmp_path / "run", resume=False)


def first_step(folder: Path, **change: Any) -> dict[str, Any]:
    recipe = sft_recipe(folder, "lora", **{"adapter": {"rank": 8}, "steps": 1, "held_out": 0, **change})
    train(recipe, folder / "run", resume=False)
    return metrics(folder / "run")[0]


def test_what_saves_memory_or_time_computes_the_same(tmp_path: Path) -> None:
    """To what bfloat16 can hold."""
    for name in ("plain", "checkpointed", "bfloat16"):
        (tmp_path / name).mkdir()
    plain = first_step(tmp_path / "plain")
    checkpointed = first_step(tmp_path / "checkpointed", gradient_checkpointing=True)
    rounded = first_step(tmp_path / "bfloat16", precision="bfloat16")

    assert checkpointed["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert checkpointed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
    assert rounded["loss"] == pytest.approx(plain["loss"], rel=0.02)
    assert rounded["grad_norm"] == pytest.approx(plain["grad_norm"], rel=0.1)
    assert rounded["loss"] != plain["loss"]


def test_a_run_keeps_the_registered_base_that_its_alias_pointed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def registry(*words: str) -> None:
        done = CliRunner().invoke(app, ["registry", *words])
        assert done.exit_code == 0, done.output

    registry("add", "demo", str(DEMO))
    registry("tag", "demo@1", "production")
    recipe = sft_recipe(tmp_path, "lora", base="registry:demo@production", steps=2)
    train(recipe, tmp_path / "run", resume=False)
    adapter = json.loads((tmp_path / "run/model/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "registry:demo@1"

    (tmp_path / "demo").mkdir()
    for file in DEMO.iterdir():
        (tmp_path / "demo" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "demo/README.md").write_text("another")
    registry("add", "demo", str(tmp_path / "demo"))
    registry("tag", "demo@2", "production")
    train(recipe, tmp_path / "run", resume=True)
    train(recipe, tmp_path / "later", resume=False)
    assert "base: registry:demo@1\n" in (tmp_path / "run/recipe.yaml").read_text()
    assert "base: registry:demo@2\n" in (tmp_path / "later/recipe.yaml").read_text()

    with pytest.raises(BadRequest, match="is an adapter: give the whole weights"):
        train(sft_recipe(tmp_path, "lora", base=str(tmp_path / "run/model")), tmp_path / "other", resume=False)


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    recipe = sft_recipe(tmp_path, "lora", steps=2)
    train(recipe, tmp_path / "run", resume=False)
    data = tmp_path / "conversations.jsonl"
    data.write_text(data.read_text() + "\n" + data.read_text().splitlines()[0])

    with pytest.raises(Conflict, match="digests"):
        train(recipe, tmp_path / "run", resume=True)


def test_a_run_goes_on_from_the_weights_that_it_was_begun_from_alone(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(DEMO, base)
    (base / "notes.json").mkdir()
    recipe = sft_recipe(tmp_path, "lora", base=str(base), steps=1)
    train(recipe, tmp_path / "run", resume=False)
    (base / "README.md").write_text("another card is no other model")
    train(recipe, tmp_path / "run", resume=True)

    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Conflict, match=rf"{base} has changed since the run .* was begun"):
        train(recipe, tmp_path / "run", resume=True)


def test_what_a_hub_has_is_told_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "a" * 40
    repository = tmp_path / "models--ours--small"
    for file, text in (("refs/main", commit), (f"snapshots/{commit}/config.json", "{}")):
        (repository / file).parent.mkdir(parents=True, exist_ok=True)
        (repository / file).write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert digest_of(Base("ours/small", "ours/small")) == commit
    assert digest_of(Base("registry:demo@1", str(tmp_path))) is None
