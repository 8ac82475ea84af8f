"""Out of one registry and into another, in Hugging Face's layout."""

import asyncio
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from penstock.errors import BadRequest, StateUnavailable
from penstock.references import Reference
from penstock.store import Store
from registry.adding import About, add
from registry.artifacts import Artifacts, Damaged
from registry.card import metrics_of, split
from registry.exchange import bring_in, export
from registry.versions import all_versions, find
from tests.registry.conftest import DEMO, MakeModel, all_files

pytestmark = pytest.mark.anyio


async def test_the_demo_model_goes_round_with_its_digests_metrics_and_recipe(
    store: Store, artifacts: Artifacts, tmp_path: Path
) -> None:
    about = About("demo", metrics={"exact": 0.95, "perplexity": 3.5}, recipe="seed: 1\n", data={"train": "f" * 64})
    one = await add(store, artifacts, DEMO, about, "me")
    await export(store, artifacts, Reference("demo", 1), tmp_path / "out")
    two = await bring_in(store, artifacts, str(tmp_path / "out"), About("back"), "me")
    for name in ("digest", "template", "tokenizer", "kind", "metrics", "recipe", "data", "files"):
        assert getattr(one, name) == getattr(two, name), name
    await export(store, artifacts, Reference("back", 1), tmp_path / "again")
    files, again = all_files(tmp_path / "out"), all_files(tmp_path / "again")
    headers = [split(each.pop("README.md").decode()) for each in (files, again)]
    assert files == again
    assert headers[0][1] == headers[1][1]
    assert headers[0][0]["penstock"]["digest"] == headers[1][0]["penstock"]["digest"] == one.digest


@pytest.mark.parametrize(
    ("files", "relation"),
    [
        ({}, "finetune"),
        ({"adapter_config.json": {"r": 8}}, "adapter"),
        ({"quantize_config.json": {"bits": 4}}, "quantized"),
    ],
)
async def test_the_card_says_what_it_was_made_from_as_the_hubs_own_reader_has_it(
    store: Store, folder: Artifacts, make_model: MakeModel, tmp_path: Path, files: dict[str, object], relation: str
) -> None:
    await add(store, folder, make_model(), About("base", origin="Qwen/Qwen2.5-0.5B@abc"), "me")
    card = b"---\nlicense: apache-2.0\ntags: [a]\n---\n# Mine\n\nSome words.\n"
    about = About("mine", parent="base@1", metrics={"exact": 0.5})
    await add(store, folder, make_model(1, files={**files, "README.md": card}), about, "me")
    await export(store, folder, Reference("mine", 1), tmp_path / "out")
    read = ModelCard.load(tmp_path / "out" / "README.md")
    said = read.data.to_dict()
    assert (said["base_model"], said["base_model_relation"]) == ("Qwen/Qwen2.5-0.5B", relation)
    assert (said["license"], said["tags"]) == ("apache-2.0", ["a"])
    (result,) = read.data.eval_results
    assert (result.metric_name, result.metric_value, result.task_type) == ("exact", 0.5, "text-generation")
    assert read.text == "# Mine\n\nSome words.\n"
    await export(store, folder, Reference("mine", 1), tmp_path / "named", "me/my-base")
    assert ModelCard.load(tmp_path / "named" / "README.md").data.base_model == "me/my-base"


async def test_the_card_of_an_adapter_names_the_whole_model_beneath_the_adapters_before_it(
    store: Store, folder: Artifacts, make_model: MakeModel, tmp_path: Path
) -> None:
    await add(store, folder, make_model(), About("base", origin="Qwen/Qwen2.5-0.5B@abc"), "me")
    for number, parent in enumerate(("base@1", "mine@1")):
        adapter = make_model(number, files={"adapter_config.json": {"r": 8}})
        await add(store, folder, adapter, About("mine", parent=parent), "me")
    await export(store, folder, Reference("mine", 2), tmp_path / "out")
    said = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert (said["base_model"], said["penstock"]["parent"]) == ("Qwen/Qwen2.5-0.5B", "mine@1")


async def test_a_model_without_parent_or_card_gets_a_card_that_claims_none(
    store: Store, folder: Artifacts, make_model: MakeModel, tmp_path: Path
) -> None:
    await add(store, folder, make_model(), About("a"), "me")
    await export(store, folder, Reference("a", 1), tmp_path / "out")
    header, body = split((tmp_path / "out" / "README.md").read_text())
    assert set(header) == {"penstock"}
    assert body == "# a\n"


