"""Versions added, found and read out again, over both databases."""

import asyncio
import multiprocessing
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa

from penstock import audit
from penstock.errors import BadRequest, NotFound
from penstock.references import Reference
from penstock.store import Store, opened
from penstock.tables import versions as table
from registry.adding import About, add
from registry.aliases import move
from registry.artifacts import Artifacts, Damaged, artifacts_at
from registry.claims import claim
from registry.difference import difference
from registry.lineage import lineage
from registry.resolve import resolve
from registry.versions import Version, all_versions, find
from tests.registry.conftest import DEMO, MakeModel, all_files

pytestmark = pytest.mark.anyio


def without_card(folder: Path) -> Mapping[str, bytes]:
    return {path: content for path, content in all_files(folder).items() if path != "README.md"}


async def test_the_demo_model_comes_out_as_it_went_in(store: Store, artifacts: Artifacts) -> None:
    added = await add(store, artifacts, DEMO, About("demo", metrics={"exact": 0.95}, recipe="seed: 1"), "me")
    version, folder = await resolve(store, artifacts, Reference("demo", 1))
    assert all_files(folder) == without_card(DEMO)
    assert version == added
    assert (version.reference, version.kind, version.metrics, version.recipe) == (
        "demo@1",
        "full",
        {"exact": 0.95},
        "seed: 1",
    )
    assert version.card == (DEMO / "README.md").read_text()
    assert folder.name == version.digest == version.files.digest


async def test_the_same_directory_twice_is_kept_once_under_one_digest(
    store: Store, artifacts: Artifacts, make_model: MakeModel
) -> None:
    one = await add(store, artifacts, make_model(), About("a"), "me")
    there = {kept.sha256 for kept in artifacts.all()}
    two = await add(store, artifacts, make_model(), About("a"), "me")
    three = await add(store, artifacts, make_model(1), About("b"), "me")
    assert (one.reference, two.reference, three.reference) == ("a@1", "a@2", "b@1")
    assert one.digest == two.digest != three.digest
    assert there == set(one.files.blobs)
    more = {kept.sha256 for kept in artifacts.all()} - there
    assert more == {three.files.files["model.safetensors"].sha256}


async def test_another_card_is_no_other_model(store: Store, folder: Artifacts, make_model: MakeModel) -> None:
    cards = [
        await add(store, folder, make_model(files={"README.md": card}), About("a"), "me") for card in (b"# A", b"# B")
    ]
    assert [version.card for version in cards] == ["# A", "# B"]
    assert cards[0].digest == cards[1].digest


