"""Registered models in a configuration: an engine is started with a directory, or nothing is and it is told why."""

from pathlib import Path

import pytest

from engine.launch import plan
from penstock.config import Config
from penstock.errors import StartError
from penstock.references import Reference
from penstock.store import Store
from registry.adding import About, add
from registry.aliases import move
from registry.artifacts import Artifacts, artifacts_at
from registry.local_copy import Placed
from registry.resolve import Registered, registered
from registry.versions import find
from serving.stack import running
from tests.engine.test_launch import LAPTOP
from tests.registry.conftest import DEMO, MakeModel, all_files

pytestmark = pytest.mark.anyio


def configured(model: str, database: str, kept: Path) -> Config:
    return Config(
        state={"database": database},
        registry={"artifacts": str(kept)},
        engines={"base": {"model": model}, "far": {"model": "registry:any", "urls": ["http://10.0.0.1:8000"]}},
        models={"demo": {"engine": "base"}, "far": {"engine": "far"}},
    )


async def test_an_engine_is_started_with_the_versions_directory(
    store: Store, folder: Artifacts, database: str, tmp_path: Path, home: Path
) -> None:
    version = await add(store, folder, DEMO, About("demo"), "me")
    await move(store, "production", Reference("demo", 1), None, "me")
    for which in ("production", "1"):
        config = configured(f"registry:demo@{which}", database, tmp_path / "kept")
        place = home / "models" / version.digest
        assert (await registered(config)).bases == {"base": Placed(await find(store, Reference("demo", 1)), place)}
        engine = config.engines["base"].model_copy(update={"model": str(place)})
        launch = plan("base-0", engine, ["demo"], LAPTOP, Path("/s"))
        assert launch.argv[launch.argv.index("serve") + 1] == str(place)
        assert "tight_hermes" in launch.argv  # told from the directory's chat template
        assert launch.env["HF_HUB_OFFLINE"] == "1"
    assert "model.safetensors" in all_files(place)
    assert config.engines["base"].model == "registry:demo@1"  # a reload compares what was written


async def test_without_registered_models_no_database_is_opened(tmp_path: Path) -> None:
    config = configured("demo", "postgresql://a@127.0.0.1:1/b", tmp_path)
    assert await registered(config) == Registered()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "registry:dem@1",
            "engines.base: registry:dem@1: no model is named 'dem' in the registry, did you mean 'demo'",
        ),
        ("registry:demo@best", "engines.base: registry:demo@best: demo has no alias 'best'"),
        ("registry:terse@1", "engines.base: registry:terse@1 is an adapter, not a whole model: serve demo@1"),
        ("registry:gone@1", "engines.base: registry:gone@1: the kept file [0-9a-f]{64} is gone"),
    ],
)
async def test_what_cannot_be_served_is_told_before_anything_starts(
    store: Store,
    folder: Artifacts,
    make_model: MakeModel,
    database: str,
    tmp_path: Path,
    model: str,
    message: str,
) -> None:
    await add(store, folder, make_model(0), About("demo"), "me")
    adapter = make_model(1, files={"adapter_config.json": {"r": 8}})
    await add(store, folder, adapter, About("terse", parent="demo@1"), "me")
    gone = await add(store, folder, make_model(2), About("gone"), "me")
    folder.delete(gone.files.files["model.safetensors"].sha256)
    config = configured(model, database, tmp_path / "kept")
    with pytest.raises(StartError, match=message):
        await registered(config)


async def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    config = configured("registry:demo@1", "postgresql://a@127.0.0.1:1/b", tmp_path)
    with pytest.raises(StartError, match="cannot be used"):
        await registered(config)


async def test_a_place_that_fails_in_its_own_way_is_told_with_the_engine(
    store: Store, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"memory://{tmp_path.name}"
    await add(store, artifacts_at(place), DEMO, About("demo"), "me")
    config = configured("registry:demo@1", database, tmp_path)
    config = config.model_copy(update={"registry": config.registry.model_copy(update={"artifacts": place})})

    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.open", refused)
    with pytest.raises(
        StartError, match=r"engines.base: registry:demo@1: .*memory:// failed with RuntimeError: Unable"
    ):
        await registered(config)


async def test_what_cannot_start_leaves_no_run_folder(store: Store, database: str, tmp_path: Path, home: Path) -> None:
    with pytest.raises(StartError, match="no model is named"):
        async with running(configured("registry:absent@1", database, tmp_path / "kept")):
            pass
    assert list((home / "run").glob("*")) == []