async def test_an_export_may_be_changed_and_does_not_change_what_is_kept(
    store: Store, folder: Artifacts, make_model: MakeModel, tmp_path: Path
) -> None:
    await add(store, folder, make_model(), About("a"), "me")
    await export(store, folder, Reference("a", 1), tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{}")
    await export(store, folder, Reference("a", 1), tmp_path / "again")
    assert "LlamaForCausalLM" in (tmp_path / "again" / "config.json").read_text()


async def test_an_export_is_whole_or_not_there_and_goes_over_nothing(
    store: Store, folder: Artifacts, make_model: MakeModel, tmp_path: Path
) -> None:
    version = await add(store, folder, make_model(), About("a"), "me")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(BadRequest, match="is there already and not an empty directory"):
        await export(store, folder, Reference("a", 1), tmp_path / "full")
    assert all_files(tmp_path / "full") == {"mine": b"mine"}
    folder.delete(version.files.files["tokenizer.json"].sha256)
    with pytest.raises(Damaged):
        await export(store, folder, Reference("a", 1), tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


async def test_what_a_card_of_the_hubs_says_is_taken_over_and_what_is_said_here_stands_above(
    store: Store, folder: Artifacts, make_model: MakeModel
) -> None:
    results = [
        {"task": {"type": "text-generation"}, "metrics": [{"type": "acc", "value": 0.5}, {"type": "f1", "value": "x"}]},
        {"metrics": [{"name": "acc", "type": "acc", "value": 0.9}, {"type": "ppl", "value": 7}]},
    ]
    header = yaml.safe_dump({"model-index": [{"name": "m", "results": results}], "base_model": "a/b"})
    model = make_model(files={"README.md": f"---\n{header}---\nText".encode()})
    version = await bring_in(store, folder, str(model), About("m", metrics={"ppl": 6}), "me")
    assert version.metrics == {"acc": 0.5, "ppl": 6}


@pytest.mark.parametrize(
    "card",
    [
        "",
        "no header",
        "---\n[not yaml\n---\n",
        "---\n- a list\n---\n",
        "---\nmodel-index: 3\n---\n",
        "---\nmodel-index: [3, {results: [3, {metrics: [3]}]}]\n---\n",
        "---\nmodel-index: [{results: 3}, {results: {a: 1}}, {results: [{metrics: 7}]}]\n---\n",
        "---\nmodel-index: [{results: [{metrics: [{name: a, value: .nan}, {name: b, value: .inf}]}]}]\n---\n",
        '---\nmodel-index: [{results: [{metrics: [{name: "a\\nb", value: 1}, {name: c, value: 1'
        + "0" * 400
        + "}]}]}]\n---\n",
        "---\ndate: 2024-99-99\n---\n",
        "---\na: " + "[" * 5000 + "]" * 5000 + "\n---\n",
        "---\nopen: true\n",
    ],
)
def test_a_card_that_is_odd_is_no_error(card: str) -> None:
    assert metrics_of(card) == {}


@pytest.mark.parametrize(
    "card", ["---\r\na: 1\r\n---\r\nText\r\n", "\ufeff---\na: 1\n---\nText\n", "---\na: 1\n---\nText\n"]
)
def test_a_header_is_found_whatever_editor_wrote_it(card: str) -> None:
    assert split(card) == ({"a": 1}, "Text\n")
    assert split("---\na: 1\n---") == ({"a": 1}, "")


async def test_data_that_an_odd_card_claims_is_left_out(store: Store, folder: Artifacts, make_model: MakeModel) -> None:
    card = f"---\npenstock: {{data: {{good: {'a' * 64}, odd: 7}}, recipe: 3}}\n---\n"
    version = await bring_in(store, folder, str(make_model(files={"README.md": card.encode()})), About("m"), "me")
    assert (version.data, version.recipe) == ({"good": "a" * 64}, None)


@pytest.mark.parametrize("source", ["./absent", "/absent", "a/b/c", "a b", "~/absent", "../x"])
async def test_what_is_neither_a_directory_nor_an_id_is_told(store: Store, folder: Artifacts, source: str) -> None:
    with pytest.raises(BadRequest, match="neither a directory nor a Hugging Face id such as"):
        await bring_in(store, folder, source, About("a"), "me")


async def test_without_a_network_an_id_is_told_with_what_to_do(
    store: Store, folder: Artifacts, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(
        StateUnavailable, match=r"Qwen/Qwen2.5-0.5B cannot be fetched from the hub .*copy the model's folder"
    ):
        await bring_in(store, folder, "Qwen/Qwen2.5-0.5B", About("a"), "me")
    assert await all_versions(store) == []
    assert not [path for path in all_files(home) if ".draft-" in path]


async def test_a_parent_is_found_by_number_whatever_its_alias_does(
    store: Store, folder: Artifacts, make_model: MakeModel
) -> None:
    from registry.aliases import move

    await add(store, folder, make_model(0), About("base"), "me")
    await add(store, folder, make_model(1), About("base"), "me")
    await move(store, "best", Reference("base", 1), None, "me")
    version = await bring_in(store, folder, str(make_model(2)), About("x", parent="base@best"), "me")
    await asyncio.gather(move(store, "best", Reference("base", 2), 1, "me"))
    assert (await find(store, Reference("x", 1))).parent == version.parent == "base@1"