async def test_every_version_stands_in_the_audit_log(store: Store, folder: Artifacts, make_model: MakeModel) -> None:
    version = await add(store, folder, make_model(), About("a"), "me")
    (entry,) = await audit.last(store, 10)
    assert (entry.action, entry.subject, entry.actor) == ("version.added", "a@1", "me")
    assert version.digest in entry.details
    assert (await audit.verify(store)).broken is None
    assert await store.number("versions") == version.change == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("dmo@1", "no model is named 'dmo' in the registry, did you mean 'demo'"),
        ("zzzzz@1", "no model is named 'zzzzz' in the registry; `penstock registry list`"),
        ("demo@9", "demo has no version 9: its last is 2"),
        ("demo@prodution", "demo has no alias 'prodution', did you mean 'production'"),
        ("demo@xyz", "demo has no alias 'xyz'; it has production"),
        ("bare@x", "bare has no alias 'x'; `penstock registry tag` makes one"),
    ],
)
async def test_what_is_not_there_is_told_with_what_is_near(
    store: Store, folder: Artifacts, make_model: MakeModel, reference: str, message: str
) -> None:
    for name in ("demo", "demo", "bare"):
        await add(store, folder, make_model(), About(name), "me")
    await move(store, "production", Reference("demo", 1), None, "me")
    with pytest.raises(NotFound, match=message):
        await find(store, Reference.of(reference))
    assert (await find(store, Reference.of("demo@production"))).number == 1


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (About(".hidden"), "does not begin with a dot"),
        (About("a/b"), "a model's name has 1 to 96"),
        (About("a", parent="b"), "the parent 'b' names no version"),
        (About("a", metrics={"x": float("nan")}), "no finite number"),
        (About("a", recipe="a\0b"), "a recipe is a text"),
        (About("a", data={"train": "short"}), "the data 'train' is no SHA-256"),
        (About("a", data={"a\nb": "f" * 64}), "under a plain name"),
    ],
)
async def test_what_cannot_be_said_of_a_version_is_refused(
    store: Store, folder: Artifacts, make_model: MakeModel, about: About, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        await add(store, folder, make_model(), about, "me")
    with pytest.raises(NotFound):
        await add(store, folder, make_model(), About("a", parent="absent@1"), "me")
    assert await all_versions(store) == []
    assert list(folder.all()) == []


async def test_what_was_refused_is_in_no_table(store: Store, folder: Artifacts, make_model: MakeModel) -> None:
    with pytest.raises(BadRequest, match="pickle"):
        await add(store, folder, make_model(files={"a.bin": b"x"}), About("a"), "me")
    assert await all_versions(store) == []
    version = await add(store, folder, make_model(files={"a.bin": b"x"}), About("a", allow_unsafe=True), "me")
    assert "a.bin" in version.files.files


async def test_lineage_is_drawn_from_the_oldest(store: Store, folder: Artifacts, make_model: MakeModel) -> None:
    adapter: dict[str, object] = {"adapter_config.json": {"r": 8}}
    await add(store, folder, make_model(0), About("base"), "me")
    await move(store, "production", Reference("base", 1), None, "me")
    await add(store, folder, make_model(1), About("chat", parent="base@production"), "me")
    await add(store, folder, make_model(files=adapter), About("terse", parent="chat@1"), "me")
    await add(store, folder, make_model(2), About("base", parent="base@1"), "me")
    await add(store, folder, make_model(3), About("other"), "me")
    everything = await all_versions(store)
    for shown in ("terse@1", "base@1", "base@2"):
        root = lineage(everything, await find(store, Reference.of(shown)))
        assert root.version.reference == "base@1"
        assert [child.version.reference for child in root.children] == ["base@2", "chat@1"]
        assert [child.version.kind for child in root.children[1].children] == ["adapter"]
    assert not lineage(everything, await find(store, Reference("other", 1))).children


async def test_what_differs_is_told(store: Store, folder: Artifacts, make_model: MakeModel) -> None:
    old = await add(store, folder, make_model(0), About("a", recipe="lr: 1\n", metrics={"x": 1.0}), "me")
    other: dict[str, object] = {"tokenizer_config.json": {"eos_token": "</s>", "chat_template": "x"}, "new.json": {}}
    about = About("a", recipe="lr: 2\n", metrics={"x": 1.0, "y": 2.0}, data={"train": "f" * 64})
    new = await add(store, folder, make_model(1, files=other), about, "me")
    found = difference(old, new)
    assert (found.added, found.removed) == (["new.json"], [])
    assert found.changed == ["model.safetensors", "tokenizer_config.json"]
    assert set(found.fields) == {"digest", "template"}
    assert (found.metrics, found.data) == ({"y": (None, 2.0)}, {"train": (None, "f" * 64)})
    assert "+lr: 2" in found.recipe
    assert difference(old, old).is_empty
    back = difference(new, old)
    assert (back.removed, back.metrics) == (["new.json"], {"y": (2.0, None)})


@pytest.mark.parametrize("path", ["../../escaped", "/tmp/escaped", "a/../../escaped"])
async def test_a_row_that_was_tampered_with_writes_nothing_outside(
    store: Store, folder: Artifacts, make_model: MakeModel, home: Path, path: str
) -> None:
    version = await add(store, folder, make_model(), About("a"), "me")
    plain = version.files.plain
    async with store.begin() as connection:
        await connection.execute(table.update().values(files={**plain, path: plain["config.json"]}))
    with pytest.raises(BadRequest, match="cannot be the path"):
        await resolve(store, folder, Reference("a", 1))
    assert not [path for path in all_files(home) if "escaped" in path]


async def test_a_damaged_file_is_told_and_no_directory_made(
    store: Store, folder: Artifacts, make_model: MakeModel, tmp_path: Path, home: Path
) -> None:
    version = await add(store, folder, make_model(), About("a"), "me")
    digest = version.files.files["model.safetensors"].sha256
    (place,) = (tmp_path / "kept" / "sha256").rglob(digest)
    place.chmod(0o600)
    place.write_bytes(b"x" * version.files.files["model.safetensors"].size)
    with pytest.raises(Damaged, match=f"{digest} is damaged"):
        await resolve(store, folder, Reference("a", 1))
    assert list((home / "models").iterdir()) == []


async def test_what_changes_between_the_check_and_the_keeping_is_refused(
    store: Store, folder: Artifacts, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    claimed = claim

    async def then_changed(store: Store, by: str, digests: Collection[str]) -> None:
        await claimed(store, by, digests)
        (model / "config.json").write_text('{"auto_map": {"AutoModel": "modeling.Evil"}}')

    monkeypatch.setattr("registry.adding.claim", then_changed)
    with pytest.raises(BadRequest, match="was changed while it was read"):
        await add(store, folder, model, About("a"), "me")
    assert await all_versions(store) == []


def add_many(database: str, place: str, folder: Path, times: int) -> None:
    """In a process of its own."""

    async def work() -> None:
        async with opened(database) as store:
            for _ in range(times):
                await add(store, artifacts_at(place), folder, About("a"), "me")

    asyncio.run(work())


async def test_processes_that_add_at_once_take_different_numbers(
    database: str, make_model: MakeModel, tmp_path: Path
) -> None:
    place = str(tmp_path / "kept")
    context = multiprocessing.get_context("spawn")
    adders = [context.Process(target=add_many, args=(database, place, make_model(seed), 5)) for seed in range(3)]
    for adder in adders:
        adder.start()
    for adder in adders:
        await asyncio.to_thread(adder.join, 120)
    assert [adder.exitcode for adder in adders] == [0] * 3
    async with opened(database) as store:
        added: list[Version] = list(await all_versions(store, "a"))
        assert [version.number for version in added] == list(range(1, 16))
        assert len({version.digest for version in added}) == 3
        assert (await audit.verify(store)).entries == 15
        async with store.read() as connection:
            changes = (await connection.execute(sa.select(table.c.change))).scalars().all()
        assert sorted(changes) == list(range(1, 16))
